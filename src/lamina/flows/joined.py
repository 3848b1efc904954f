"""What a layer that was computed from others carries of theirs, beside its factors."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lamina.core.manifests import (
    Credit,
    Descriptor,
    ExamSpec,
    LayerConfig,
    Origin,
    RehearsalSet,
    StackConfig,
    StackedLayer,
)
from lamina.core.names import Name
from lamina.data import seen
from lamina.flows import credit, landing, rehearsal, seen_rows
from lamina.lowrank.maths import LayerFactors
from lamina.stack.resolve import ResolvedLayer, ResolvedStack
from lamina.store.layout import Store

_OUTSIDE = r"(?![^()]*\))"
"""Where no parenthesis is open; licences in parentheses hold no others."""


@dataclass(frozen=True)
class Joined:
    """Exams, rehearsal set, marks of seen rows, licence and authors of several layers."""

    exams: tuple[ExamSpec, ...]
    rehearsal: RehearsalSet | None
    licence: str | None
    """An SPDX expression: all that the layers state holds."""
    author: str | None
    blobs: tuple[Descriptor, ...]
    """Questions, rehearsal rows and marks; what is withheld stays withheld."""


def joined(store: Store, layers: Sequence[ResolvedLayer]) -> Joined:
    """Everything that layers carry, as one layer carries it. Stores the blobs."""
    exams, questions = landing.exams_of(store, layers)
    travelling = rehearsal.put(store, rehearsal.of_layers(store, layers))
    marks = _marks(store, layers)
    return Joined(
        exams=exams,
        rehearsal=_rehearsal_set(layers),
        licence=licence_of([layer.config.licence for layer in layers]),
        author=_listed([layer.config.author for layer in layers], ", "),
        blobs=(*questions, *(blob for blob in (travelling, marks) if blob is not None)),
    )


def land_computed(
    store: Store,
    factors: LayerFactors,
    sources: Sequence[tuple[ResolvedLayer, float]],
    *,
    origin: Origin,
    name: Name,
    parents: StackConfig,
    author: str | None,
) -> tuple[Descriptor, ResolvedStack]:
    """Land factors that were computed from layers, as a layer that carries all that they carried.

    `factors` have scale 1; `sources` are layers with the weights they were taken at.
    """
    rank = max(each.rank for each in factors.values())
    adapter = landing.adapter_blobs(
        store,
        factors,
        rank=rank,
        alpha=float(rank),
        scaling="lora",
        target_modules=tuple(factors),
        base=parents.base,
    )
    theirs = joined(store, [layer for layer, _ in sources])
    config = LayerConfig(
        name=name.name,
        base=parents.base,
        parents=parents.layers,
        rank=rank,
        alpha=float(rank),
        scaling="lora",
        modules=tuple(sorted(factors)),
        parameters=sum(each.parameters for each in factors.values()),
        exams=theirs.exams,
        licence=theirs.licence,
        author=author or theirs.author,
        origin=origin,
        sources=tuple(StackedLayer(layer=layer.digest, weight=w) for layer, w in sources),
        credits=_credits(store, sources),
        rehearsal=theirs.rehearsal,
    )
    return landing.land(store, config, [*adapter, *theirs.blobs], label=name.name)


def _credits(store: Store, sources: Sequence[tuple[ResolvedLayer, float]]) -> tuple[Credit, ...]:
    shares = credit.shares(store, sources)
    parts = [(layer.digest, share) for (layer, _), share in zip(sources, shares, strict=True)]
    return credit.of_sources(store, parts)


def _rehearsal_set(layers: Sequence[ResolvedLayer]) -> RehearsalSet | None:
    """What the layers' sets together are: synthesised where any of it is."""
    kinds = {layer.config.rehearsal for layer in layers}
    order: tuple[RehearsalSet, ...] = ("synthesised", "sample", "none")
    return next((kind for kind in order if kind in kinds), None)


def _marks(store: Store, layers: Sequence[ResolvedLayer]) -> Descriptor | None:
    """The marks of seen rows that travel, as one set."""
    found = [layer.manifest.blob(seen_rows.FILE) for layer in layers]
    marks = [seen.unpack(store.read(blob.digest)) for blob in found if blob is not None]
    if not marks:
        return None
    data = seen.pack(frozenset().union(*marks))
    return store.put_bytes(data, seen_rows.TYPE, title=seen_rows.FILE)


def licence_of(stated: Sequence[str | None]) -> str | None:
    """Several licences as one: all that are stated hold, each named once; None where none is."""
    if len({each for each in stated if each}) < 2:
        return _listed(stated, "")
    terms = [term for each in stated if each for term in _terms(each)]
    wrapped = [f"({term})" if " " in term and term[0] != "(" else term for term in terms]
    return _listed(wrapped, " AND ")


def _terms(licence: str) -> list[str]:
    """What an expression joins by AND, outside of parentheses; itself where it is no such list."""
    if re.search(rf" or {_OUTSIDE}", licence, re.IGNORECASE):
        return [licence]
    return re.split(rf" AND {_OUTSIDE}", licence)


def _listed(values: Sequence[str | None], between: str) -> str | None:
    """Distinct values in order; None where nobody states one."""
    return between.join(dict.fromkeys(value for value in values if value)) or None
