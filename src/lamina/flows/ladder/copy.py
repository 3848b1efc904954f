"""Rung 1: the factors as they are, over the new parents (PortLLM, arXiv:2410.10870)."""

from collections.abc import Mapping, Sequence
from typing import Any

from lamina.core.manifests import Descriptor, LayerConfig
from lamina.flows.credit import of_sources
from lamina.flows.ladder.rung import Move, Moved
from lamina.flows.landing import adapter_blobs, land
from lamina.lowrank import codec
from lamina.lowrank.maths import LayerFactors
from lamina.stack.compile import stored_factors

_ADAPTER = (codec.CONFIG_FILE, codec.WEIGHTS_FILE)


def copy(move: Move) -> Moved | str:
    """Costs nothing but the examination."""
    if not move.same_shapes:
        return "the bases differ in shape"
    if move.old.config.base == move.onto.config.base:
        blobs = move.layer.manifest.layers  # the very same bytes
        return landed(move, carried_config(move, {"origin": "carried"}), blobs)
    return put_over(move, stored_factors(move.store, move.layer.digest))


def put_over(move: Move, factors: LayerFactors) -> Moved:
    """Land factors over the new parents, with all else that the layer carries."""
    config = carried_config(move, {"origin": "carried"})
    adapter = adapter_blobs(
        move.store,
        factors,
        rank=config.rank,
        alpha=config.alpha,
        scaling=config.scaling,
        target_modules=config.modules,
        base=config.base,
    )
    others = [blob for blob in move.layer.manifest.layers if blob.title not in _ADAPTER]
    return landed(move, config, [*adapter, *others])


def landed(move: Move, config: LayerConfig, blobs: Sequence[Descriptor]) -> Moved:
    """Store the layer over its new parents, with the weight that it had."""
    layer, stack = land(move.store, config, blobs, label=config.name, weight=move.layer.weight)
    return Moved(layer, stack)


def carried_config(move: Move, changes: Mapping[str, Any]) -> LayerConfig:
    """The layer's config over its new parents."""
    return move.layer.config.model_copy(
        update={
            "base": move.onto.config.base,
            "parents": move.onto.config.layers,
            **move.lineage,
            "credits": of_sources(move.store, [(move.layer.digest, 1.0)]),
            **changes,
        }
    )
