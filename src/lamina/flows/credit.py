"""Whose work is in a layer, read from the store: what its config says, or what its sources say."""

from collections.abc import Iterable, Sequence
from typing import Any

from lamina.core import credits as rules
from lamina.core.digest import Digest
from lamina.core.manifests import Credit, LayerConfig
from lamina.flows.descent import version
from lamina.stack.resolve import ResolvedLayer
from lamina.store.layout import Store


def credits_of(store: Store, config: LayerConfig) -> tuple[Credit, ...]:
    """The credits that a layer carries; for an older one those that its sources give.

    A source that lives elsewhere is credited by its digest alone.
    """
    if config.credits is not None:
        return config.credits
    older = [source.layer for source in config.sources]
    if not older and config.supersedes is not None:
        older = [config.supersedes]
    return of_sources(store, [(digest, None) for digest in older])


def of_sources(store: Store, sources: Iterable[tuple[Digest, float | None]]) -> tuple[Credit, ...]:
    """The credits of a layer that came from these, each with its share where that is known."""
    found: list[Credit] = []
    for digest, share in sources:
        layer = version(store, digest)
        if layer is None:
            found.append(Credit(layer=digest, share=share))
        else:
            inner = credits_of(store, layer.config)
            found += rules.through(digest, layer.config, inner, share)
    return rules.gathered(found)


def shares(store: Store, sources: Sequence[tuple[ResolvedLayer, float]]) -> list[float | None]:
    """Each source's |w dW|^2 over the sum of all; None for all where every update is zero."""
    from lamina.lowrank.maths import squared_norm  # torch: reading credits needs none
    from lamina.stack.compile import stored_factors

    sizes = [
        weight**2 * sum(map(squared_norm, stored_factors(store, layer.digest).values()))
        for layer, weight in sources
    ]
    total = sum(sizes)
    return [size / total if total else None for size in sizes]


def contributors(store: Store, layers: Iterable[ResolvedLayer]) -> tuple[str, ...]:
    """Everybody whose work is in some layers, each once, lowest layer first."""
    configs = [layer.config for layer in layers]
    return rules.contributors(configs, [c for each in configs for c in credits_of(store, each)])


def to_json(store: Store, layer: ResolvedLayer) -> dict[str, Any]:
    """A layer with its author and whose work is in it, for certificates and --json."""
    return {
        "layer": layer.digest,
        "name": layer.config.name,
        "author": layer.config.author,
        "licence": layer.config.licence,
        "credits": [c.model_dump(mode="json") for c in credits_of(store, layer.config)],
    }
