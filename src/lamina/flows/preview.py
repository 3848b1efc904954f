"""What is known of an object before it lands: from manifests, configs and evidence, no payload.

Everything here was said by somebody else. Text is stripped of what could drive a terminal, and
results are shown as claims.
"""

from collections.abc import Sequence
from typing import Any

from lamina.core.credits import contributors
from lamina.core.digest import short
from lamina.core.errors import UnknownNameError
from lamina.core.evidence import COST_TYPE, SCORES_TYPE, CostEvidence, ScoresEvidence
from lamina.core.licences import Stated, combine
from lamina.core.manifests import BASE_TYPE, LAYER_TYPE, STACK_TYPE, BaseConfig, LayerConfig
from lamina.flows.inventory import licence_lines
from lamina.flows.licensing import works_of
from lamina.flows.trust import signature_lines, verdict_lines
from lamina.share.incoming import Incoming
from lamina.share.policy import Verdict
from lamina.share.signature import Finding
from lamina.store.layout import Store

KINDS = {BASE_TYPE: "base", LAYER_TYPE: "layer", STACK_TYPE: "stack"}


def preview(store: Store, incoming: Incoming, label: str) -> dict[str, Any]:
    """What a place offers, for --json and `render`."""
    missing = [blob for blob in incoming.payload if not store.has(blob.digest)]
    return {
        "from": label,
        "kind": KINDS[incoming.kind],
        "digest": incoming.root.digest,
        "base": _base(store, incoming),
        "layers": [_layer(store, incoming, digest) for digest in incoming.layers],
        "contributors": _contributors(incoming),
        "licences": _licences(incoming),
        "exams": _scores(incoming),
        "bytes": sum(blob.size for blob in incoming.payload),
        "bytes_missing": sum(blob.size for blob in missing),
        "evidence": len(incoming.evidence),
        "left_out": [clean(text) for text in incoming.left_out],
    }


def _base(store: Store, incoming: Incoming) -> dict[str, Any]:
    stated = incoming.stands_on()
    config = stated[0].base if stated else None
    if incoming.kind == BASE_TYPE:
        config = incoming.config(incoming.root.digest, BaseConfig)
    try:
        store.find_base(incoming.base)
        at_hand = True
    except UnknownNameError:
        at_hand = False
    return {
        "identity": incoming.base,
        "at_hand": at_hand,
        "name": clean(stated[0].name) if stated and stated[0].name else None,
        "source": clean(stated[0].source) if stated and stated[0].source else None,
        "family": clean(config.family) if config else None,
        "parameters": config.parameters if config else None,
        "licence": clean(config.licence) if config and config.licence else None,
    }


def _layer(store: Store, incoming: Incoming, digest: str) -> dict[str, Any]:
    config = incoming.config(digest, LayerConfig)
    costs = _in_order(incoming, digest, COST_TYPE, CostEvidence)
    return {
        "layer": digest,
        "name": clean(config.name),
        "author": clean(config.author) if config.author else None,
        "origin": config.origin,
        "supersedes": config.supersedes,
        "sources": [item.layer for item in config.sources],
        "licence": clean(config.licence) if config.licence else None,
        "data_licence": clean(config.data.licence) if config.data and config.data.licence else None,
        "rows": config.data.rows if config.data else None,
        "rank": config.rank,
        "parameters": config.parameters,
        "rehearsal": config.rehearsal,
        "exams": [
            {"name": clean(exam.name), "questions": exam.rows, "private": exam.private}
            for exam in config.exams
        ],
        "minutes": costs[-1].seconds / 60 if costs else None,
        "bytes": sum(blob.size for blob in incoming.parsed[digest].layers),
        "at_hand": store.has(digest),
    }


def _configs(incoming: Incoming) -> list[LayerConfig]:
    return [incoming.config(digest, LayerConfig) for digest in incoming.layers]


def _contributors(incoming: Incoming) -> list[str]:
    """Everybody whose work is in it, as its layers say."""
    configs = _configs(incoming)
    credits = [credit for config in configs for credit in config.credits or ()]
    return [clean(name) for name in contributors(configs, credits)]


