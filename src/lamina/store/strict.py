"""Strict JSON for what is on disk: see `core.strict`; besides no unknown keys, no other types, and
on one line what is shown on one line."""

from typing import Any, TypeVar

from lamina.core.errors import StoreError, UsageError
from lamina.core.plain import MAX_LINE, line_fault
from lamina.core.strict import loads
from lamina.core.values import Value

ONE_LINE = frozenset(
    {
        "author",
        "created",
        "dtype",
        "exam",
        "family",
        "format",
        "hardware",
        "layer",
        "licence",
        "method",
        "metric",
        "name",
        "onto",
        "reviewer",
        "source",
        "worst_module",
    }
)
"""Keys whose texts are shown between our own words, wherever they stand."""

ValueT = TypeVar("ValueT", bound=Value)


def parse_strictly(kind: type[ValueT], data: bytes, what: str) -> ValueT:
    """Read stored JSON as a Value. Raises StoreError, naming `what` and every fault."""
    try:
        loaded = loads(data)
    except ValueError as error:
        raise StoreError(f"{what} is not JSON that lamina reads: {error}") from None
    if not isinstance(loaded, dict):
        raise StoreError(f"{what} is not a JSON object")
    faults = _line_faults(loaded) if _may_hold_faults(data) else []
    if faults:
        raise StoreError(f"{what} is not valid", faults=faults)
    try:
        return kind.parse_exactly(data, what)
    except UsageError as error:
        raise StoreError(error.message, faults=error.faults) from None


def _may_hold_faults(data: bytes) -> bool:
    """False where no text in this JSON can be a fault: plain ASCII, no escapes, nothing long. Most
    of what is read is so, and an index has many entries."""
    plain = data.isascii() and b"\\" not in data and b"\x7f" not in data
    return not plain or max(map(len, data.split(b'"'))) > MAX_LINE


def _line_faults(value: Any) -> list[str]:
    """What is wrong with texts under the keys of ONE_LINE, at any depth."""
    faults = []
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, str):
                fault = line_fault(item) if key in ONE_LINE else None
                faults += [f"{key} {fault}"] if fault else []
            else:
                faults += _line_faults(item)
    elif isinstance(value, list):
        for item in value:
            faults += _line_faults(item) if isinstance(item, (dict, list)) else []
    return faults
