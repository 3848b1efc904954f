"""What is worth seeing of stacks: every name at a glance, and one stack layer by layer."""

from collections.abc import Mapping
from typing import Any

from lamina.core.digest import Digest, short
from lamina.core.evidence import (
    CERTIFICATE_TYPE,
    COST_TYPE,
    NAMING_TYPE,
    SCORES_TYPE,
    CertificateEvidence,
    CostEvidence,
)
from lamina.core.manifests import IDENTITY, Descriptor
from lamina.core.names import Name, parse_reference
from lamina.exams.report import Cell
from lamina.exams.tasks import Exam
from lamina.flows.bases import facts
from lamina.flows.credit import credits_of
from lamina.flows.evidence import recorded
from lamina.flows.lineage import LayerStatus, Lineage, StackStatus, Version, version_of
from lamina.flows.scoreboard import Records, carried_exams, cells
from lamina.stack.resolve import ResolvedLayer, resolve
from lamina.store.layout import Store


def gallery(store: Store) -> dict[str, Any]:
    """Every base, and the newest version of every name with its layers, state and top result."""
    lineage = Lineage.of(store)
    latest = dict(sorted(lineage.latest.items()))
    stacks = {version.stack for version in latest.values()}
    scored = recorded(store, SCORES_TYPE, stacks)
    named = recorded(store, NAMING_TYPE, stacks)
    bases = {
        (base.annotations or {}).get(IDENTITY, base.digest): name
        for name, base in sorted(store.bases().items(), reverse=True)
    }
    counts: dict[str, int] = {}
    for version in lineage.versions:
        counts[version.name.name] = counts.get(version.name.name, 0) + 1
    layers = {d: store.glance(d) for v in latest.values() for d in v.digests}
    exams = {v.top: carried_exams(store, v.top) for v in latest.values() if v.top is not None}
    found = []
    for name, version in latest.items():
        status = lineage.status(version)
        records = scored.get(version.stack, ())
        own = cells(exams[version.top], records) if version.top is not None else []
        moves = [m for m in named.get(version.stack, ()) if m.get("name") == name]
        identity = store.glance(version.stack).get("base", "")
        found.append(
            {
                "name": name,
                "version": str(version.name),
                "versions": counts[name],
                "stack": version.stack,
                "base": bases.get(identity, identity),
                "fresh": status.fresh,
                "created": moves[-1].get("created") if moves else None,
                "author": moves[-1].get("author") if moves else None,
                "layers": [_glimpse(layer, layers[layer.layer]) for layer in status.layers],
                "result": _first(own),
            }
        )
    return {
        "bases": [_base(store, name, base) for name, base in sorted(store.bases().items())],
        "stacks": found,
    }


def _glimpse(status: LayerStatus, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": status.name, "rank": config.get("rank"), "state": status.state}


def _first(found: list[Cell]) -> dict[str, Any] | None:
    """An accuracy says more to people than a loss."""
    best = sorted(found, key=lambda cell: cell["metric"] == "loss")
    return {**best[0]} if best else None


def _base(store: Store, name: str, base: Descriptor) -> dict[str, Any]:
    known = facts(store, name, base)
    keys = ("name", "identity", "family", "parameters", "dtype", "quantised", "licence", "bytes")
    return {key: known[key] for key in (*keys, "source", "modality")}


def picture(store: Store, text: str) -> dict[str, Any]:
    """One stack: its base and its layers, lowest first, with all that is on record about them.

    `text` is a name, a version, a base or a @digest. States and versions are those of a name.
    Raises UnknownNameError, UsageError, StoreError.
    """
    stack = resolve(store, text, force=True)
    called = [name for name, each in store.bases().items() if each.digest == stack.base.digest]
    lineage = Lineage.of(store)
    version = _named(store, lineage, text, bare=not stack.layers)
    status = lineage.status(version) if version else None
    states = {layer.layer: layer for layer in status.layers} if status else {}
    records = recorded(store, SCORES_TYPE, {stack.digest}).get(stack.digest, ())
    layers = [
        _layer(store, layer)
        | {"state": states[layer.digest].to_json() if layer.digest in states else None}
        | {"results": [_result(e, records) for e in carried_exams(store, layer.digest)]}
        for layer in stack.layers
    ]
    return {
        "name": text,
        "version": str(version.name) if version else None,
        "stack": stack.digest,
        "latest": bool(version and version.latest),
        "fresh": status.fresh if status else None,
        "base": _base(store, called[0] if called else f"@{short(stack.config.base)}", stack.base),
        "layers": layers,
        "versions": _versions(lineage, version, status),
    }


def _named(store: Store, lineage: Lineage, text: str, *, bare: bool) -> Version | None:
    reference = parse_reference(text)
    if bare or not isinstance(reference, Name):
        return None
    return version_of(store, lineage, text)


def _versions(
    lineage: Lineage, version: Version | None, status: StackStatus | None
) -> list[dict[str, Any]]:
    """The versions of the name, newest first."""
    if version is None or status is None:
        return []
    mine = [v for v in lineage.versions if v.name.name == version.name.name]
    return [
        {"version": str(v.name), "stack": v.stack, "latest": v.latest, "layers": len(v.layers)}
        for v in reversed(mine)
    ]


def _result(exam: Exam, records: Records) -> dict[str, Any]:
    """What an exam asks, and what the stack got in it where that is on record."""
    found = cells([exam], records)
    asked = {
        "exam": exam.name,
        "scorer": exam.spec.scorer,
        "questions": exam.spec.rows,
        "withheld": exam.spec.private,
    }
    got = ("metric", "value", "ci", "n")
    return asked | (
        {k: v for k, v in found[0].items() if k in got} if found else dict.fromkeys(got)
    )


def _layer(store: Store, layer: ResolvedLayer) -> dict[str, Any]:
    config = layer.config
    digest: Digest = layer.digest
    costs = store.evidence(digest, COST_TYPE, CostEvidence)
    certificates = store.evidence(digest, CERTIFICATE_TYPE, CertificateEvidence)
    return {
        "layer": digest,
        "weight": layer.weight,
        "bytes": sum(blob.size for blob in layer.manifest.layers),
        "linears": len(config.modules),
        **{
            key: getattr(config, key)
            for key in ("name", "rank", "alpha", "scaling", "parameters", "author", "licence")
        },
        "origin": config.origin,
        "credits": [credit.model_dump(mode="json") for credit in credits_of(store, config)],
        "rehearsal": config.rehearsal,
        "data": config.data.model_dump(mode="json") if config.data else None,
        "recipe": config.recipe.model_dump(mode="json") if config.recipe else None,
        "cost": costs[-1].model_dump(mode="json") if costs else None,
        "certificate": certificates[-1].model_dump(mode="json") if certificates else None,
    }
