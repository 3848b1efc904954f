"""What a layer comes from, through updates and carries: its kin, its trainings, what they took."""

from lamina.core.digest import Digest
from lamina.core.errors import LaminaError
from lamina.core.evidence import COST_TYPE, CostEvidence
from lamina.core.manifests import LayerConfig
from lamina.stack.resolve import ResolvedLayer
from lamina.store.layout import Store


def version(store: Store, layer: str | None) -> ResolvedLayer | None:
    """A layer by digest, by itself; None where the store does not have it."""
    if layer is None:
        return None
    try:
        manifest = store.manifest(layer)
        return ResolvedLayer(layer, 1.0, store.config(manifest, LayerConfig), manifest)
    except LaminaError:
        return None


def older(config: LayerConfig) -> Digest | None:
    """The layer that a layer was updated from: the version before it, or what it branched off."""
    if config.origin != "updated":
        return None
    return config.supersedes or (config.sources[0].layer if config.sources else None)


def kin(store: Store, layer: ResolvedLayer) -> frozenset[Digest]:
    """A layer and what it is another version of, as far as the store knows: older versions, what
    it branched off, what it was carried from. Adding two of them would add what they share twice.
    """
    found: set[Digest] = set()
    waiting = [layer.digest]
    while waiting:
        digest = waiting.pop()
        each = None if digest in found else version(store, digest)
        found.add(digest)
        if each is not None:
            computed = each.config.origin in ("squashed", "merged")
            sources = () if computed else each.config.sources
            older_one = each.config.supersedes
            waiting += [source.layer for source in sources]
            waiting += [older_one] if older_one else []
    return frozenset(found)


def trainings(store: Store, layer: ResolvedLayer) -> tuple[tuple[ResolvedLayer, ...], bool]:
    """The layers whose trainings made this one, newest first; and whether these are all.

    An update stands on what it updated. A layer over other parents than it was trained over
    (carried, distilled, trained again) has learned what its source had. Not all are known where a
    version lives elsewhere, or factors were imported or computed from several layers.
    """
    found: list[ResolvedLayer] = []
    each: ResolvedLayer | None = layer
    while each is not None:
        config = each.config
        if config.origin in ("imported", "squashed", "merged"):
            return tuple(found), False
        if config.origin == "updated":
            found.append(each)
            each = version(store, older(config))
        elif config.sources:
            each = version(store, config.sources[0].layer)
        else:
            return (*found, each), True
    return tuple(found), False


def cost_of(store: Store, layer: ResolvedLayer) -> CostEvidence | None:
    """What all trainings of a layer took together; None unless every one is on record.

    Seconds, steps and tokens are sums; the rest is the newest training's.
    """
    layers, whole = trainings(store, layer)
    costs = [store.evidence(each.digest, COST_TYPE, CostEvidence) for each in layers]
    if not whole or not all(costs):
        return None
    newest = [found[-1] for found in costs]
    return newest[0].model_copy(
        update={
            "seconds": sum(cost.seconds for cost in newest),
            "steps": sum(cost.steps for cost in newest),
            "tokens": sum(cost.tokens for cost in newest),
        }
    )