def _licences(incoming: Incoming) -> dict[str, Any]:
    """What its layers and the base, as far as that is stated, ask together."""
    works = works_of([(config, config.credits or ()) for config in _configs(incoming)])
    for stated in incoming.stands_on()[:1]:
        works.insert(0, Stated("base", stated.name or "(unnamed)", stated.base.licence))
    found = combine(works, "share").to_json()
    return found | {
        "expression": clean(found["expression"]) if found["expression"] else None,
        "obligations": [clean(text, 500) for text in found["obligations"]],
        "problems": [each | {"text": clean(each["text"], 500)} for each in found["problems"]],
    }


def _scores(incoming: Incoming) -> list[dict[str, Any]]:
    """Results that are claimed for the stack itself, the newest of each exam."""
    names = {
        exam.items: (clean(exam.name), clean(config.name))
        for config in (incoming.config(d, LayerConfig) for d in incoming.layers)
        for exam in config.exams
    }
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for record in _in_order(incoming, incoming.root.digest, SCORES_TYPE, ScoresEvidence):
        weight = sum(item[1] for item in record.items)
        if not weight:
            continue
        exam, layer = names.get(record.exam_digest, (short(record.exam_digest), ""))
        found[record.exam_digest, record.scorer] = {
            "exam": exam,
            "layer": layer,
            "scorer": record.scorer,
            "value": sum(item[0] for item in record.items) / weight,
            "n": len(record.items),
            "created": clean(record.created),
        }
    return list(found.values())


def _in_order(incoming: Incoming, digest: str, artifact_type: str, kind: type[Any]) -> list[Any]:
    """Evidence of one type about an object, oldest first."""
    found = incoming.readable(digest, artifact_type, kind)
    return sorted(found, key=lambda record: str(record.created))


def clean(text: str, most: int = 200) -> str:
    """Somebody else's text on one line, without what could drive a terminal."""
    plain = "".join(c if c.isprintable() else "?" for c in text)
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def render(shown: dict[str, Any]) -> str:
    """`preview` for people, the top layer first, as a stack lies."""
    base = shown["base"]
    lines = [f"{shown['from']} is {shown['kind']} @{short(shown['digest'])}"]
    lines += [line for layer in reversed(shown["layers"]) for line in _layer_lines(layer)]
    where = "at hand" if base["at_hand"] else f"from {base['source'] or 'a place not stated'}"
    known = [base["name"], base["family"], f"licence {base['licence'] or 'not stated'}", where]
    lines.append(f"  base @{short(base['identity'])}: " + ", ".join(k for k in known if k))
    if shown["contributors"]:
        lines.append(f"  work of {', '.join(shown['contributors'])}")
    lines += [f"  {line}" for line in licence_lines(shown["licences"])]
    for score in shown["exams"]:
        of = f" of {score['layer']}" if score["layer"] else ""
        lines.append(
            f"  claimed: {score['exam']}{of}, {score['scorer']} {score['value']:.4f}, "
            f"n = {score['n']}"
        )
    lines += signature_lines([Finding(**each) for each in shown.get("signatures", ())])
    lines += verdict_lines(Verdict(**shown["policy"]) if shown.get("policy") else None)
    lines += [f"  left out: {text}" for text in shown["left_out"][:5]]
    lines.append(f"  {_size(shown['bytes_missing'])} of {_size(shown['bytes'])} to move")
    return "\n".join(lines)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def _layer_lines(layer: dict[str, Any]) -> Sequence[str]:
    who = f" by {layer['author']}" if layer["author"] else ""
    here = ", at hand" if layer["at_hand"] else ""
    learned = f"{layer['rows']} rows" if layer["rows"] is not None else "rows not stated"
    took = f", {layer['minutes']:.1f} minutes" if layer["minutes"] is not None else ""
    exams = ", ".join(
        f"{exam['name']} ({exam['questions']}{', withheld' if exam['private'] else ''})"
        for exam in layer["exams"]
    )
    lines = [
        f"  layer {layer['name']} @{short(layer['layer'])}{who}{here}",
        f"    {layer['origin']}, rank {layer['rank']}, {_size(layer['bytes'])}, "
        f"from {learned}{took}; licence {layer['licence'] or 'not stated'}, "
        f"of the data {layer['data_licence'] or 'not stated'}",
    ]
    return [*lines, f"    exams: {exams}"] if exams else lines
