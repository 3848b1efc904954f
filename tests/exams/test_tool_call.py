import json

import pytest

from lamina.core.digest import canonical_json
from lamina.core.errors import DataError
from lamina.data.example import Example, Message, ToolCall
from lamina.data.exams import ExamItem, items_from_examples
from lamina.exams.scorers.tool_call import TOOL_CALL, judge
from tests.exams.fakes import Parrot, exam_item, user

WEATHER = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"type": "string"},
            "days": {"type": "integer"},
            "limit": {"type": "number"},
            "maybe": {"type": ["number", "null"]},
            "points": {"type": "array", "items": {"type": "number"}},
            "filter": {"type": "object", "properties": {"top": {"type": "float"}}},
        },
        "required": ["city"],
    },
}


def question(*accepted, tools=(WEATHER,)):
    texts = tuple(json.dumps({"type": "function", "function": tool}) for tool in tools)
    return exam_item("q", accept_calls=accepted, tools=texts)


def calls(*named):
    return "\n".join(
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
        for name, arguments in named
    )


def weather(**accepted):
    return question({"get_weather": {"city": ["Paris"], **accepted}})


def judged(item, **arguments):
    return judge(item, calls(("get_weather", {"city": "Paris", **arguments})))


def test_the_accepted_call_is_right():
    assert judged(weather(unit=["celsius"]), unit="celsius") == (True, "as accepted")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("It is sunny.", "0 calls instead of 1"),
        (calls(("get_weather", {"city": "Paris"})) * 2, "2 calls instead of 1"),
        ("<tool_call>\n{oops\n</tool_call>", "a call cannot be read"),
        (calls(("weather", {"city": "Paris"})), "calls 'weather' instead of 'get_weather'"),
        (calls(("Get_Weather", {"city": "Paris"})), "calls 'Get_Weather'"),
        (calls(("get_weather", {})), "argument 'city' is missing"),
        (calls(("get_weather", {"city": "Rome"})), '\'city\' is "Rome", accepted: ["Paris"]'),
        (calls(("get_weather", {"city": "Paris", "day": 1})), "unknown argument 'day'"),
        (calls(("get_weather", {"city": "Paris", "unit": "K"})), "unknown argument 'unit'"),
        (calls(("get_weather", {"city": ["Paris"]})), "'city' is [\"Paris\"]"),
        (calls(("get_weather", {"city": None})), "'city' is null"),
    ],
)
def test_a_wrong_answer_says_why(answer, reason):
    right, why = judge(weather(), answer)
    assert not right
    assert reason in why


@pytest.mark.parametrize("city", ["paris", "PARIS", " Pa-ris. ", "P*a_r/i^s,"])
def test_strings_forgive_case_spaces_and_punctuation(city):
    assert judged(weather(), city=city).right


def test_quotes_are_alike():
    assert judged(weather(unit=["the 'best'"]), unit='The "best"').right
    assert not judged(weather(unit=["the best"]), unit='The "best"').right


@pytest.mark.parametrize(
    ("key", "accepted", "given", "right"),
    [
        ("days", 5, 5, True),
        ("days", 5, 6, False),
        ("days", 5, 5.0, False),  # the schema says integer
        ("days", 5, "5", False),
        ("days", 1, True, False),
        ("days", True, 1, False),
        ("limit", 5.0, 5, True),
        ("limit", 5, 5.0, True),  # the schema says number
        ("maybe", 5, 5.0, True),
        ("limit", 2.5, 2.5, True),
        ("limit", 2.5, 2.50001, False),
        ("unit", True, True, True),
        ("unit", True, False, False),
        ("unit", True, "true", False),
        ("unit", None, None, True),
        ("unit", None, "null", False),
        ("points", [1.0, 2.0], [1, 2], True),
        ("points", [1, 2], [1.0, 2.0], True),
        ("points", [1, 2], [2, 1], False),
        ("points", [1, 2], [1, 2, 3], False),
        ("points", [], [], True),
        ("points", ["New York"], ["new-york"], True),
        ("points", [[1], [2]], [[1], [2]], True),
        ("filter", {"top": [1], "by": ["name", "date"]}, {"top": 1.0, "by": "Date"}, True),
        ("filter", {"top": [1], "by": ["name"]}, {"top": 1}, False),
        ("filter", {"top": [1], "by": ["name", ""]}, {"top": 1}, True),
        ("filter", {"top": [1]}, {"top": 1, "by": "name"}, False),
        ("filter", {"top": [{"a": [1, 2]}]}, {"top": {"a": 2}}, True),
        ("filter", {"top": [{"a": 2}]}, {"top": {"a": 2}}, True),
        ("filter", {"top": [{"a": 2}]}, {"top": {"a": 3}}, False),
        ("filter", {"tags": [["x", "y"]], "by": [[]]}, {"tags": ["X", "y"], "by": []}, True),
        ("filter", {"tags": [["x", "y"]]}, {"tags": ["y", "x"]}, False),
        ("points", [{"a": ["x", "y"]}, {"a": ["z"]}], [{"a": "y"}, {"a": "z"}], True),
        ("points", [{"a": ["x", "y"]}, {"a": ["z"]}], [{"a": "z"}, {"a": "y"}], False),
    ],
)
def test_values_follow_the_leaderboards_type_rules(key, accepted, given, right):
    assert judged(weather(**{key: [accepted]}), **{key: given}).right is right


