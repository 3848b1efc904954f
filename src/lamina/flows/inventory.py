"""`lamina list`, `show`, `log`: what is in the store. Reads manifests only, never a tensor."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from lamina.core.credits import contributors, people, sentence
from lamina.core.digest import short
from lamina.core.errors import UnknownNameError, UsageError
from lamina.core.evidence import (
    CERTIFICATE_TYPE,
    COST_TYPE,
    NAMING_TYPE,
    SCORES_TYPE,
    CertificateEvidence,
    CostEvidence,
    ScoresEvidence,
)
from lamina.core.manifests import BASE_TYPE, IDENTITY, LAYER_TYPE, Credit, LayerConfig, StackConfig
from lamina.core.names import LATEST, Name, parse_name, parse_reference
from lamina.flows.credit import credits_of
from lamina.flows.evidence import recorded
from lamina.flows.trust import Trust, signature_lines, signatures, stack_signatures
from lamina.share.signature import Finding
from lamina.store.layout import Store


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


def travelling_rows(store: Store, text: str) -> str:
    """The rehearsal set of a layer, or of a stack's top layer: JSONL, '' where none travels.

    Raises UnknownNameError, UsageError for a bare base.
    """
    from lamina.flows.rehearsal import FILE  # `list` and `log` start faster without
    from lamina.stack.resolve import resolve

    layers = resolve(store, text).layers
    if not layers:
        raise UsageError(f"{text} is a bare base: no rows travel with it", hint="see: lamina list")
    found = layers[-1].manifest.blob(FILE)
    return store.read(found.digest).decode() if found else ""


def describe(store: Store, text: str, trust: Trust | None = None) -> dict[str, Any]:
    """A base, layer or stack with everything recorded about it; with `trust`, who signed it."""
    reference = parse_reference(text)
    if isinstance(reference, Name) and reference.name not in store.names():
        if reference.name in store.bases():
            return _base(store, reference.name, trust)
        raise UnknownNameError(f"nothing is called {text!r}", hint="see: lamina list")
    descriptor = store.resolve(reference)
    manifest = store.manifest(descriptor.digest)
    if manifest.artifactType == BASE_TYPE:
        name = next(n for n, b in store.bases().items() if b.digest == descriptor.digest)
        return _base(store, name, trust)
    if manifest.artifactType == LAYER_TYPE:
        return {"kind": "layer", **_layer(store, descriptor.digest, trust)}
    config = store.config(manifest, StackConfig)
    return {
        "kind": "stack",
        "name": text,
        "stack": descriptor.digest,
        "base": config.base,
        "layers": [
            {"weight": item.weight, **_layer(store, item.layer, trust)} for item in config.layers
        ],
        "licences": _licences(store, text),
        "scores": [
            {
                "exam": record.exam_digest,
                "scorer": record.scorer,
                "n": len(record.items),
                "value": _value(record),
            }
            for record in store.evidence(descriptor.digest, SCORES_TYPE, ScoresEvidence)
        ],
        **_signed(store, descriptor.digest, trust),
    }


def _licences(store: Store, text: str) -> dict[str, Any] | None:
    """What a stack carries; None where its base is not at hand."""
    from lamina.flows.licensing import licences_of
    from lamina.stack.resolve import resolve

    with contextlib.suppress(UnknownNameError):
        return licences_of(store, resolve(store, text, force=True)).to_json()
    return None


def _value(record: ScoresEvidence) -> float | None:
    """A record's mean; None where it has no weight, as a stranger may write it."""
    weight = sum(item[1] for item in record.items)
    return sum(item[0] for item in record.items) / weight if weight else None


def _base(store: Store, name: str, trust: Trust | None) -> dict[str, Any]:
    from lamina.flows.bases import details

    digest = store.resolve_base(name).digest
    return {"kind": "base", **details(store, name), **_signed(store, digest, trust)}


def _signed(store: Store, digest: str, trust: Trust | None) -> dict[str, Any]:
    """What the object's signatures prove; nothing where nobody asks."""
    if trust is None:
        return {}
    found = signatures(store, trust, digest)
    return {"signatures": [finding.model_dump(mode="json") for finding in found]}


