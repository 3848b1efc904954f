"""What a row format is, and what the formats share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lamina.core.errors import DataError
from lamina.data.example import Example, kind

RowValue = dict[str, Any] | str
_PICKED = ("tools", "accept", "accept_calls", "choices", "answer_index")


@dataclass(frozen=True)
class RowFormat:
    """A way to write an example as a row. Columns that it does not know are no faults."""

    name: str
    expects: str
    """The keys that its rows have, in words."""
    matches: Callable[[RowValue], bool]
    """Whether a row has the keys of this format."""
    parse: Callable[[RowValue], Example]
    """Raises DataError with all faults of the row."""


def first_key(row: RowValue, keys: Sequence[str]) -> str | None:
    """The first of `keys` that the row has; null is as good as absent."""
    if isinstance(row, str):
        return None
    return next((key for key in keys if row.get(key) is not None), None)


def picked(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that mean the same in every format."""
    return {key: row[key] for key in _PICKED if row.get(key) is not None}


def require_text(row: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Raise DataError naming each of `keys` whose value is not a text, or is blank."""
    faults = [
        f"{key} is empty" if isinstance(row[key], str) else f"{key}: {kind(row[key])}, not text"
        for key in keys
        if not isinstance(row[key], str) or not row[key].strip()
    ]
    if faults:
        raise DataError("this row cannot be used", faults=faults)


def optional_text(row: Mapping[str, Any], key: str) -> str:
    """The text under `key`, '' where there is none. Raises DataError for another kind of value."""
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError("this row cannot be used", faults=[f"{key}: {kind(value)}, not text"])
    return value or ""


def turn(role: str, content: str) -> dict[str, Any]:
    """A message in chat form."""
    return {"role": role, "content": content}


def leading_system(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The message that a `system` column stands for."""
    system = optional_text(row, "system")
    return [turn("system", system)] if system.strip() else []
