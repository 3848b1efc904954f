"""A proposed layer's weights: strange ones, copies of others' work, and what gets in their way."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lamina.core.credits import people
from lamina.core.digest import Digest, short
from lamina.core.errors import LaminaError, LayerError
from lamina.core.manifests import LAYER_TYPE, MANIFEST_TYPE
from lamina.core.report import Reporter
from lamina.flows.credit import credits_of
from lamina.flows.descent import kin, version
from lamina.lowrank.attach import layer_faults
from lamina.lowrank.maths import Factors, LayerFactors, inner_product, squared_norm
from lamina.stack.anomaly import LayerFacts, Oddity, facts_of, oddities
from lamina.stack.compile import base_linears, layer_factors, stored_factors
from lamina.stack.interference import Interference, interference
from lamina.stack.resolve import ResolvedLayer, ResolvedStack
from lamina.store.layout import Store

SAME = 0.95
"""Cosine between two updates of one linear, up to sign, from which one is a copy of the other: two
trainings on the same rows from other seeds stay far below."""
COPIED = 0.5
"""Share of a layer's |dW|^2 in such linears from which it is a copy."""
COMPARED = 64
"""Most layers that a new one is compared with, the newest first."""
AGAINST = -0.3
"""Cosine with a layer beneath below which the new one is said to undo it."""


@dataclass(frozen=True)
class Inspection:
    """What the weights of a layer say."""

    facts: LayerFacts
    odd: tuple[Oddity, ...]
    beneath: tuple[tuple[str, float, float], ...]
    """(name, cosine, share of its update in the layer's spaces) of each layer beneath."""
    compared: int
    """Other layers that it was compared with."""

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        largest, most = self.facts.worst("relative"), self.facts.worst("share")
        return {
            "linears": len(self.facts.modules),
            "norm": self.facts.norm,
            "effective_rank": round(self.facts.effective_rank, 2),
            "largest_against_weights": {"linear": largest.module, "share": largest.relative},
            "largest_share": {"linear": most.module, "share": most.share},
            "embeddings_touched": False,
            "beneath": [
                {"layer": name, "cosine": cosine, "overlap": overlap}
                for name, cosine, overlap in self.beneath
            ],
            "compared_with": self.compared,
        }


def inspect(store: Store, stack: ResolvedStack, reporter: Reporter) -> Inspection:
    """Look at the top layer of a stack, beside its base, the layers beneath and all others here.

    Raises LayerError for a payload that is no layer of this base.
    """
    layer = stack.layers[-1]
    reporter.event({"event": "examining", "text": f"looking at the weights of {stack.label}"})
    factors = stored_factors(store, layer.digest)
    linears = base_linears(store, stack, torch.bfloat16)
    if faults := layer_faults(factors, linears):
        raise LayerError(f"{layer.config.name} does not fit its base", faults=faults)
    facts = facts_of(factors, linears)
    others = list(_others(store, stack))
    sisters = [math.sqrt(sum(map(squared_norm, theirs.values()))) for _, theirs in others]
    odd = [*oddities(facts, layer.config, factors, sisters)]
    odd += _copies(store, layer, factors, facts.norm, zip(others, sisters, strict=True))
    found = [
        (below.config.name, interference(factors, layer_factors(store, below)))
        for below in stack.layers[:-1]
    ]
    odd += _undoing(found)
    return Inspection(
        facts=facts,
        odd=tuple(odd),
        beneath=tuple((name, each.cosine, each.overlap_b) for name, each in found),
        compared=len(others),
    )


_Other = tuple[ResolvedLayer, LayerFactors]


def _others(store: Store, stack: ResolvedStack) -> Iterator[_Other]:
    """Other layers over the same base, the newest first; what cannot be read is left out."""
    own = stack.layers[-1].digest
    count = 0
    for digest in _known_layers(store):
        other = None if digest == own else version(store, digest)
        if other is None or other.config.base != stack.config.base:
            continue
        try:
            yield other, stored_factors(store, digest)
        except LaminaError:  # `lamina verify` tells of it
            continue
        count += 1
        if count == COMPARED:
            return


def _known_layers(store: Store) -> Iterable[Digest]:
    found: dict[Digest, None] = {}
    for entry in reversed(store.entries()):
        if entry.artifactType == LAYER_TYPE:
            found.setdefault(entry.digest)
        elif entry.artifactType is not None and entry.ref_name is not None:
            carried = store.manifest(entry.digest).layers
            found |= {b.digest: None for b in reversed(carried) if b.mediaType == MANIFEST_TYPE}
    return found


def _copies(
    store: Store,
    layer: ResolvedLayer,
    factors: LayerFactors,
    norm: float,
    others: Iterable[tuple[_Other, float]],
) -> list[Oddity]:
    """Other layers that this one is, or nearly is, and does not credit."""
    credited = {credit.layer for credit in credits_of(store, layer.config)} | kin(store, layer)
    found = []
    for (other, theirs), size in others:
        if other.digest in credited or not norm or not size:
            continue
        copied = _copied(factors, theirs) / norm**2
        if copied < COPIED:
            continue
        who = other.config.author or "somebody unnamed"
        mine = set(people(layer.config.author)) >= set(people(other.config.author))
        found.append(
            Oddity(
                not (mine and other.config.author),
                f"{copied:.0%} of its update is that of {other.config.name} "
                f"@{short(other.digest)} by {who}, whom it does not credit",
            )
        )
    return found


def _copied(a: LayerFactors, b: LayerFactors) -> float:
    """The sum of |dW_a|^2 over the linears where it is b's, larger or smaller or negated."""
    found = 0.0
    for module in sorted(set(a) & set(b)):
        mine, theirs = a[module], b[module]
        if _fit(mine, theirs):
            squared, other = squared_norm(mine), squared_norm(theirs)
            inner = inner_product(mine, theirs)
            found += squared if inner**2 >= SAME**2 * squared * other > 0 else 0.0
    return found


def _fit(a: Factors, b: Factors) -> bool:
    return (a.a_RI.shape[1], a.b_OR.shape[0]) == (b.a_RI.shape[1], b.b_OR.shape[0])


def _undoing(found: Sequence[tuple[str, Interference]]) -> list[Oddity]:
    return [
        Oddity(
            False,
            f"it pulls against {name} beneath it (cosine {each.cosine:+.2f}): see lamina conflicts",
        )
        for name, each in found
        if each.cosine < AGAINST
    ]
