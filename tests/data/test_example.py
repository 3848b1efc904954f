import json

import pytest
from hypothesis import given

from lamina.core.errors import DataError
from lamina.data.example import MAX_DEPTH, Example
from tests.data.rows import chat, example, examples

CALL = {"type": "function", "function": {"name": "add", "arguments": '{"b": 2, "a": 1}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@given(examples())
def test_writing_and_reading_back_is_the_identity(given_example):
    row = json.loads(json.dumps(given_example.to_json()))
    again = Example.from_json(row)
    assert again == given_example
    assert again.content_digest() == given_example.content_digest()


def test_the_digest_covers_what_decides_training_and_nothing_else():
    plain = example()
    assert example(accept=["2"], choices=["1", "2"], kind="sum").content_digest() == (
        plain.content_digest()
    )
    others = [example(answer="3"), example("What is 1+1?"), example(tools=[TOOL])]
    others.append(Example(text="2"))
    assert len({row.content_digest() for row in [plain, *others]}) == 5


def test_prompt_opening_and_answer():
    messages = [("system", "s"), ("user", "q1"), ("assistant", "a1"), ("user", "q2")]
    messages += [("assistant", "a2"), ("user", "bye")]
    row = Example.from_json({"messages": [{"role": r, "content": c} for r, c in messages]})
    assert [m.content for m in row.opening] == ["s", "q1"]
    assert [m.content for m in row.prompt] == ["s", "q1", "a1", "q2"]
    assert row.answer.content == "a2"
    assert Example(text="once").prompt == ()
    assert Example(text="once").answer is None


def test_openai_tool_calls_and_tools_keep_their_own_order():
    row = chat(tools=[{"name": "add", "description": None, "parameters": {"type": "object"}}])
    row["messages"][1] = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    read = Example.from_json(row)
    assert read.answer.tool_calls[0].arguments == '{"b":2,"a":1}'
    assert read.answer.content == ""
    assert read.tools == Example.from_json(chat(tools=[TOOL])).tools
    assert read.tools == Example.from_json(chat(tools=json.dumps([TOOL]))).tools
    assert json.loads(read.tools[0]) == TOOL


def test_the_flat_form_of_a_tool_is_understood():
    flat = {"type": "function", "name": "add", "parameters": {"type": "object"}}
    assert (
        Example.from_json(chat(tools=[flat])).tools == Example.from_json(chat(tools=[TOOL])).tools
    )


def test_a_call_without_arguments_has_an_empty_object():
    for arguments in (None, "", {}, "{}"):
        row = chat()
        function = {"name": "now", "arguments": arguments}
        row["messages"][1]["tool_calls"] = [{"function": function}]
        assert Example.from_json(row).answer.tool_calls[0].arguments == "{}"


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert example(question=parts).prompt[0].content == "one two"


def test_one_accepted_answer_may_stand_alone_and_numbers_are_written_out():
    assert example(accept="2").accept == ("2",)
    assert example(accept=[2, "two", 2.5]).accept == ("2", "two", "2.5")


def test_accepted_calls_keep_their_own_order():
    calls = [{"add": {"b": [2], "a": [1, ""]}}]
    expected = '[{"add":{"b":[2],"a":[1,""]}}]'
    assert example(accept_calls=calls).accept_calls == expected
    assert example(accept_calls=json.dumps(calls)).accept_calls == expected
    assert example(accept_calls=[]).accept_calls == "[]"
    assert example().accept_calls is None


def nested(depth):
    return {"a": nested(depth - 1)} if depth else 1


def tool_call(function):
    row = chat()
    row["messages"][1]["tool_calls"] = [{"type": "function", "function": function}]
    return row


def message(**fields):
    row = chat()
    row["messages"][0] = fields
    return row


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({}, "messages: missing, not a list"),
        ({"messages": "hello"}, "messages: text, not a list"),
        ({"messages": ["hello"]}, "messages[0]: text, not an object"),
        (message(role="boss", content="x"), "messages[0]: unknown role 'boss'"),
        (message(content="x"), "messages[0]: unknown role None"),
        (message(role="user"), "messages[0]: content: missing"),
        (message(role="user", content=5), "messages[0]: content: a number, not text"),
        (message(role="user", content=[{"type": "image_url"}]), "content holds 'image_url'"),
        (message(role="user", content="x", name=5), "name: a number, not text"),
        (message(role="user", content="x\ud83d"), "half of a surrogate pair (\\ud83d)"),
        (message(role="user", content="x", tool_calls=[CALL]), "only the assistant calls"),
        (tool_call({"arguments": "{}"}), "tool_calls[0]: no function name"),
        (tool_call({"name": "f", "arguments": "{'a': 1}"}), "arguments of 'f' are not JSON"),
        (tool_call({"name": "f", "arguments": "[1]"}), "are a list, not an object"),
        (tool_call({"name": "f", "arguments": '"abc"'}), "are text, not an object"),
        (tool_call({"name": "f", "arguments": {"a": "\ud83d"}}), "half of a surrogate pair"),
        (tool_call({"name": "f", "arguments": {"a": float("nan")}}), "cannot be written as JSON"),
        (tool_call({"name": "f", "arguments": nested(MAX_DEPTH + 1)}), "nested deeper than"),
        (chat(tools="add"), "tools: text, not a list"),
        (chat(tools={"name": "add"}), "tools: an object, not a list"),
        (chat(tools=["add"]), "tools[0]: text, not a function's schema"),
        (chat(tools=[{"type": "function", "function": {}}]), "tools[0]: the function has no name"),
        (chat(tools=[{"name": "f", "parameters": "x"}]), "parameters: text, not a JSON schema"),
        (chat(tools=[{"type": "web", "function": {"name": "f"}}]), "a tool of type 'web'"),
        (chat(accept=[["2"]]), "accept: a list, not text"),
        (chat(choices={"a": 1}), "choices: an object, not text"),
        (chat(choices=["1", "2"], answer_index=2), "answer_index: 2 with 2 choices"),
        (chat(choices=["1", "2"], answer_index=True), "answer_index: True"),
        (chat(accept_calls=[{"add": {"a": 1}}]), "accept_calls: not written as"),
        (chat(accept_calls=["add"]), "accept_calls: not written as"),
        ({"text": 5}, "text: a number, not text"),
    ],
)
def test_what_is_wrong_with_a_row_is_named(row, fault):
    with pytest.raises(DataError) as caught:
        Example.from_json(row)
    assert len(caught.value.faults) == 1
    assert fault in caught.value.faults[0]


def test_all_faults_of_a_row_are_reported_at_once():
    row = chat(tools=3, accept={})
    row["messages"] += [{"role": "boss", "content": 1}, 7]
    with pytest.raises(DataError) as caught:
        Example.from_json(row)
    assert len(caught.value.faults) == 5