def _layer(store: Store, digest: str, trust: Trust | None) -> dict[str, Any]:
    manifest = store.manifest(digest)
    config = store.config(manifest, LayerConfig)
    costs = store.evidence(digest, COST_TYPE, CostEvidence)
    certificates = store.evidence(digest, CERTIFICATE_TYPE, CertificateEvidence)
    return {
        "layer": digest,
        **config.model_dump(mode="json"),
        "bytes": sum(blob.size for blob in manifest.layers),
        "cost": costs[-1].model_dump(mode="json") if costs else None,
        "certificate": certificates[-1].model_dump(mode="json") if certificates else None,
        "credits": [credit.model_dump(mode="json") for credit in credits_of(store, config)],
        **_signed(store, digest, trust),
    }


def render(found: dict[str, Any]) -> str:
    """`describe` for people."""
    if found["kind"] == "base":
        from lamina.flows.bases import render as render_base

        shown = render_base({k: v for k, v in found.items() if k not in ("kind", "signatures")})
        return "\n".join([shown, *_signature_lines(found)])
    if found["kind"] == "layer":
        return _render_layer(found)
    lines = [f"stack @{short(found['stack'])}  base @{short(found['base'])}"]
    lines += _signature_lines(found)
    for layer in reversed(found["layers"]):  # the top first, as a stack lies
        lines += ["", _render_layer(layer)]
    if found["licences"]:
        lines += ["", *licence_lines(found["licences"])]
    for score in found["scores"]:
        value = "?" if score["value"] is None else f"{score['value']:.4f}"
        lines.append(f"  {score['scorer']:<10} {value}  n={score['n']}")
    return "\n".join(lines)


def _render_layer(layer: dict[str, Any]) -> str:
    data, recipe, cost = layer["data"], layer["recipe"], layer["cost"]
    who = f" by {layer['author']}" if layer["author"] else ""
    credits = [Credit.model_validate(each) for each in layer["credits"]]
    lines = [
        f"layer {layer['name']} @{short(layer['layer'])}{who}",
        f"  rank {layer['rank']}, alpha {layer['alpha']:g} ({layer['scaling']}), "
        f"{len(layer['modules'])} linears, {layer['parameters']:,} parameters, "
        f"{layer['bytes'] / 1e6:.1f} MB",
        f"  stands on {len(layer['parents'])} layers; licence {layer['licence'] or 'not stated'}",
    ]
    lines += [f"  has the work of {sentence(credits)}"] if credits else []
    if data:
        files = ", ".join(f["name"] for f in data["files"])
        lines.append(f"  learned from {data['rows']} rows, {data['tokens']:,} tokens: {files}")
    if recipe:
        lines.append(
            f"  recipe: lr {recipe['lr']:g}, {recipe['steps']} steps of {recipe['batch_tokens']} "
            f"tokens, seed {recipe['seed']}"
            + (f", B's lr {recipe['lr_ratio']:g} times that" if recipe["lr_ratio"] != 1 else "")
        )
        other = ", ".join(f"{name} {rank}" for name, rank in (recipe["ranks"] or {}).items())
        lines += [f"  ranks: {other}"] if other else []
    if cost:
        lines.append(
            f"  took {cost['seconds'] / 60:.1f} minutes, {cost['peak_bytes'] / 1e9:.1f} GB "
            f"({cost['hardware']})"
        )
    if layer["certificate"]:
        lines += certificate_lines(layer["certificate"])
    for exam in layer["exams"]:
        withheld = " (questions withheld)" if exam["private"] else ""
        lines.append(f"  exam {exam['name']}: {exam['rows']} questions{withheld}")
    if layer["rehearsal"]:
        lines.append(f"  rehearsal set: {layer['rehearsal']}")
    lines += _signature_lines(layer)
    return "\n".join(lines)


def licence_lines(found: Mapping[str, Any]) -> list[str]:
    """What licences ask together, for people."""
    lines = [f"licences: {found['expression'] or 'none is stated'} ({found['note']})"]
    lines += [f"  {text}" for text in found["obligations"]]
    for problem in found["problems"]:
        lines.append(f"  {'FORBIDDEN' if problem['forbidden'] else 'look'}: {problem['text']}")
    return lines


def _signature_lines(found: Mapping[str, Any]) -> list[str]:
    return signature_lines([Finding(**each) for each in found.get("signatures", ())])


