"""The rows that a layer learned from, where their files still lie on this machine, unchanged."""

from collections.abc import Sequence
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
    return learned(store, layer, found.examples)


def learned(
    store: Store, layer: ResolvedLayer, rows: Sequence[Example]
) -> tuple[Example, ...] | None:
    """Those of `rows` that this version of a layer was trained on; None unless they are all."""
    config = layer.config
    if config.data is None or config.recipe is None:
        return None
    before = version(store, older(config))
    known = frozenset[bytes]() if before is None else seen_rows.of_layer(store, before)
    own = seen_rows.of_layer(store, layer) or frozenset(map(seen.mark, rows))
    wanted = own - known
    new = [row for row in rows if seen.mark(row) in wanted]
    found = split(new, config.recipe.held_out, config.recipe.held_out_max).train
    return found if content_digest(found) == config.data.content else None


def all_rows(
    store: Store, layer: ResolvedLayer, given: Sequence[Example] | None = None
) -> tuple[tuple[Example, ...], bool]:
    """The rows of all trainings of a layer, and whether they are all that it learned.

    They are looked for in `given`, or else where they lay. A newer answer to a question replaces an
    older one.
    """
    layers, whole = trainings(store, layer)
    found: dict[str, list[Example]] = {}
    for each in layers:
        rows = rows_of(store, each) if given is None else learned(store, each, given)
        whole = whole and rows is not None
        asked: dict[str, list[Example]] = {}
        for row in rows or ():
            asked.setdefault(question_digest(row.prompt, row.matter), []).append(row)
        found |= {question: same for question, same in asked.items() if question not in found}
    return tuple(row for same in found.values() for row in same), whole
