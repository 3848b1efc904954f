"""Strict JSON for what is on disk: bounded depth, no repeated keys, no NaN, no unknown keys."""

import json
from typing import Any, NoReturn, TypeVar

from lamina.core.errors import StoreError, UsageError
from lamina.core.values import Value

MAX_DEPTH = 32

ValueT = TypeVar("ValueT", bound=Value)


def parse_strictly(kind: type[ValueT], data: bytes, what: str) -> ValueT:
    """Read stored JSON as a Value. Raises StoreError, naming `what` and every fault."""
    try:
        loaded = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{what} is not JSON that lamina reads: {error}") from None
    if not isinstance(loaded, dict):
        raise StoreError(f"{what} is not a JSON object")
    if _deeper_than(loaded, MAX_DEPTH):
        raise StoreError(f"{what} is nested deeper than {MAX_DEPTH} levels")
    try:
        return kind.parse(loaded, what)
    except UsageError as error:
        raise StoreError(error.message, faults=error.faults) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no key comes twice (which of the two counts would be a guess)."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key comes twice in one object")
    return result


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _deeper_than(value: Any, depth: int) -> bool:
    """Whether lists and objects nest deeper than `depth`; walks level by level, never recurses."""
    level = [value]
    for _ in range(depth + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return False
        level = below
    return True