def test_without_a_schema_only_an_integer_may_stand_for_a_float():
    def bare(accepted):
        return question({"f": {"x": [accepted]}}, tools=())

    assert judge(bare(5.0), calls(("f", {"x": 5}))).right
    assert not judge(bare(5), calls(("f", {"x": 5.0}))).right


def test_an_argument_may_be_left_out_only_where_that_is_accepted():
    assert judged(weather(unit=["", "celsius"])).right
    assert judged(weather(unit=["", "celsius"]), unit="Celsius").right
    assert not judged(weather(unit=["celsius"])).right


def test_a_required_argument_may_not_be_left_out_even_so():
    item = question({"get_weather": {"city": ["", "Paris"]}})
    assert judge(item, calls(("get_weather", {}))).reason == "argument 'city' is missing"
    lenient = question({"get_weather": {"city": ["", "Paris"]}}, tools=())
    assert judge(lenient, calls(("get_weather", {}))).right


def test_the_order_of_calls_does_not_matter_but_their_number_does():
    item = question({"f": {"x": [1]}}, {"f": {"x": [2]}}, {"g": {}})
    named = [("g", {}), ("f", {"x": 2}), ("f", {"x": 1})]
    assert judge(item, calls(*named)).right
    assert not judge(item, calls(*named[:2])).right
    assert not judge(item, calls(named[0], named[1], named[1])).right


def test_overlapping_accepted_calls_are_paired_as_a_whole():
    # x = 1 fits both; taking the first one for it would leave x = 2 without a partner
    item = question({"f": {"x": [1, 2]}}, {"f": {"x": [1]}})
    assert judge(item, calls(("f", {"x": 1}), ("f", {"x": 2}))).right
    assert judge(item, calls(("f", {"x": 2}), ("f", {"x": 1}))).right
    assert not judge(item, calls(("f", {"x": 2}), ("f", {"x": 2}))).right


def test_the_reason_of_several_calls_is_the_most_telling_one():
    item = question({"f": {"x": [1]}}, {"g": {"y": [1]}})
    answer = calls(("f", {"x": 1}), ("g", {"y": 7}))
    assert judge(item, answer).reason == "'y' is 7, accepted: [1]"


def test_no_accepted_call_means_that_none_may_be_made():
    item = question()
    assert judge(item, "I cannot help with that.").right
    assert judge(item, calls(("get_weather", {"city": "Paris"}))).reason == "1 calls instead of 0"


def test_names_with_dots_stay_as_they_are():
    item = question({"math.add": {"a": [1]}})
    assert judge(item, calls(("math.add", {"a": 1}))).right
    assert not judge(item, calls(("math_add", {"a": 1}))).right


def test_a_strange_schema_does_no_harm():
    odd = {"name": "f", "parameters": {"properties": [1], "required": "x", "type": None}}
    assert judge(question({"f": {"x": [1]}}, tools=(odd,)), calls(("f", {"x": 1}))).right


def test_the_scorer_asks_and_judges():
    items = [weather(), question({"f": {"x": [1]}})]
    examinee = Parrot({"q": calls(("get_weather", {"city": "Paris"}))})
    found = TOOL_CALL.examine(items, examinee, 500, lambda done, total: None)
    assert [item.value for item in found] == [1, 0]
    assert all(item.answer.startswith("<tool_call>") for item in found)


def test_questions_without_accepted_calls_are_refused_by_number():
    with pytest.raises(DataError, match="question 1: no accepted calls"):
        TOOL_CALL.examine([exam_item("q")], Parrot(), 5, lambda done, total: None)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"accept_calls": ({},)}, "are not written as"),
        ({"accept_calls": ({"f": 1},)}, "are not written as"),
        ({"accept_calls": ({"f": {"x": 1}},)}, "are not written as"),
        ({"accept_calls": ({"f": {}, "g": {}},)}, "are not written as"),
        ({"accept_calls": (), "tools": ("oops",)}, "tools cannot be read"),
        ({"accept_calls": (), "tools": ("[1]",)}, "tools cannot be read"),
        ({"accept_calls": (), "tools": ("[" * 100_000,)}, "tools cannot be read"),
    ],
)
def test_hostile_questions_are_refused_not_run(fields, reason):
    with pytest.raises(DataError, match=reason):
        TOOL_CALL.examine([ExamItem(**fields)], Parrot(), 5, lambda done, total: None)


def test_a_reference_answer_is_right_about_itself():
    arguments = {
        "a": {"tags": ["x", "y"], "deep": {"b": [1, 2.5, None]}},
        "n": [],
        "s": "",
        "t": True,
    }
    answer = Message(
        role="assistant",
        content="",
        tool_calls=(ToolCall(name="f", arguments=canonical_json(arguments).decode()),),
    )
    (item,) = items_from_examples([Example(messages=(*user("q"), answer))], "tool_call")
    assert judge(item, calls(("f", arguments))).right
    assert not judge(item, calls(("f", arguments | {"t": False}))).right
