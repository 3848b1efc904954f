"""tool_call: the answer calls the right functions with accepted arguments.

Accepted calls are written as the Berkeley Function-Calling Leaderboard writes them, one entry a
call: `[{"get_weather": {"city": ["Paris", "Paris, France"], "unit": ["", "celsius"]}}]`. Every
argument lists the values it may have; `""` among them means that it may be left out. The rules
are those of the leaderboard's AST check (Patil et al., ICML 2025; gorilla.cs.berkeley.edu):

    calls      as many as accepted, each accepted call met by another one, in any order; no
               accepted call means that no function may be called
    names      of functions and arguments: equal, letter by letter
    arguments  an argument that the accepted call does not list is wrong; one that is left out
               is wrong unless `""` is accepted and the tool's schema does not require it
    strings    equal once lower-cased, without spaces and , . / - _ * ^, and with ' read as "
    numbers    equal; an integer may stand for a float, a float for an integer only where the
               schema says number or float; true and false are no numbers
    lists      as long, equal element by element
    objects    an accepted object lists the accepted values of each of its keys, as above; a key
               whose entry is no list has that one value

Two things are kinder than the leaderboard's: integers may stand for floats inside lists and
objects too, since JSON has one kind of number, and objects may be nested.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lamina.core.scores import ItemScore
from lamina.data.example import ToolCall
from lamina.data.exams import ExamItem
from lamina.exams.examinee import Examinee, Progress
from lamina.exams.scorers.scorer import ACCURACY, Scorer, score_generated
from lamina.tokens.tools import function_schema, parse_tool_calls

_MAY_BE_LEFT_OUT = ""
_IGNORED = re.compile(r"[ ,./\-_*^]")
_FLOAT_TYPES = ("number", "float", "double")
_MAX_SHOWN = 80

Schema = Mapping[str, Any]
"""JSON schema of a value; empty where the tool gives none."""


class Judgement(NamedTuple):
    """Whether an answer is right, and if not, why."""

    right: bool
    reason: str


def score(
    items: Sequence[ExamItem], examinee: Examinee, max_new_tokens: int, progress: Progress
) -> tuple[ItemScore, ...]:
    """1 where the calls in the answer are the accepted ones. `judge` says why one is not."""
    return score_generated(
        items, examinee, max_new_tokens, progress, lambda item, answer: judge(item, answer).right
    )


def judge(item: ExamItem, answer: str) -> Judgement:
    """Whether the calls in `answer` are the accepted ones, with the reason."""
    accepted = item.accept_calls or ()
    calls, faults = parse_tool_calls(answer)
    if faults:
        return Judgement(False, f"a call cannot be read: {faults[0]}")
    if len(calls) != len(accepted):
        return Judgement(False, f"{len(calls)} calls instead of {len(accepted)}")
    schemas = _parameters(item.tools)
    objections = [[_objection(call, wanted, schemas) for wanted in accepted] for call in calls]
    if _can_be_paired([[not reason for reason in row] for row in objections]):
        return Judgement(True, "as accepted")
    return Judgement(False, _first_objection(objections))


def fault(item: ExamItem) -> str | None:
    """There must be accepted calls as described above, and tools that are JSON."""
    if item.accept_calls is None:
        return "no accepted calls"
    try:
        _parameters(item.tools)
    except (ValueError, AttributeError, RecursionError) as error:
        return f"its tools cannot be read: {error}"
    if not all(map(_is_accepted_call, item.accept_calls)):
        return 'accepted calls are not written as [{"function": {"argument": [values]}}]'
    return None


def _is_accepted_call(call: Mapping[str, Any]) -> bool:
    return len(call) == 1 and all(
        isinstance(arguments, dict) and all(isinstance(v, list) for v in arguments.values())
        for arguments in call.values()
    )


# -- calls -----------------------------------------------------------------------------------------


def _parameters(tools: Sequence[str]) -> dict[str, Schema]:
    """The parameters' schema of each tool, by its name."""
    schemas = map(function_schema, tools)
    return {str(schema.get("name")): _mapping(schema.get("parameters")) for schema in schemas}


def _objection(
    call: ToolCall, wanted: Mapping[str, Mapping[str, Any]], schemas: Mapping[str, Schema]
) -> str:
    """Why `call` is not the wanted one, '' where it is."""
    ((name, accepted),) = wanted.items()
    if call.name != name:
        return f"calls {call.name!r} instead of {name!r}"
    schema = schemas.get(name, {})
    required = schema.get("required")
    return _argument_objection(
        json.loads(call.arguments),
        accepted,
        _mapping(schema.get("properties")),
        required if isinstance(required, list) else [],
    )


def _argument_objection(
    given: Mapping[str, Any],
    accepted: Mapping[str, Any],
    properties: Schema,
    required: Sequence[Any] = (),
) -> str:
    """Why the given arguments are not accepted, '' where they are."""
    for key, value in given.items():
        if key not in accepted:
            return f"unknown argument {key!r}"
        options = _options(accepted[key])
        if not any(_matches(value, option, _mapping(properties.get(key))) for option in options):
            return f"{key!r} is {_shown(value)}, accepted: {_shown(options)}"
    for key, options in accepted.items():
        if key not in given and (key in required or _MAY_BE_LEFT_OUT not in _options(options)):
            return f"argument {key!r} is missing"
    return ""


def _first_objection(objections: Sequence[Sequence[str]]) -> str:
    """The most telling reason: of a call that fits nothing, one beyond the function's name."""
    for row in objections:
        if all(row):
            return next((reason for reason in row if not reason.startswith("calls ")), row[0])
    return "two calls fit the same accepted call, and none fits another"


def _can_be_paired(fits: Sequence[Sequence[bool]]) -> bool:
    """Whether each row can have a column of its own (Kuhn's augmenting paths)."""
    taken_by: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for column, fit in enumerate(fits[row]):
            if fit and column not in tried:
                tried.add(column)
                if column not in taken_by or place(taken_by[column], tried):
                    taken_by[column] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(fits)))


# -- values ----------------------------------------------------------------------------------------


def _matches(value: Any, accepted: Any, schema: Schema) -> bool:
    """Whether one value is the one accepted value."""
    if isinstance(value, str) and isinstance(accepted, str):
        return _normalise(value) == _normalise(accepted)
    if _is_number(value) and _is_number(accepted):
        kinds = _options(schema.get("type"))
        as_float = isinstance(value, int) or isinstance(accepted, float)
        return value == accepted and (as_float or any(kind in _FLOAT_TYPES for kind in kinds))
    if isinstance(value, list) and isinstance(accepted, list):
        items = _mapping(schema.get("items"))
        return len(value) == len(accepted) and all(
            _matches(element, wanted, items)
            for element, wanted in zip(value, accepted, strict=True)
        )
    if isinstance(value, dict) and isinstance(accepted, dict):
        properties = _mapping(schema.get("properties"))
        return not _argument_objection(value, accepted, properties)
    return type(value) is type(accepted) and bool(value == accepted)


def _options(accepted: Any) -> list[Any]:
    return accepted if isinstance(accepted, list) else [accepted]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _normalise(text: str) -> str:
    return _IGNORED.sub("", text).lower().replace("'", '"')


def _mapping(value: Any) -> Schema:
    return value if isinstance(value, Mapping) else {}


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"


TOOL_CALL = Scorer(
    "tool_call", ACCURACY, higher_is_better=True, generates=True, fault=fault, score=score
)
