"""alpaca: `{"instruction", "input", "output"}`; Dolly's `context` and `response` mean the same."""

from typing import Any

from lamina.core.errors import DataError
from lamina.data.example import Example, loaded
from lamina.data.readers import chat
from lamina.data.readers.format import (
    RowFormat,
    RowValue,
    first_key,
    leading_system,
    optional_text,
    picked,
    require_text,
    turn,
)

_OUTPUT = ("output", "response")
_INPUT = ("input", "context")


def matches(row: RowValue) -> bool:
    """Whether the row has an instruction and an output."""
    return first_key(row, ["instruction"]) is not None and first_key(row, _OUTPUT) is not None


def parse(row: RowValue) -> Example:
    """The instruction, an empty line and the input are the question. Raises DataError."""
    assert isinstance(row, dict)
    output = first_key(row, _OUTPUT) or _OUTPUT[0]
    require_text(row, ["instruction", output])
    given = optional_text(row, first_key(row, _INPUT) or _INPUT[0])
    question = "\n\n".join(part for part in (row["instruction"], given) if part.strip())
    messages = [
        *leading_system(row),
        *_history(row),
        turn("user", question),
        turn("assistant", row[output]),
    ]
    return chat.parse({**picked(row), "messages": messages})


def _history(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Earlier turns: `history`, a list of [question, answer]."""
    pairs = loaded(row.get("history")) or []
    if not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
        raise DataError(
            "this row cannot be used", faults=["history: not a list of [question, answer]"]
        )
    return [
        turn(role, content)
        for pair in pairs
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)


ALPACA = RowFormat(
    name="alpaca",
    expects="instruction and output (input, if any)",
    matches=matches,
    parse=parse,
)
