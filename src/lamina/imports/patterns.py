"""PEFT's patterns of module names, evaluated only where they cannot run for hours.

PEFT reads keys of `rank_pattern` and `alpha_pattern` as regular expressions that match the end of a
module's name (`get_pattern_key`), and a `target_modules` that is one string as an expression for
the whole name. Python's engine takes exponential time on some: so groups are never repeated here,
and at most MAX_REPEATS parts may be of any length.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lamina.lowrank.codec import MAX_ALPHA

MAX_REPEATS = 2
MAX_LENGTH = 2000
MAX_KEYS = 10_000
MAX_REPEATING_KEYS = 64
_TOKEN = re.compile(
    r"(?P<atom>\\[.dwDW_-]|\[\^?(?:[\w.-]|\\[.dw-])+\]|[\w.-])(?P<many>[*+]\??|\{\d{1,2}(?:,\d{1,2})?\}|\?)?"
    r"|\(\?:|\((?!\?)|\)\??(?![*+{])|\||\^|\$"
)
ALL_LINEAR = "all-linear"


def refusal(pattern: str) -> str | None:
    """Why an expression is not evaluated; None where it may be."""
    if len(pattern) > MAX_LENGTH:
        return f"longer than {MAX_LENGTH} characters"
    position = repeats = 0
    while position < len(pattern):
        token = _TOKEN.match(pattern, position)
        if token is None or token.end() == position:
            return "more than names, classes, alternatives and plain repetitions"
        repeats += bool(token["many"] and token["many"][0] in "*+{")
        position = token.end()
    if repeats > MAX_REPEATS:
        return f"more than {MAX_REPEATS} repetitions"
    try:
        re.compile(pattern)
    except re.error as error:
        return f"no regular expression: {error}"
    return None


def pattern_faults(config: Mapping[str, Any], key: str) -> list[str]:
    """What keeps one of the config's pattern tables from being used."""
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
    if sum(any(c in pattern for c in "*+{") for pattern in table) > MAX_REPEATING_KEYS:
        faults.append(f"{key} has more than {MAX_REPEATING_KEYS} expressions")
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
        if refusal(targets):
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
