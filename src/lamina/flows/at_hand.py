"""The rows that a layer learned from, where their files still lie on this machine, unchanged."""

from pathlib import Path

from lamina.core.digest import Digest
from lamina.core.errors import DataError, LaminaError
from lamina.core.manifests import LayerConfig
from lamina.data import seen
from lamina.data.example import Example
from lamina.data.provenance import content_digest
from lamina.data.read import read
from lamina.data.split import split
from lamina.flows import runs, seen_rows
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
    older_version = version(store, older(config))
    known = frozenset[bytes]()
    if older_version is not None:
        known = seen_rows.of_layer(store, older_version)
    new = [example for example in found.examples if seen.mark(example) not in known]
    rows = split(new, config.recipe.held_out, config.recipe.held_out_max).train
    return rows if content_digest(rows) == config.data.content else None


def older(config: LayerConfig) -> Digest | None:
    """The layer that a layer was updated from: the version before it, or what it branched off."""
    if config.origin != "updated":
        return None
    return config.supersedes or (config.sources[0].layer if config.sources else None)


def version(store: Store, layer: str | None) -> ResolvedLayer | None:
    """A layer by digest, by itself; None where the store does not have it."""
    if layer is None:
        return None
    try:
        manifest = store.manifest(layer)
        return ResolvedLayer(layer, 1.0, store.config(manifest, LayerConfig), manifest)
    except LaminaError:
        return None
