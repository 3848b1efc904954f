"""text: plain text to continue, a piece of a text file or `{"text": …}`."""

from lamina.core.errors import DataError
from lamina.data.example import Example
from lamina.data.readers.format import RowFormat, RowValue, first_key, require_text


def parse(row: RowValue) -> Example:
    """Plain text. Raises DataError."""
    given = {"text": row} if isinstance(row, str) else {"text": row.get("text")}
    require_text(given, ["text"])
    example = Example.from_json(given)
    if "\0" in (example.text or ""):
        raise DataError("this row cannot be used", faults=["a NUL character in its text"])
    return example


TEXT = RowFormat(
    name="text",
    expects="text",
    matches=lambda row: isinstance(row, str) or first_key(row, ["text"]) is not None,
    parse=parse,
)
