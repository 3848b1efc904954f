import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.core.digest import compact_json
from lamina.data.example import ToolCall
from lamina.tokens.tools import (
    parse_tool_calls,
    render_answer,
    render_tool_calls,
    tools_preamble,
    visible_text,
)

texts = st.one_of(st.text(max_size=8), st.sampled_from(["</tool_call>", "<tool_call>", '"}\n']))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), texts).filter(
        lambda value: value not in (float("inf"), float("-inf"))
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
calls = st.builds(
    lambda name, arguments: ToolCall(name=name, arguments=compact_json(arguments)),
    st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_.-]{0,12}", fullmatch=True),
    st.dictionaries(texts, values, max_size=3),
)
ADD = ToolCall(name="add", arguments='{"a":1}')


@given(st.lists(calls, max_size=3), st.sampled_from(["", "I will call.", "a < b\n"]))
def test_what_is_rendered_reads_back(made, content):
    assert parse_tool_calls(render_answer(content, made)) == (tuple(made), ())


@given(st.text(alphabet='<>/tool_call{}[]":, \nname123', max_size=60))
def test_reading_never_raises(text):
    found, faults = parse_tool_calls("<tool_call>" + text)
    assert found or faults


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>',
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}',
        '<think>hm <tool_call></think>\n<tool_call>{"name":"add","arguments":{"a":1}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>',
        '{"name": "add", "parameters": {"a": 1}}',
        '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}]',
    ],
)
def test_calls_of_every_dialect_are_read(text):
    assert parse_tool_calls(text) == ((ADD,), ())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('<tool_call>{"name": "add", "arguments": {"a": 1}</tool_call>', "call 1"),
        ('<tool_call>{"arguments": {}}</tool_call>', "no function name"),
        ('<tool_call>{"name": "add", "arguments": [1]}</tool_call>', "not an object"),
        ('<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>', "NaN"),
        ('<tool_call>{"name": "add", "arguments": {"a": 1e999}}</tool_call>', "call 1"),
        ('<tool_call>{"name": "add", "arguments": {}} and more', "missing"),
        ("<tool_call>" + "[" * 100_000, "call 1"),
        ("[TOOL_CALLS] add(1)", "no call"),
    ],
)
def test_unreadable_calls_are_faults(text, fault):
    found, faults = parse_tool_calls(text)
    assert found == ()
    assert len(faults) == 1
    assert fault in faults[0]


def test_a_fault_does_not_hide_the_calls_beside_it():
    text = "<tool_call>nonsense</tool_call>\n" + render_tool_calls([ADD])
    found, faults = parse_tool_calls(text)
    assert found == (ADD,)
    assert len(faults) == 1


@pytest.mark.parametrize("text", ["hello", '{"name": "Bob"}', "[1, 2]", "[]", "{broken", ""])
def test_text_without_calls_has_none(text):
    assert parse_tool_calls(text) == ((), ())


def test_reasoning_is_not_part_of_the_visible_answer():
    assert visible_text("<think>\nhm\n</think>\n\nyes") == "yes"
    assert visible_text("yes <think>no</think>") == "yes <think>no</think>"


def test_the_preamble_is_compact_and_keeps_every_schema():
    schema = {
        "type": "function",
        "function": {
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
            "name": "add",
            "description": "Add two",
            "strict": True,
        },
    }
    text = tools_preamble((compact_json(schema),))
    line = text.split("<tools>\n")[1].split("\n</tools>")[0]
    assert json.loads(line) == schema["function"]
    assert line.startswith('{"name":"add","description":"Add two","parameters":{')
    assert ", " not in line
    assert len(text) - len(line) < 200
