"""A model card: what a stack is, who made it, how it did, what it cost, what one may do with it.

Made of manifests and evidence alone, so that the same stack and the same records give the same
bytes, and nothing is claimed that is not on record. `flows.card` gathers the facts; this module
only writes them down. Words of other people go through `card_text`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lamina.core.digest import short
from lamina.core.imported import ImportRecord
from lamina.core.manifests import Credit
from lamina.exams.report import LEGEND, MARKS, Cell, interval_text, value_text
from lamina.share import card_use
from lamina.share.card_facts import CardLayer, Facts, Form, hub_name
from lamina.share.card_metadata import front_matter
from lamina.share.card_text import cell, code, one_line, table

FILE = "README.md"
"""What the Hub shows of a repository."""
_IDENTITY = {
    False: "tensors, architecture, tokenizer, template",
    True: "its parts' tensors and architectures, noise schedule and vocabulary",
}
_PLACES = {False: "tokens", True: "places of latents"}
"""What a step's work is counted in."""
_SAID = {False: "logits differ", True: "what it says of noise differs"}
_SENTENCE = 1000
"""Longest obligation, in characters: it names whose it is."""
_PLAIN = re.compile(r"(?!.*(?:www\.|://))[\w ,.;:()'’-]*")
"""Prose without anything that Markdown takes for more."""


def render(facts: Facts, form: Form) -> str:
    """The card of a stack as the files of `form` beside it, as Markdown with YAML metadata."""
    parts = [
        _head(facts, form),
        _what(facts),
        _lineage(facts),
        _exams(facts),
        _cost(facts),
        _licences(facts),
        card_use.section(facts, form),
        _limits(facts),
    ]
    body = "\n\n".join("\n".join(lines) for lines in parts)
    return f"{front_matter(facts, form)}\n{body}\n"


def _head(facts: Facts, form: Form) -> list[str]:
    base = facts.base.config
    on = hub_name(facts.base.source)
    named = code(on) if on else f"a {code(base.family)} model of {base.parameters:,} parameters"
    count = len(facts.layers)
    layers = "no layer" if not count else "one layer" if count == 1 else f"{count} layers"
    return [
        f"# {code(facts.label)}",
        "",
        f"A stack of {layers} over {named}, here as {card_use.WHAT[form]}. Made with lamina; this "
        "card was written from the stack's manifests and from what is on record about it, and from "
        "nothing else.",
    ]


def _what(facts: Facts) -> list[str]:
    base = facts.base.config
    packed = f", linears stored in {base.quantised}" if base.quantised else ""
    source = f"from {code(facts.base.source)}" if facts.base.source else "source not on record"
    lines = [
        "## What it is",
        "",
        f"- stack `{facts.stack}`",
        f"- base `{base.identity}` (a digest of {_IDENTITY[facts.draws]}): "
        f"{code(base.family)}, {base.parameters:,} parameters, {code(base.dtype)}{packed}; "
        f"{source}",
    ]
    rows = [
        [
            str(number),
            cell(layer.config.name),
            cell(layer.config.author) if layer.config.author else "not stated",
            layer.config.origin,
            str(layer.config.rank),
            f"{layer.config.parameters:,}",
            f"{layer.weight:g}",
            f"`{layer.digest}`",
        ]
        for number, layer in enumerate(facts.layers, start=1)
    ]
    if not rows:
        return [*lines, "- no layer: the base as it is"]
    head = ["#", "layer", "made by", "how", "rank", "parameters", "weight", "digest"]
    return [*lines, "", "Layers, the lowest first:", "", *table(head, rows)]


def _lineage(facts: Facts) -> list[str]:
    lines = ["## Lineage", ""]
    for number, layer in enumerate(facts.layers, start=1):
        story = "; ".join(_story(layer, draws=facts.draws))
        lines.append(f"{number}. {code(layer.config.name)}: {story}.")
    for move in facts.namings:
        gate = "the gate passed" if move.verdict.get("passed") else "the gate did not pass"
        why = f", overridden: {code(move.override)}" if move.override else ""
        who = f" by {code(move.author)}" if move.author else ""
        named = code(f"{move.name}:v{move.version}")
        lines.append(f"- named {named} on {code(move.created)}{who}: {gate}{why}")
    return lines if len(lines) > 2 else [*lines, "No layer, hence no lineage."]


