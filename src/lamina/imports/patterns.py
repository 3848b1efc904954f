"""PEFT's patterns of module names, evaluated only where they cannot run for hours.

PEFT reads keys of `rank_pattern` and `alpha_pattern` as regular expressions that match the end of a
module's name (`get_pattern_key`), and a `target_modules` that is one string as an expression for
the whole name. Python's engine takes exponential time on some: so groups are never repeated here,
at most MAX_REPEATS parts of an expression may be of any length, its alternatives may be taken in
MAX_WAYS ways, and a table may take MAX_STEPS, counted as if every try failed at its end.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lamina.lowrank.codec import MAX_ALPHA

MAX_REPEATS = 2
MAX_WAYS = 1000
MAX_LENGTH = 2000
MAX_KEYS = 10_000
MAX_STEPS = 5_000_000_000
"""About two minutes."""
_TOKEN = re.compile(
    r"(?P<atom>\\[.dwDW_-]|\[\^?(?:[\w.-]|\\[.dw-])+\]|[\w.-])(?P<many>[*+]\??|\{\d{1,2}(?:,\d{1,2})?\}|\?)?"
    r"|(?P<open>\(\?:|\((?!\?))|(?P<close>\))(?P<maybe>\??)(?![*+{?])|(?P<or>\|)|\^|\$"
)
ALL_LINEAR = "all-linear"


def refusal(pattern: str) -> str | None:
    """Why an expression is not evaluated; None where it may be."""
    found = _measured(pattern)
    if isinstance(found, str):
        return found
    ways, repeats = found
    if repeats > MAX_REPEATS:
        return f"more than {MAX_REPEATS} repetitions"
    if ways > MAX_WAYS:
        return f"its alternatives can be taken in more than {MAX_WAYS} ways"
    try:
        re.compile(pattern)
    except re.error as error:
        return f"no regular expression: {error}"
    return None


def _measured(pattern: str) -> tuple[int, int] | str:
    """(ways through the alternatives, parts of any length), or what is not plain in it."""
    if len(pattern) > MAX_LENGTH:
        return f"longer than {MAX_LENGTH} characters"
    position, repeats, ways, open_groups = 0, 0, 1, [1]
    while position < len(pattern):
        token = _TOKEN.match(pattern, position)
        if token is None:
            return "more than names, classes, alternatives and plain repetitions"
        many = token["many"] or ""
        repeats += many[:1] in ("*", "+", "{")
        if token["open"]:
            open_groups.append(1)
        elif token["or"]:
            open_groups[-1] += 1
        elif token["close"] and len(open_groups) > 1:
            ways *= open_groups.pop()
        ways *= 2 if many == "?" or token["maybe"] else 1
        position = token.end()
    for alternatives in open_groups:
        ways *= alternatives
    return ways, repeats


def _steps(pattern: str, names: int, longest: int) -> int:
    """At most how long one expression takes on so many names, `(.*\\.)?` before it included."""
    found = _measured(pattern)
    ways, repeats = (1, 0) if isinstance(found, str) else found
    return int(names * ways * longest ** (repeats + 1))


def pattern_faults(config: Mapping[str, Any], key: str, names: Collection[str]) -> list[str]:
    """What keeps one of the config's pattern tables from being used on modules of these names."""
    table = config.get(key) or {}
    if not isinstance(table, dict):
        return [f"{key} is no table"]
    if len(table) > MAX_KEYS:
        return [f"{key} has {len(table)} keys, at most {MAX_KEYS} are read"]
    faults = []
    for pattern, value in table.items():
        why = refusal(pattern)
        if why:
            faults.append(f"{key}: {pattern[:80]!r} is not evaluated: {why}")
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not 0 < value <= MAX_ALPHA
        ):
            faults.append(f"{key}: {pattern[:80]!r} is given {value!r}, no positive number")
    longest = max(map(len, names), default=0)
    if sum(_steps(pattern, len(names), longest) for pattern in table) > MAX_STEPS:
        faults.append(f"{key} would take too long: write the modules' names out")
    return faults


def compiled(config: Mapping[str, Any], key: str) -> list[tuple[re.Pattern[str], float]]:
    """A pattern table without faults, in its order, by PEFT's rule `(.*\\.)?(key)$`."""
    table = config.get(key) or {}
    return [(re.compile(rf"(.*\.)?({pattern})$"), value) for pattern, value in table.items()]


def value_for(table: Sequence[tuple[re.Pattern[str], float]], module: str, default: float) -> float:
    """What the first pattern that matches says of a module, or `default`."""
    return next((value for pattern, value in table if pattern.match(module)), default)


def selects(targets: Any, modules: Collection[str]) -> frozenset[str] | None:
    """Those of `modules` that PEFT's `target_modules` names; None where that is not evaluated."""
    if isinstance(targets, str) and targets != ALL_LINEAR:
        longest = max(map(len, modules), default=0)
        if refusal(targets) or _steps(targets, len(modules), longest) > MAX_STEPS:
            return None
        return frozenset(name for name in modules if re.fullmatch(targets, name))
    if isinstance(targets, Sequence) and not isinstance(targets, str):
        ends = {str(target) for target in targets}
        return frozenset(name for name in modules if any(end in ends for end in _ends(name)))
    return frozenset(modules)


def _ends(name: str) -> list[str]:
    """The name and every suffix of it that starts at a dot."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]
