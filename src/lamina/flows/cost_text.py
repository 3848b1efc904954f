"""A lineage's cost in words: one sentence that can be quoted, what it rests on, and the table."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lamina.core.digest import short
from lamina.core.sizes import number_text, size_text, span_text
from lamina.flows.spending import Alternative, Item, Spending
from lamina.plan.laws import APPROACH_1

_KWH = 3.6e6


def sentence(spent: Spending) -> str:
    """What the stack cost, and what else would have: for a slide or a commit message."""
    made = sum(item.seconds is not None for item in spent.items)
    said = (
        f"{spent.label} has cost {span_text(spent.seconds)} of computing"
        f"{_money(spent.money)} so far, over {_layers(made)}{_by(spent)}{_on(spent)}"
    )
    others = []
    if spent.full is not None:
        others.append(f"full fine-tuning each time would have taken {_other(spent, spent.full)}")
    if spent.scratch is not None:
        others.append(
            f"one run from nothing at its size of {number_text(spent.parameters)} parameters "
            f"{_other(spent, spent.scratch)}"
        )
    return f"{said}: {', and '.join(others)}." if others else f"{said}."


def assumptions(spent: Spending) -> list[str]:
    """What the sentence rests on, and what it leaves out."""
    lines = [
        "Measured: seconds of training with its evaluations; of a carried layer all that was tried."
    ]
    if spent.full is not None:
        lines.append(
            "Full fine-tuning: every weight beneath, on the tokens that the layer and its older "
            "versions learned from, 6 operations a weight and token (the head: a predicted token) "
            "where a layer takes 4, at the operations a second measured for that layer; without "
            "evaluations, and as if its 16 bytes a parameter fitted into memory."
        )
    if spent.scratch is not None:
        lines.append(
            f"From nothing: {number_text(spent.scratch_tokens)} tokens, compute-optimal for "
            f"{number_text(spent.parameters)} parameters by {APPROACH_1.name} "
            f"({APPROACH_1.source}), 6 operations a parameter and token, at the lineage's "
            "operations a second: once, whatever the base's own training took, and without "
            "gathering that text."
        )
    if any(way and way.money is not None for way in (spent.full, spent.scratch)):
        lines.append("Money of these: the lineage's, a second.")
    lines += _gaps(spent)
    return lines


def _gaps(spent: Spending) -> list[str]:
    lines = []
    if missing := spent.unknown():
        lines.append(f"{_layers(missing)} without a cost on record: imported, or made elsewhere.")
    if spent.absent:
        lines.append(f"{_layers(spent.absent)} that it was made from live elsewhere: not counted.")
    if unnamed := sum(item.standing == "unnamed" for item in spent.items):
        lines.append(f"{_layers(unnamed)} counted that no name holds: refused, or replaced.")
    if older := sum(item.standing == "older" for item in spent.items):
        lines.append(f"{_layers(older)} of older versions or made into newer ones counted.")
    if reckoned := sum(item.reckoned and item.flops is not None for item in spent.items):
        lines.append(f"Operations of {_layers(reckoned)} are worked out from tokens and shapes.")
    exams, timed = spent.exams, spent.exams.sittings - spent.exams.unknown
    if exams.sittings:
        took = f" took {span_text(exams.seconds)} more" if timed else ""
        unknown = f"; {exams.unknown} have no time on record" if exams.unknown else ""
        lines.append(f"{exams.sittings} sittings of exams{took}, in none of the above{unknown}.")
    if spent.total("joules") is None:
        why = "no energy was measured"
        estimate = spent.total("estimated_joules")
        lines.append(
            f"{why}; by the hardware profile's watts it is about {_kwh(estimate)} (an estimate)."
            if estimate is not None
            else f"{why}, and the hardware profile has no watts."
        )
    else:
        unmetered = spent.unknown("joules")
        lines.append(
            f"{_kwh(spent.total('joules'))} measured by the machines' counters, whatever else ran"
            + (f"; {_layers(unmetered)} not measured." if unmetered else ".")
        )
    if not spent.money:
        lines.append("No prices were configured: put them into hardware.toml (docs/guide/cost.md).")
    elif spent.unknown("money"):
        lines.append(f"{_layers(spent.unknown('money'))} without a price at that time.")
    return lines


def render(spent: Spending) -> str:
    """For people."""
    lines = [sentence(spent), ""]
    lines += _table([_row(item) for item in spent.items])
    lines += ["", *(f"{_who(who)}: {span_text(seconds)}, {_layers(count)}{_amount(spent, money)}"
                    for who, count, seconds, money in spent.authors)]  # fmt: skip
    return "\n".join([*lines, "", *(f"- {line}" for line in assumptions(spent))])


def to_json(spent: Spending) -> dict[str, Any]:
    """For --json and the pages."""
    return {
        "label": spent.label,
        "sentence": sentence(spent),
        "assumptions": assumptions(spent),
        "layers": [asdict(item) for item in spent.items],
        "totals": {
            "seconds": spent.seconds,
            **{key: spent.total(key) for key in ("tokens", "flops", "joules", "estimated_joules")},
            "money": dict(spent.money),
            "layer_bytes": spent.total("layer_bytes"),
            "without_cost": spent.unknown(),
            "absent": spent.absent,
        },
        "exams": spent.exams._asdict(),
        "authors": [
            {"author": who, "layers": count, "seconds": seconds, "money": money}
            for who, count, seconds, money in spent.authors
        ],
        "currency": spent.currency,
        "full_fine_tuning": spent.full._asdict() if spent.full else None,
        "from_scratch": (
            {**spent.scratch._asdict(), "tokens": spent.scratch_tokens} if spent.scratch else None
        ),
    }


def _row(item: Item) -> list[str]:
    mark = {"in the stack": "", "older": " (older)", "unnamed": " (no name)"}[item.standing]
    return [
        f"{item.name} @{short(item.layer)}{mark}",
        item.origin,
        _who(item.author),
        "not on record" if item.seconds is None else span_text(item.seconds),
        "-" if item.flops is None else f"{item.flops:.1e}",
        "-" if item.joules is None else _kwh(item.joules),
        "-" if item.money is None else f"{number_text(item.money)} {item.currency or ''}".strip(),
        "-" if item.layer_bytes is None else size_text(item.layer_bytes),
        item.hardware or "-",
    ]


_HEAD = ("layer", "made", "by", "time", "operations", "energy", "money", "size", "hardware")


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [list(_HEAD), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEAD))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _other(spent: Spending, way: Alternative) -> str:
    money = f", {number_text(way.money)} {spent.currency}" if way.money is not None else ""
    return f"{span_text(way.seconds)} ({number_text(way.times)} times{money})"


def _money(money: Any) -> str:
    return "".join(f" and {number_text(amount)} {currency}" for currency, amount in money.items())


def _amount(spent: Spending, money: float | None) -> str:
    return "" if money is None else f", {number_text(money)} {spent.currency}"


def _by(spent: Spending) -> str:
    named = [who for who, *_ in spent.authors if who]
    return f" by {', '.join(named)}" if named else ""


def _on(spent: Spending) -> str:
    """The hardware, where it is one."""
    found = {item.hardware for item in spent.items if item.hardware}
    return f" on {next(iter(found))}" if len(found) == 1 else ""


def _who(author: str | None) -> str:
    return author or "author not stated"


def _layers(count: int) -> str:
    return f"{count} layer" if count == 1 else f"{count} layers"


def _kwh(joules: float | None) -> str:
    return f"{number_text((joules or 0.0) / _KWH)} kWh"
