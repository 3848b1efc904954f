"""completion: a question and its answer, `{"prompt", "completion"}`, also under other names.

Both may be lists of chat messages. A question with `choices` and `answer_index` needs no answer:
the right choice is the answer.
"""

from typing import Any

from lamina.core.errors import DataError
from lamina.data.example import Example, kind
from lamina.data.readers import chat
from lamina.data.readers.format import (
    RowFormat,
    RowValue,
    first_key,
    leading_system,
    picked,
    require_text,
    turn,
)

_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("query", "answer"),
    ("query", "response"),
    ("input", "output"),
)
_QUESTIONS = ("prompt", "question", "query")


def matches(row: RowValue) -> bool:
    """Whether the row has a question and its answer."""
    return _pair(row) is not None or _chosen(row) is not None


def parse(row: RowValue) -> Example:
    """One question, one answer. Raises DataError."""
    assert isinstance(row, dict)
    pair = _pair(row)
    chosen = _chosen(row)
    if chosen is not None:
        question = chosen
        row = {**row, "answer": _right_choice(row)}
        answer = "answer"
    elif pair is not None:
        question, answer = pair
    else:
        raise DataError("this row cannot be used", faults=["no question with an answer"])
    require_text(row, [key for key in (question, answer) if not isinstance(row[key], list)])
    messages = [
        *leading_system(row),
        *_turns(row[question], "user"),
        *_turns(row[answer], "assistant"),
    ]
    return chat.parse({**picked(row), "messages": messages})


def _pair(row: RowValue) -> tuple[str, str] | None:
    """The keys of the question and its answer."""
    return next((p for p in _PAIRS if all(first_key(row, [key]) for key in p)), None)


def _chosen(row: RowValue) -> str | None:
    """The key of a question whose answer is one of the row's choices."""
    given = first_key(row, ["choices"]) and first_key(row, ["answer_index"])
    return first_key(row, _QUESTIONS) if given else None


def _right_choice(row: dict[str, Any]) -> Any:
    choices, index = row["choices"], row["answer_index"]
    if isinstance(index, str) and index.strip().isdecimal():
        index = int(index)
    if not isinstance(choices, list):
        fault = f"choices: {kind(choices)}, not a list"
    elif type(index) is not int or not 0 <= index < len(choices):
        fault = f"answer_index: {index!r} with {len(choices)} choices; it counts from 0"
    else:
        return choices[index]
    raise DataError("this row cannot be used", faults=[fault])


def _turns(value: Any, role: str) -> list[Any]:
    return value if isinstance(value, list) else [turn(role, value)]


COMPLETION = RowFormat(
    name="completion",
    expects="prompt and completion (or question and answer)",
    matches=matches,
    parse=parse,
)
