"""Exam questions: made from held-out rows, kept as JSONL, one question a line.

What each scorer needs: `loss` the full `example`; `exact` and `numeric` the prompt and `accept`;
`choice` the prompt, `choices` and which is `right`; `tool_call` the prompt, `tools` and
`accept_calls`; `denoise`, `retrieve` and `colour` the full `example`, with its image.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from lamina.core.digest import canonical_json, compact_json
from lamina.core.errors import DataError
from lamina.core.recipe import ScorerName
from lamina.core.strict import ROW_DEPTH, loads
from lamina.core.values import Value
from lamina.data.example import Example, Message, ToolCall, kind

_MARK = "####"
_MARKED = re.compile(r"####[^\n]*\d[^\n]*\s*\Z")
_NUMBER = re.compile(r"(?<![\w.])\d")
_TAIL = 10_000
"""Characters at the end of an answer in which its number is looked for."""


class ExamItem(Value):
    """One question of an exam."""

    messages: tuple[Message, ...] = ()
    """The prompt; empty where the whole `example` is the question."""
    tools: tuple[str, ...] = ()
    answer: str | None = None
    """The reference answer, for people; a scorer judges by the other fields."""
    accept: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    right: int | None = None
    """Index of the right choice."""
    accept_calls: tuple[dict[str, Any], ...] | None = None
    """`({"function": {"argument": [accepted values]}}, …)`; `""` among the values means that the
    argument may be left out; `()`: no function may be called."""
    example: Example | None = None
    """The full row, for `loss`."""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The question as messages, also where only the `example` is kept."""
        return self.messages or (self.example.prompt if self.example else ())

    def to_json(self) -> dict[str, Any]:
        """One line of an exam file; fields that say nothing are left out."""
        found: dict[str, Any] = {
            "messages": [message.to_json() for message in self.messages],
            "tools": [json.loads(tool) for tool in self.tools],
            "accept": list(self.accept),
            "choices": list(self.choices),
        }
        found = {key: value for key, value in found.items() if value}
        found |= {
            key: value
            for key, value in (("answer", self.answer), ("right", self.right))
            if value is not None
        }
        if self.accept_calls is not None:
            found["accept_calls"] = list(self.accept_calls)
        return found | ({} if self.example is None else {"example": self.example.to_json()})

    @classmethod
    def from_json(cls, row: Any) -> Self:
        """Read what `to_json` wrote. Raises DataError with all faults, unknown keys among them."""
        if not isinstance(row, dict):
            raise DataError("not a question", faults=[f"{kind(row)}, not an object"])
        faults = [f"unknown key {key!r}" for key in row if key not in cls.model_fields]
        parts = _from_example_form(row, faults)
        answer = row.get("answer")
        if not isinstance(answer, str | None):
            faults.append(f"answer: {kind(answer)}, not text")
        full = None
        if row.get("example") is not None:
            full = _full_example(row["example"], faults)
        if faults:
            raise DataError("this question cannot be used", faults=faults)
        calls = parts.accept_calls
        return cls(
            messages=parts.messages,
            tools=parts.tools,
            answer=answer,
            accept=parts.accept,
            choices=parts.choices,
            right=parts.answer_index,
            accept_calls=None if calls is None else tuple(json.loads(calls)),
            example=full,
        )


def _from_example_form(row: Mapping[str, Any], faults: list[str]) -> Example:
    """The fields that a question shares with a row of data."""
    fields = ("messages", "tools", "accept", "choices", "accept_calls")
    shared = {"messages": []} | {key: row[key] for key in fields if row.get(key) is not None}
    try:
        return Example.from_json(shared | {"answer_index": row.get("right")})
    except DataError as error:
        faults += [fault.replace("answer_index:", "right:") for fault in error.faults]
        return Example()


def _full_example(row: Any, faults: list[str]) -> Example | None:
    if not isinstance(row, dict):
        faults.append(f"example: {kind(row)}, not an object")
        return None
    try:
        return Example.from_json(row)
    except DataError as error:
        faults += [f"example: {fault}" for fault in error.faults]
        return None


# -- from rows to questions ------------------------------------------------------------------------


def default_scorers(examples: Sequence[Example]) -> tuple[ScorerName, ...]:
    """The scorers that suit these rows.

    Of images `denoise`, and `retrieve` where captions differ. Else always `loss`; `tool_call` when
    most rows end in a tool call or say which calls are right; `exact` when rows carry `accept`;
    `numeric` when most answers end in `#### N`; `choice` when rows carry `choices` and the right
    one is known.
    """
    if any(example.image for example in examples):
        differ = len({example.text for example in examples if example.image}) > 1
        return ("denoise", "retrieve") if differ else ("denoise",)
    most = len(examples) / 2
    found: list[ScorerName] = []
    if sum(_tool_call_item(example) is not None for example in examples) > most:
        found.append("tool_call")
    if any(example.accept for example in examples):
        found.append("exact")
    if sum(_MARKED.search(_answer_text(e)[-_TAIL:]) is not None for e in examples) > most:
        found.append("numeric")
    if any(example.choices for example in examples):
        found.append("choice")
    return ("loss", *(scorer for scorer in found if _questions(examples, scorer)))