def _story(layer: CardLayer, *, draws: bool) -> list[str]:
    """How a layer came to be, a clause each; Markdown."""
    config, data, recipe = layer.config, layer.config.data, layer.config.recipe
    said = [f"{config.origin} over {_count(len(config.parents), 'layer')}"]
    if data is not None:
        names = ", ".join(code(file.name) for file in data.files)
        counted = f"{data.tokens:,} tokens, {data.supervised_tokens:,} of them supervised"
        rows = (
            _count(data.rows, "captioned image")
            if draws
            else f"{_count(data.rows, 'row')} ({counted})"
        )
        said.append(f"from {rows} of {names}")
    elif not config.sources:
        said.append("data not on record")
    if config.imported is not None:
        said += _imported(config.imported)
    if recipe is not None:
        said.append(
            f"rank {recipe.rank}, learning rate {recipe.lr:g}, {recipe.steps or '?'} steps of "
            f"{recipe.batch_tokens} {_PLACES[draws]}, seed {recipe.seed}"
        )
    if layer.credits:
        said.append("in it is the work of " + ", ".join(map(_credited, layer.credits)))
    elif config.sources:
        said.append("from " + ", ".join(f"`@{short(item.layer)}`" for item in config.sources))
    if config.supersedes:
        said.append(f"a new version of `@{short(config.supersedes)}`")
    if layer.carried is not None:
        said.append(
            f"carried by {layer.carried.rung} from the stack `@{short(layer.carried.source_stack)}`"
        )
    if layer.certificate is not None:
        found = layer.certificate
        said.append(
            f"{code(found.method)} to rank {found.rank} from {found.rank_before}: "
            f"{found.discarded:.1e} of the update left out, {_SAID[draws]} by at most "
            f"{found.logits_difference:.1e}"
        )
    return said


def _imported(record: ImportRecord) -> Iterator[str]:
    """Where an imported layer comes from, and what was lost on the way."""
    files = ", ".join(code(file.name) for file in record.files)
    made_on = f", made on {code(record.made_on)}" if record.made_on else ""
    yield f"taken from another tool's files ({record.kind}: {files}){made_on}"
    if record.error is not None:
        yield f"{record.error:.1e} of the difference was lost, as no low-rank layer can hold it"
    if record.left_out:
        yield f"{_count(len(record.left_out), 'tensor')} that differ were left out"


def _credited(credit: Credit) -> str:
    """Whose work it is, and how much of the update where the weights can tell."""
    who = code(credit.author) if credit.author else "somebody who is not stated"
    share = "" if credit.share is None else f", {credit.share:.0%}"
    named = code(credit.name) if credit.name else "a layer"
    return f"{who} ({named} `@{short(credit.layer)}`{share})"


def _exams(facts: Facts) -> list[str]:
    lines = ["## Exams", ""]
    if not facts.results["cells"]:
        return [*lines, "No result is on record for this stack or those beneath it."]
    cells = {(found["stack"], found["exam"]): found for found in facts.results["cells"]}
    shown = [e for e in facts.results["exams"] if any(exam == e for _, exam in cells)]
    head = ["stack", *(_exam_title(e, cells.values(), facts.withheld) for e in shown)]
    rows = [
        [cell(stack), *(_result(cells.get((stack, exam))) for exam in shown)]
        for stack in facts.results["stacks"]
        if any((stack, exam) in cells for exam in shown)
    ]
    return [
        *lines,
        "Each row adds one layer. Exams travel with the layers that they belong to; a stack that "
        "holds a layer inherits them.",
        "",
        *table(head, rows),
        "",
        LEGEND + ".",
    ]


def _exam_title(exam: str, cells: Iterable[Cell], withheld: frozenset[str]) -> str:
    found = next(each for each in cells if each["exam"] == exam)
    hidden = ", questions withheld" if exam in withheld else ""
    return f"{cell(exam)} ({found['metric']}, n = {found['n']}{hidden})"


