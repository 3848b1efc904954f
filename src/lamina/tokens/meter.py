"""What a chat template's rendering may use, and what each operation will make, before it does."""

import re
import time
from collections.abc import Mapping
from typing import Any

from jinja2.exceptions import TemplateError

CHARACTERS = 4_000_000
"""What a rendering may make, in characters, over `PER_INPUT` for each one that goes in."""
PER_INPUT = 64
STEPS = 1_000_000
"""Most turns of loops, calls and filters."""
SECONDS = 10.0
"""Most processor time of a rendering."""
MAX_BITS = 4096
"""Longest integer that arithmetic may make."""

_WIDE = re.compile(r"[0-9]{4}|\*|\{[^{}]*\{")
"""A width or precision of four digits, or one that is computed."""


_CONTAINER = 16
_LOOKS = 64
"""Steps between two looks at the clock."""


class OverBudget(TemplateError):
    """A template wants more than a chat could need."""


class Meter:
    """What a rendering has used of its budget."""

    def __init__(self, given: Any = None) -> None:
        self._sizes: dict[int, tuple[Any, int]] = {}
        self._steps = 0
        self._made = 0
        self._most = CHARACTERS
        self._most += PER_INPUT * self.size(given)
        self._until = time.thread_time() + SECONDS

    def step(self, count: int = 1) -> None:
        """A turn of a loop, a call. Raises OverBudget."""
        self._steps += count
        if self._steps > STEPS:
            raise OverBudget(f"it takes more than {STEPS:,} steps")
        if self._steps % _LOOKS == 0 and time.thread_time() > self._until:
            raise OverBudget(f"it takes more than {SECONDS:g} seconds")

    def charge(self, characters: int) -> None:
        """Something of this size will be made, or was looked at. Raises OverBudget."""
        self._made += characters
        if self._made > self._most:
            raise OverBudget(f"it makes more than {self._most:,} characters")

    def take(self, value: Any) -> Any:
        """Charge for a value that was made, and hand it on."""
        self.charge(self.size(value))
        return value

    def size(self, value: Any) -> int:
        """Characters of a string; of a container what writing it out would take, at least.

        Known containers are not walked again: they cannot change.
        """
        if isinstance(value, str):
            return len(value)
        if not isinstance(value, (list, tuple, dict, set, frozenset)):
            return 1
        known = self._sizes.get(id(value))
        if known is None:
            parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
            total = _CONTAINER + sum(1 + self.size(part) for part in parts)
            self._sizes[id(value)] = known = (value, total)  # held, so that its id stays its own
        return known[1]


def check_operator(meter: Meter, operator: str, left: Any, right: Any) -> None:
    """Charge for what `left operator right` will make. Raises OverBudget."""
    sequences = (str, list, tuple)
    if operator == "+" and isinstance(left, sequences):
        meter.charge(meter.size(left) + meter.size(right))
    elif operator == "%" and isinstance(left, str):
        check_format(left)
        meter.charge(len(left) + left.count("%") * meter.size(right))
    elif operator == "*":
        for one, other in ((left, right), (right, left)):
            if isinstance(one, sequences) and isinstance(other, int):
                meter.charge((_CONTAINER + meter.size(one)) * max(other, 0))
        if isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() + right.bit_length())
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * abs(right))


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise OverBudget(f"it makes a number of more than {MAX_BITS} bits")


def check_format(text: str) -> None:
    """Raises OverBudget for a width or precision that could be a bomb."""
    if _WIDE.search(text):
        raise OverBudget("it formats with a width or precision that is too large or is computed")


def method_growth(
    meter: Meter, owner: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> int:
    """Characters that a method makes beyond its result's usual size: at most its owner's."""
    if not isinstance(owner, str):
        return 0
    first = args[0] if args else next(iter(kwargs.values()), None)
    if name in ("center", "ljust", "rjust", "zfill"):
        return first if isinstance(first, int) else 0
    if name == "expandtabs":
        return owner.count("\t") * (first if isinstance(first, int) else 8)
    if name == "replace":
        return replacing(owner, args)
    if name == "join":
        return joining(meter, args[0] if args else (), owner)
    return 0


def replacing(text: Any, args: tuple[Any, ...]) -> int:
    """What `text.replace(*args)` adds."""
    if len(args) < 2 or not isinstance(args[0], str) or not isinstance(args[1], str):
        return 0
    places = str(text).count(args[0]) if args[0] else len(str(text)) + 1
    return places * len(args[1])


def joining(meter: Meter, items: Any, between: Any) -> int:
    """Characters of the items with `between` between them."""
    if not isinstance(items, (list, tuple)):
        return 0
    return sum(map(meter.size, items)) + len(items) * meter.size(between)


def sized_list(meter: Meter, items: Any) -> list[Any]:
    """The items of any iterable, paid for one by one."""
    if isinstance(items, str):
        return list(items)
    found = []
    for item in items:
        meter.step()
        found.append(item)
    return found


def filter_growth(
    meter: Meter, name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> int:
    """Characters that a filter makes beyond the size of what it is given."""
    numbers = [each for each in (*args, *kwargs.values()) if isinstance(each, int)]
    largest = max((abs(number) for number in numbers), default=0)
    if name in ("batch", "center", "slice"):
        return largest
    if name in ("indent", "tojson"):
        words = [len(each) for each in (*args, *kwargs.values()) if isinstance(each, str)]
        if max((largest, *words)) > 64:
            raise OverBudget(f"{name} by more than 64")
        lines = value.count("\n") + 1 if isinstance(value, str) else 0
        return lines * max((largest, *words))
    if name == "round" and largest > 100:
        raise OverBudget("it rounds to more than 100 places")
    if name == "format":
        text = str(value)
        check_format(text)
        return text.count("%") * sum(map(meter.size, (*args, *kwargs.values())))
    if name == "replace":
        return replacing(value, args)
    return 0