def items_from_examples(examples: Sequence[Example], scorer: ScorerName) -> tuple[ExamItem, ...]:
    """The questions that these rows give for one scorer; rows that give none are left out.

    exact, numeric: where rows carry a usable `accept`, only those rows are asked; otherwise each
    answer is the accepted one (for numeric: what follows its last `####`, or all of it).
    Raises: DataError when no row gives a question.
    """
    items = _questions(examples, scorer)
    if not items:
        raise DataError(
            f"none of the {len(examples)} rows gives a question for the scorer {scorer!r}",
            hint=f"leave out {scorer!r}, or give rows that suit it; `loss` suits all rows of text, "
            "`denoise` all images",
        )
    return items


def _questions(examples: Iterable[Example], scorer: ScorerName) -> tuple[ExamItem, ...]:
    makers: dict[ScorerName, Callable[[Example], ExamItem | None]] = {
        "loss": lambda example: ExamItem(example=example),
        "exact": _exact_item,
        "numeric": _numeric_item,
        "choice": _choice_item,
        "tool_call": _tool_call_item,
        "denoise": _image_item,
        "retrieve": _image_item,
        "colour": _image_item,
    }
    made = [(example, makers[scorer](example)) for example in examples]
    if scorer in ("exact", "numeric") and any(item and example.accept for example, item in made):
        made = [(example, item) for example, item in made if example.accept]
    return tuple(item for _, item in made if item is not None)


def exact_calls(calls: Iterable[ToolCall]) -> tuple[dict[str, Any], ...]:
    """Exactly these calls, in the form of `ExamItem.accept_calls`."""
    return tuple({call.name: _alternatives(json.loads(call.arguments))} for call in calls)


def _alternatives(arguments: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {key: [_one_value(value)] for key, value in arguments.items()}


def _one_value(value: Any) -> Any:
    """A value as an accepted one: the keys of an object list alternatives in their turn."""
    if isinstance(value, dict):
        return _alternatives(value)
    return [_one_value(item) for item in value] if isinstance(value, list) else value


def _item(example: Example, **fields: Any) -> ExamItem:
    return ExamItem(
        messages=example.prompt,
        tools=example.tools,
        answer=_answer_text(example) or None,
        **fields,
    )


def _answer_text(example: Example) -> str:
    """The last assistant turn as text: what it says, then its calls, one a line."""
    if example.answer is None:
        return ""
    calls = [
        canonical_json({"name": call.name, "arguments": json.loads(call.arguments)}).decode()
        for call in example.answer.tool_calls
    ]
    return "\n".join(part for part in (example.answer.content, *calls) if part)


def _says_text(example: Example) -> bool:
    return example.answer is not None and not example.answer.tool_calls


def _image_item(example: Example) -> ExamItem | None:
    return ExamItem(example=example) if example.image else None


def _exact_item(example: Example) -> ExamItem | None:
    accept = example.accept or ((_answer_text(example),) if _says_text(example) else ())
    if example.answer is None or not any(map(str.strip, accept)):
        return None
    return _item(example, accept=accept)


def _numeric_item(example: Example) -> ExamItem | None:
    answer = _answer_text(example) if _says_text(example) else ""
    tail = answer.rpartition(_MARK)[2].strip()
    given = example.accept or (tail if _has_number(tail) else answer,)
    accept = tuple(filter(_has_number, given))
    return _item(example, accept=accept) if example.answer and accept else None


def _has_number(text: str) -> bool:
    return _NUMBER.search(text[-_TAIL:]) is not None


def _choice_item(example: Example) -> ExamItem | None:
    right = example.answer_index
    if right is None:
        answers = {example.answer.content if example.answer else None, *example.accept}
        matching = [i for i, choice in enumerate(example.choices) if choice in answers]
        right = matching[0] if len(matching) == 1 else None
    if example.answer is None or right is None or len(example.choices) < 2:
        return None
    return _item(example, choices=example.choices, right=right)


def _tool_call_item(example: Example) -> ExamItem | None:
    if example.answer is None:
        return None
    if example.accept_calls is not None:
        return _item(example, accept_calls=tuple(json.loads(example.accept_calls)))
    calls = example.answer.tool_calls
    return _item(example, accept_calls=exact_calls(calls)) if calls else None


# -- JSONL ------------------------------------------------------------------------------------


def to_jsonl(items: Iterable[ExamItem]) -> bytes:
    """One question a line, compact JSON: equal questions give equal bytes."""
    return b"".join(compact_json(item.to_json()).encode() + b"\n" for item in items)


def from_jsonl(data: bytes) -> tuple[ExamItem, ...]:
    """Read what `to_jsonl` wrote. Raises DataError with the faults of every line."""
    items: list[ExamItem] = []
    faults: list[str] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            items.append(ExamItem.from_json(loads(line, depth=ROW_DEPTH)))
        except DataError as error:
            faults += [f"line {number}: {fault}" for fault in error.faults]
        except ValueError as error:
            faults.append(f"line {number}: not JSON: {error}")
    if faults:
        raise DataError("these exam questions cannot be read", faults=faults)
    return tuple(items)


def read_exam_file(path: Path) -> tuple[ExamItem, ...]:
    """The questions in a file that `to_jsonl` wrote. Raises DataError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}", hint="give a JSONL file of questions"
        ) from None
    try:
        items = from_jsonl(data)
    except DataError as error:
        raise DataError(
            f"{path} is not an exam", faults=error.faults, hint="one question a line, as JSON"
        ) from None
    if not items:
        raise DataError(f"{path} holds no question")
    return items
