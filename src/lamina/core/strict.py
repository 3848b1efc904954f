"""JSON from strangers: UTF-8, bounded depth and number of values, no key twice, numbers that fit.

What cannot be told apart by every reader is refused: which of two equal keys counts, what NaN is,
what 1e999 or a hundred digits mean.
"""

import json
import math
from typing import Any, NoReturn

MAX_DEPTH = 32
ROW_DEPTH = 64
"""Of rows: tools have schemas, and these nest."""
MAX_VALUES = 2_000_000
"""Most commas, colons and brackets: what a value takes in memory is many times its text."""
_DIGITS = 20
_LARGEST = 2**64


def loads(data: bytes | str, *, depth: int = MAX_DEPTH, values: int = MAX_VALUES) -> Any:
    """Read JSON. Raises ValueError saying what is wrong with it."""
    text = data.decode("utf-8") if isinstance(data, bytes) else data
    if sum(map(text.count, ",:[{")) > values:
        raise ValueError(f"it has more than {values:,} values")
    try:
        loaded = _DECODER.decode(text)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {depth} levels") from None
    if _deeper_than(loaded, depth):
        raise ValueError(f"it is nested deeper than {depth} levels")
    return loaded


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no key comes twice (which of the two counts would be a guess)."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key comes twice in one object")
    return result


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} does not fit")
    return value


def _whole(text: str) -> int:
    if text == "-0":
        raise ValueError("-0 is an integer to some readers and none to others")
    if len(text) > _DIGITS + 1 or not -_LARGEST < (value := int(text)) < _LARGEST:
        raise ValueError(f"the number {text[:40]} does not fit")
    return value


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


_DECODER = json.JSONDecoder(  # one for all, as a new one for each text leaves a trace in the heap
    object_pairs_hook=_unique,
    parse_constant=_no_constant,
    parse_float=_finite,
    parse_int=_whole,
)