def certificate_lines(found: Mapping[str, Any]) -> list[str]:
    """What a squash or merge changed, for people, indented as in `render`."""
    left_out = f"{found['discarded']:.1e} of the update left out"
    if found["worst_module"]:
        left_out += f", at most {found['worst_discarded']:.1e} ({found['worst_module']})"
    if found["passes"]:
        left_out += f"; trained for {found['passes']} passes over the rehearsal rows"
    lines = [
        f"  {found['method']}: rank {found['rank']}, was {found['rank_before']}; {left_out}",
        f"  outputs differ by at most {found['logits_difference']:.1e} of the largest, on "
        f"{found['probes']} prompts",
    ]
    for kept in found["exams"]:
        gain = "" if kept["retained"] is None else f"; {kept['retained']:.0%} of the gain kept"
        lines.append(
            f"  {kept['exam']}: {kept['metric']} {kept['after']:.4f}, "
            f"was {kept['before']:.4f}{gain}"
        )
    return lines


def history(store: Store, name: str | None, trust: Trust | None = None) -> list[dict[str, Any]]:
    """Every recorded move of one name, or of all, newest first; with `trust`, who signed each.

    Raises UnknownNameError.
    """
    names = store.names()
    wanted = parse_name(name).name if name else None
    if wanted is not None and wanted not in names:
        raise UnknownNameError(f"nothing is called {wanted!r}", hint="see: lamina list")
    chosen = {each: tags for each, tags in names.items() if wanted in (None, each)}
    stacks = {target.digest for tags in chosen.values() for target in tags.values()}
    records = recorded(store, NAMING_TYPE, stacks)
    signed = {} if trust is None else stack_signatures(store, trust, stacks)
    moves = []
    whose = _Whose(store)
    for each, tags in chosen.items():
        for tag, target in tags.items():
            version = Name(each, tag).version
            if version is not None:
                known = records.get(target.digest, ())
                made = _move(each, version, target.digest, known)
                made["contributors"] = whose.work(target.digest)
                if trust is not None:
                    found = signed.get(target.digest, ())
                    made["signatures"] = [finding.model_dump(mode="json") for finding in found]
                moves.append(made)
    return sorted(moves, key=lambda m: (m["created"] or "", m["version"]), reverse=True)


class _Whose:
    """Whose work is in stacks; a layer that many stacks hold is read once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._layers: dict[str, tuple[str, ...]] = {}

    def work(self, stack: str) -> list[str]:
        """Everybody whose work is in a stack's layers, lowest layer first."""
        layers = [item["layer"] for item in self._store.glance(stack).get("layers", ())]
        return list(dict.fromkeys(name for layer in layers for name in self._layer(layer)))

    def _layer(self, digest: str) -> tuple[str, ...]:
        if digest not in self._layers:
            self._layers[digest] = self._read(digest)
        return self._layers[digest]

    def _read(self, digest: str) -> tuple[str, ...]:
        found = self._store.glance(digest)
        if "credits" not in found and (found.get("sources") or found.get("supersedes")):
            config = self._store.config(self._store.manifest(digest), LayerConfig)
            return contributors([config], credits_of(self._store, config))
        authors = [found.get("author"), *(each.get("author") for each in found.get("credits", ()))]
        return tuple(dict.fromkeys(name for author in authors for name in people(author)))


def _move(
    name: str, version: int, stack: str, records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    mine = [r for r in records if (r.get("name"), r.get("version")) == (name, version)]
    record = mine[-1] if mine else {}
    return {
        "name": name,
        "version": version,
        "stack": stack,
        "created": record.get("created"),
        "previous": record.get("previous"),
        "passed": record.get("verdict", {}).get("passed"),
        "override": record.get("override"),
        "despite": record.get("despite"),
        "author": record.get("author"),
    }


def render_history(moves: list[dict[str, Any]]) -> str:
    """`history` for people."""
    if not moves:
        return "no name has been given yet"
    lines = []
    for move in moves:
        gate = "gate passed" if move["passed"] else "gate overridden"
        gate += f": {move['override']}" if move["override"] else ""
        gate += f"; its review refused it: {move['despite']}" if move["despite"] else ""
        who = f" by {move['author']}" if move["author"] else ""
        lines.append(
            f"{move['name']}:v{move['version']}  @{short(move['stack'])}  "
            f"{move['created'] or '?'}{who}  {gate if move['passed'] is not None else ''}".rstrip()
        )
        if set(move["contributors"]) - {move["author"]}:
            lines.append(f"  work of {', '.join(move['contributors'])}")
        lines += _signature_lines(move)
    return "\n".join(lines)
