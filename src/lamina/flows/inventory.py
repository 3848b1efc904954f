"""`lamina list`, `show`, `log`: what is in the store. Reads manifests only, never a tensor."""

from typing import Any

from lamina.core.digest import short
from lamina.core.errors import UnknownNameError
from lamina.core.manifests import (
    BASE_TYPE,
    COST_TYPE,
    IDENTITY,
    LAYER_TYPE,
    NAMING_TYPE,
    SCORES_TYPE,
    CostEvidence,
    LayerConfig,
    NamingEvidence,
    ScoresEvidence,
    StackConfig,
)
from lamina.core.names import LATEST, Name, parse_name, parse_reference
from lamina.flows.bases import details
from lamina.flows.bases import render as render_base
from lamina.store.layout import Store
from lamina.store.refs import SUBJECT


def inventory(store: Store) -> dict[str, Any]:
    """Bases and named stacks, the newest version of each."""
    bases = [
        {"name": name, "digest": (base.annotations or {}).get(IDENTITY, base.digest)}
        for name, base in sorted(store.bases().items())
    ]
    stacks = []
    layer_names: dict[str, str] = {}
    for name, tags in sorted(store.names().items()):
        newest = tags.get(LATEST)
        if newest is None:
            continue
        versions = [
            tag
            for tag, target in tags.items()
            if target.digest == newest.digest and Name(name, tag).version
        ]
        config = store.glance(newest.digest)
        layers = [item["layer"] for item in config.get("layers", ())]
        for layer in layers:
            if layer not in layer_names:
                layer_names[layer] = str(store.glance(layer).get("name"))
        stacks.append(
            {
                "name": name,
                "version": max(versions, key=lambda tag: Name(name, tag).version or 0, default=""),
                "versions": sum(Name(name, tag).version is not None for tag in tags),
                "digest": newest.digest,
                "base": config.get("base"),
                "layers": [layer_names[layer] for layer in layers],
            }
        )
    return {"bases": bases, "stacks": stacks}


def describe(store: Store, text: str) -> dict[str, Any]:
    """A base, layer or stack with everything recorded about it."""
    reference = parse_reference(text)
    if isinstance(reference, Name) and reference.name not in store.names():
        if reference.name in store.bases():
            return {"kind": "base", **details(store, reference.name)}
        raise UnknownNameError(f"nothing is called {text!r}", hint="see: lamina list")
    descriptor = store.resolve(reference)
    manifest = store.manifest(descriptor.digest)
    if manifest.artifactType == BASE_TYPE:
        name = next(n for n, b in store.bases().items() if b.digest == descriptor.digest)
        return {"kind": "base", **details(store, name)}
    if manifest.artifactType == LAYER_TYPE:
        return {"kind": "layer", **_layer(store, descriptor.digest)}
    config = store.config(manifest, StackConfig)
    return {
        "kind": "stack",
        "name": text,
        "stack": descriptor.digest,
        "base": config.base,
        "layers": [{"weight": item.weight, **_layer(store, item.layer)} for item in config.layers],
        "scores": [
            {
                "exam": record.exam_digest,
                "scorer": record.scorer,
                "n": len(record.items),
                "value": sum(i[0] for i in record.items) / sum(i[1] for i in record.items),
            }
            for record in store.evidence(descriptor.digest, SCORES_TYPE, ScoresEvidence)
        ],
    }


def _layer(store: Store, digest: str) -> dict[str, Any]:
    manifest = store.manifest(digest)
    config = store.config(manifest, LayerConfig)
    costs = store.evidence(digest, COST_TYPE, CostEvidence)
    return {
        "layer": digest,
        **config.model_dump(mode="json"),
        "bytes": sum(blob.size for blob in manifest.layers),
        "cost": costs[-1].model_dump(mode="json") if costs else None,
    }