def _result(found: Cell | None) -> str:
    if found is None:
        return "-"
    mark = f" {MARKS[found['change']]}" if found["change"] else ""
    value = value_text(found["metric"], found["value"])
    return f"{value} {interval_text(found['metric'], found['ci'])}{mark}"


def _cost(facts: Facts) -> list[str]:
    lines = ["## What it cost", ""]
    known = [(layer, layer.cost) for layer in facts.layers if layer.cost is not None]
    if not known:
        return [*lines, "Not on record."]
    rows = [
        [
            cell(layer.config.name),
            f"{cost.seconds:,.0f}",
            f"{cost.tokens:,}",
            f"{cost.tokens_per_second:,.0f}",
            f"{cost.peak_bytes / 1e9:.2f} GB",
            f"{layer.bytes / 1e6:.1f} MB",
            cell(cost.hardware),
        ]
        for layer, cost in known
    ]
    places = _PLACES[facts.draws]
    head = ["layer", "seconds", places, f"{places}/s", "peak memory", "size", "hardware"]
    lines += table(head, rows)
    missing = len(facts.layers) - len(known)
    total = sum(cost.seconds for _, cost in known)
    note = f"; of {_count(missing, 'layer')} it is not on record" if missing else ""
    return [*lines, "", f"{total / 60:,.1f} minutes of training in all{note}."]


def _licences(facts: Facts) -> list[str]:
    rows = [["base", _stated(facts.base.config.licence), "-"]]
    for layer in facts.layers:
        data = layer.config.data.licence if layer.config.data else None
        rows.append(
            [f"layer {cell(layer.config.name)}", _stated(layer.config.licence), _stated(data)]
        )
    lines = ["## Licences and obligations", "", *table(["part", "licence", "of its data"], rows)]
    asked = [f"- {_prose(each)}" for each in facts.obligations]
    doubts = [f"- {_prose(each)}" for each in facts.doubts]
    return [
        *lines,
        "",
        "Whoever uses the stack is bound by all of them. This was read from stated licences; it is "
        "no legal advice.",
        *(["", "What they ask:", "", *asked] if asked else []),
        *(["", "To look at first:", "", *doubts] if doubts else []),
    ]


def _prose(text: str) -> str:
    line = one_line(text, _SENTENCE)
    return line if _PLAIN.fullmatch(line) else code(line, _SENTENCE)


def _stated(licence: str | None) -> str:
    return cell(licence) if licence else "not stated"


def _limits(facts: Facts) -> list[str]:
    lines = [
        "## Limits, and what is not known",
        "",
        "- It holds for the base with the identity above. Over another one, even of the same name, "
        "it is another model; lamina refuses that.",
        "- What no exam asks was not examined: nothing is claimed about it, about its safety, "
        "biases or languages.",
    ]
    sat = {found["exam"] for found in facts.results["cells"]}
    unsat = [exam for exam in facts.results["exams"] if exam not in sat]
    lines += [f"- no result on record: exam {code(exam)}" for exam in unsat]
    for layer in facts.layers:
        gaps = _gaps(layer)
        if gaps:
            lines.append(f"- layer {code(layer.config.name)}: {'; '.join(gaps)}")
    if facts.parity is not None:
        lines.append(f"- these files beside the stack: {_parity(facts.parity)}")
    return lines


def _gaps(layer: CardLayer) -> list[str]:
    """What is not on record about a layer."""
    config = layer.config
    rehearsal = {
        "sample": "a sample of its rows travels with it",
        "synthesised": "rows that its stack wrote itself travel with it, none of its own",
        "none": "no rows travel with it, so training above it may erase it",
        None: "whether rows travel with it is not on record",
    }[config.rehearsal]
    wanting = [
        "who made it is not stated" if not config.author else "",
        "its licence is not stated" if not config.licence else "",
        "it carries no exam" if not config.exams else "",
        rehearsal,
    ]
    return [each for each in wanting if each]


def _parity(parity: Mapping[str, Any]) -> str:
    if parity.get("ok") is None:
        return f"not compared ({code(str(parity.get('unproved')))})"
    said = f"{one_line(str(parity['measure']))} {parity['value']:.1e}, limit {parity['limit']:.0e}"
    return said if parity["ok"] else f"BEYOND THE LIMIT, kept as told: {said}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
