"""The rows that a layer learned from, where their files still lie on this machine, unchanged."""

from pathlib import Path

from lamina.core.errors import DataError
from lamina.data import seen
from lamina.data.example import Example
from lamina.data.provenance import content_digest
from lamina.data.read import read
from lamina.data.split import question_digest, split
from lamina.flows import runs, seen_rows
from lamina.flows.descent import older, trainings, version
from lamina.stack.resolve import ResolvedLayer
from lamina.store.layout import Store


def sources_of(store: Store, layer: str) -> list[str] | None:
    """Where the data of a layer lay when it was trained here; None for one trained elsewhere."""
    for run in reversed(runs.all_runs(store)):
        result = run.result
        if result is not None and result.layer == layer:
            return list(run.spec.sources)
    return None


def rows_of(store: Store, layer: ResolvedLayer) -> tuple[Example, ...] | None:
    """The rows that this version of a layer was trained on; None when they are not at hand.

    Files are trusted by content only: the rows must be those of the layer's data fingerprint.
    """
    config, sources = layer.config, sources_of(store, layer.digest)
    if config.data is None or config.recipe is None or not sources:
        return None
    sizes = sorted(file.bytes for file in config.data.files)
    paths = [Path(source) for source in sources]
    if not all(p.is_file() for p in paths) or sorted(p.stat().st_size for p in paths) != sizes:
        return None
    try:
        found = read(sources, format=config.data.format, skip_bad=config.data.skipped > 0)
    except DataError:
        return None
    before = version(store, older(config))
    known = frozenset[bytes]() if before is None else seen_rows.of_layer(store, before)
    new = [example for example in found.examples if seen.mark(example) not in known]
    rows = split(new, config.recipe.held_out, config.recipe.held_out_max).train
    return rows if content_digest(rows) == config.data.content else None


def all_rows(store: Store, layer: ResolvedLayer) -> tuple[tuple[Example, ...], bool]:
    """The rows at hand of all trainings of a layer, and whether they are all that it learned.

    A newer answer to a question replaces an older one.
    """
    layers, whole = trainings(store, layer)
    found: dict[str, Example] = {}
    for each in layers:
        rows = rows_of(store, each)
        whole = whole and rows is not None
        for row in rows or ():
            found.setdefault(question_digest(row.prompt, row.text), row)
    return tuple(found.values()), whole
