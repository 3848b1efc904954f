"""Proposals that no honest contributor makes."""

from pathlib import Path

import torch

from lamina.core.evidence import PROPOSAL_TYPE
from lamina.core.manifests import LayerConfig, StackedLayer
from lamina.core.names import Name
from lamina.core.proposals import ProposalEvidence
from lamina.flows import landing
from lamina.lowrank import codec
from lamina.lowrank.maths import Factors
from lamina.share import archive
from lamina.share.parcel import parcel_of
from lamina.stack.compile import stored_factors
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from lamina.store.refs import ANYTHING

ADAPTER = (codec.CONFIG_FILE, codec.WEIGHTS_FILE)


def put(home: Path, called: str, like: str, factors=None, **changes) -> str:
    """Name a stack whose top is `like`'s, with other factors and another config. Its digest."""
    store = Store.open(home)
    stack = resolve(store, like)
    top = stack.layers[-1]
    config: LayerConfig = top.config.model_copy(update=changes)
    factors = factors or stored_factors(store, top.digest)
    adapter = landing.adapter_blobs(
        store,
        factors,
        rank=config.rank,
        alpha=config.alpha,
        scaling=config.scaling,
        target_modules=config.modules,
        base=config.base,
    )
    others = [blob for blob in top.manifest.layers if blob.title not in ADAPTER]
    layer = store.put_layer(config, [*adapter, *others])
    whole = store.put_stack(config.base, (*config.parents, StackedLayer(layer=layer.digest)))
    store.move(called, whole, expected=ANYTHING)
    return whole.digest


def factors_of(home: Path, name: str) -> dict[str, Factors]:
    """Of the top layer."""
    store = Store.open(home)
    return stored_factors(store, resolve(store, name).layers[-1].digest)


def turned(factors: dict[str, Factors]) -> dict[str, Factors]:
    """The same updates by other factors: B Q and Q^T A for a random rotation Q."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for name, each in factors.items():
        q_RR, _ = torch.linalg.qr(torch.randn(each.rank, each.rank, generator=generator))
        found[name] = Factors(q_RR.T @ each.a_RI, each.b_OR @ q_RR, each.scale)
    return found


def times(factors: dict[str, Factors], by: float) -> dict[str, Factors]:
    """Every B larger."""
    return {name: Factors(f.a_RI, f.b_OR * by, f.scale) for name, f in factors.items()}


def boast(home: Path, name: str, path: Path, by: float) -> None:
    """Propose a stack with losses that are `by` times what they are."""
    store = Store.open(home)
    stack = store.resolve(Name(name))
    (proposal,) = store.evidence(stack.digest, PROPOSAL_TYPE, ProposalEvidence)
    claims = tuple(c.model_copy(update={"value": c.value * by}) for c in proposal.claims)
    for entry in store.referrers(stack.digest):
        store.remove_root(entry.digest)
    store.put_evidence(PROPOSAL_TYPE, proposal.model_copy(update={"claims": claims}), stack)
    layers = resolve(store, name).config.layers
    parcel = parcel_of(store, stack.digest)
    archive.write(path, store, parcel, name, leave_out=[item.layer for item in layers[:-1]])