def render(found: dict[str, Any]) -> str:
    """`describe` for people."""
    if found["kind"] == "base":
        return render_base({k: v for k, v in found.items() if k != "kind"})
    if found["kind"] == "layer":
        return _render_layer(found)
    lines = [f"stack @{short(found['stack'])}  base @{short(found['base'])}"]
    for layer in reversed(found["layers"]):  # the top first, as a stack lies
        lines += ["", _render_layer(layer)]
    for score in found["scores"]:
        lines.append(f"  {score['scorer']:<10} {score['value']:.4f}  n={score['n']}")
    return "\n".join(lines)


def _render_layer(layer: dict[str, Any]) -> str:
    data, recipe, cost = layer["data"], layer["recipe"], layer["cost"]
    who = f" by {layer['author']}" if layer["author"] else ""
    lines = [
        f"layer {layer['name']} @{short(layer['layer'])}{who}",
        f"  rank {layer['rank']}, alpha {layer['alpha']:g} ({layer['scaling']}), "
        f"{len(layer['modules'])} linears, {layer['parameters']:,} parameters, "
        f"{layer['bytes'] / 1e6:.1f} MB",
        f"  stands on {len(layer['parents'])} layers; licence {layer['licence'] or 'not stated'}",
    ]
    if data:
        files = ", ".join(f["name"] for f in data["files"])
        lines.append(f"  learned from {data['rows']} rows, {data['tokens']:,} tokens: {files}")
    if recipe:
        lines.append(
            f"  recipe: lr {recipe['lr']:g}, {recipe['steps']} steps of {recipe['batch_tokens']} "
            f"tokens, seed {recipe['seed']}"
        )
    if cost:
        lines.append(
            f"  took {cost['seconds'] / 60:.1f} minutes, {cost['peak_bytes'] / 1e9:.1f} GB "
            f"({cost['hardware']})"
        )
    for exam in layer["exams"]:
        withheld = " (questions withheld)" if exam["private"] else ""
        lines.append(f"  exam {exam['name']}: {exam['rows']} questions{withheld}")
    return "\n".join(lines)


def history(store: Store, name: str | None) -> list[dict[str, Any]]:
    """Every recorded move of one name, or of all, newest first. Raises UnknownNameError."""
    names = store.names()
    wanted = parse_name(name).name if name else None
    if wanted is not None and wanted not in names:
        raise UnknownNameError(f"nothing is called {wanted!r}", hint="see: lamina list")
    recorded = {(entry.annotations or {}).get(SUBJECT) for entry in store.entries()}
    moves = []
    for each, tags in names.items():
        if wanted is not None and each != wanted:
            continue
        for tag, target in tags.items():
            version = Name(each, tag).version
            if version is not None:
                known = target.digest in recorded
                moves.append(_move(store, each, version, target.digest, recorded=known))
    return sorted(moves, key=lambda m: (m["created"] or "", m["version"]), reverse=True)


def _move(store: Store, name: str, version: int, stack: str, *, recorded: bool) -> dict[str, Any]:
    records = [
        r
        for r in (store.evidence(stack, NAMING_TYPE, NamingEvidence) if recorded else ())
        if r.name == name and r.version == version
    ]
    record = records[-1] if records else None
    return {
        "name": name,
        "version": version,
        "stack": stack,
        "created": record.created if record else None,
        "previous": record.previous if record else None,
        "passed": record.verdict.get("passed") if record else None,
        "override": record.override if record else None,
        "author": record.author if record else None,
    }


def render_history(moves: list[dict[str, Any]]) -> str:
    """`history` for people."""
    if not moves:
        return "no name has been given yet"
    lines = []
    for move in moves:
        gate = "gate passed" if move["passed"] else "gate overridden"
        gate += f": {move['override']}" if move["override"] else ""
        who = f" by {move['author']}" if move["author"] else ""
        lines.append(
            f"{move['name']}:v{move['version']}  @{short(move['stack'])}  "
            f"{move['created'] or '?'}{who}  {gate if move['passed'] is not None else ''}".rstrip()
        )
    return "\n".join(lines)
