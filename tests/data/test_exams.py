import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.core.errors import DataError
from lamina.data.example import Example
from lamina.data.exams import (
    ExamItem,
    default_scorers,
    exact_calls,
    from_jsonl,
    items_from_examples,
    read_exam_file,
    to_jsonl,
)
from tests.data.rows import accepted_calls, calling, example, examples, saying, texts, tools


@st.composite
def items(draw):
    choices = tuple(draw(st.lists(texts, max_size=3)))
    calls = draw(st.none() | accepted_calls)
    return ExamItem(
        messages=tuple(draw(st.lists(calling | saying, max_size=2))),
        tools=tuple(draw(st.lists(tools, max_size=2))),
        answer=draw(st.none() | texts),
        accept=tuple(draw(st.lists(texts, max_size=2))),
        choices=choices,
        right=draw(st.sampled_from(range(len(choices)))) if choices else None,
        accept_calls=None if calls is None else tuple(calls),
        example=draw(st.none() | examples()),
    )


def calling_row(name="add", arguments=None, **columns):
    row = example("1 + 2?", "x", tools=[{"name": name}], **columns).to_json()
    function = {"name": name, "arguments": arguments or {"a": 1}}
    row["messages"][-1] = {"role": "assistant", "content": None, "tool_calls": [function]}
    return Example.from_json(row)


@given(st.lists(items(), max_size=3))
def test_writing_and_reading_back_is_the_identity(given_items):
    data = to_jsonl(given_items)
    assert from_jsonl(data) == tuple(given_items)
    assert to_jsonl(from_jsonl(data)) == data
    assert data.count(b"\n") == len(given_items)


def test_loss_keeps_the_whole_row_of_any_kind():
    rows = [example(), Example(text="once upon"), calling_row()]
    found = items_from_examples(rows, "loss")
    assert [item.example for item in found] == rows
    assert found[0].prompt == rows[0].prompt


def test_exact_takes_the_answer_where_no_row_says_what_is_right():
    found = items_from_examples([example(answer="2"), calling_row()], "exact")
    assert [item.accept for item in found] == [("2",)]
    assert found[0].messages == example().prompt


def test_exact_asks_only_rows_that_say_what_is_right_where_some_do():
    rows = [example("a", "It is 2.", accept=["2", "two"]), example("b", "free text")]
    (item,) = items_from_examples(rows, "exact")
    assert item.accept == ("2", "two")
    assert item.answer == "It is 2."


@pytest.mark.parametrize(
    ("answer", "accept"),
    [
        ("3 apples, 4 pears.\n#### 1,072", ("1,072",)),
        ("so it is 1/2", ("so it is 1/2",)),
        ("#### none, so 7", ("none, so 7",)),
        ("7 in all\n#### none", ("7 in all\n#### none",)),
    ],
)
def test_numeric_takes_the_marked_number_or_the_whole_answer(answer, accept):
    (item,) = items_from_examples([example(answer=answer)], "numeric")
    assert item.accept == accept


def test_numeric_leaves_out_rows_without_a_number():
    rows = [example("a", "none"), example("b", "H2O"), example("c", "4"), calling_row()]
    (item,) = items_from_examples(rows, "numeric")
    assert item.answer == "4"


def test_choice_finds_the_right_one_by_index_or_by_the_answer():
    choices = ["1", "2", "3"]
    rows = [
        example("a", "B", choices=choices, answer_index=1),
        example("b", "3", choices=choices),
        example("c", "The third", choices=choices, accept=["3"]),
        example("d", "unknown", choices=choices),
        example("e", "1", choices=["1"]),
        example("f", "1", choices=["1", "1"]),
    ]
    found = items_from_examples(rows, "choice")
    assert [(item.right, item.choices) for item in found] == [
        (right, tuple(choices)) for right in (1, 2, 2)
    ]


def test_tool_call_accepts_exactly_the_rows_own_calls():
    (item,) = items_from_examples(
        [calling_row(arguments={"a": 1, "b": [2, 3]}), example()], "tool_call"
    )
    assert item.accept_calls == ({"add": {"a": [1], "b": [[2, 3]]}},)
    assert json.loads(item.answer) == {"name": "add", "arguments": {"a": 1, "b": [2, 3]}}
    assert item.tools == calling_row().tools


def test_the_keys_of_an_object_list_their_alternatives_in_their_turn():
    (call,) = calling_row(arguments={"at": {"x": 1, "in": [{"y": 2}]}}).answer.tool_calls
    assert exact_calls([call]) == ({"add": {"at": [{"x": [1], "in": [[{"y": [2]}]]}]}},)


def test_accepted_calls_win_over_the_rows_own_and_may_be_none():
    accepted = [{"add": {"a": [1, ""]}}]
    rows = [calling_row(accept_calls=accepted), example(answer="I cannot", accept_calls=[])]
    found = items_from_examples(rows, "tool_call")
    assert [item.accept_calls for item in found] == [tuple(accepted), ()]


@pytest.mark.parametrize("scorer", ["exact", "numeric", "choice", "tool_call"])
def test_rows_that_give_no_question_are_refused(scorer):
    with pytest.raises(DataError, match=f"gives a question for the scorer '{scorer}'"):
        items_from_examples([Example(text="once upon a time in 1999")], scorer)


def test_scorers_follow_from_the_rows():
    plain = [example(f"q{n}", "some words") for n in range(4)]
    marked = [example(f"m{n}", f"so\n#### {n}") for n in range(4)]
    calls = [calling_row(f"f{n}") for n in range(4)]
    assert default_scorers([]) == ("loss",)
    assert default_scorers(plain) == ("loss",)
    assert default_scorers(marked + plain[:3]) == ("loss", "numeric")
    assert default_scorers(marked + plain) == ("loss",)
    assert default_scorers(calls + plain[:3]) == ("loss", "tool_call")
    assert default_scorers(calls + plain) == ("loss",)
    assert default_scorers([*plain, example(accept=["2"])]) == ("loss", "exact")
    assert default_scorers([*plain, example(choices=["1", "2"])]) == ("loss", "choice")
    assert default_scorers([Example(text="#### 5")]) == ("loss",)
    cat, dog = (Example(text=text, image="AAAA") for text in ("a cat", "a dog"))
    assert default_scorers([cat, dog]) == ("denoise", "retrieve")
    assert default_scorers([cat, cat]) == ("denoise",)


@given(st.lists(examples(), min_size=1, max_size=4))
def test_every_default_scorer_has_a_question(rows):
    for scorer in default_scorers(rows):
        assert items_from_examples(rows, scorer)


def test_all_faults_of_an_exam_are_reported_at_once():
    lines = [
        "not json",
        "[1]",
        '{"acept": ["2"]}',
        '{"choices": ["a", "b"], "right": 2}',
        '{"answer": 5, "example": {"messages": 1}}',
        '{"example": 3}',
        to_jsonl([ExamItem(accept=("2",))]).decode().strip(),
        "[" * 100_000,
    ]
    with pytest.raises(DataError) as caught:
        from_jsonl("\n".join(lines).encode())
    expected = [
        "line 1: not JSON",
        "line 2: a list, not an object",
        "line 3: unknown key 'acept'",
        "line 4: right: 2 with 2 choices",
        "line 5: answer: a number, not text",
        "line 5: example: messages: a number, not a list",
        "line 6: example: a number, not an object",
        "line 8: not JSON",
    ]
    assert len(caught.value.faults) == len(expected)
    for fault, start in zip(caught.value.faults, expected, strict=True):
        assert fault.startswith(start)


def test_an_exam_file_is_read_back(tmp_path):
    found = items_from_examples([example(accept=["2"])], "exact")
    path = tmp_path / "exam.jsonl"
    path.write_bytes(to_jsonl(found))
    assert read_exam_file(path) == found


def test_an_exam_file_that_is_none_is_refused(tmp_path):
    path = tmp_path / "exam.jsonl"
    with pytest.raises(DataError, match="No such file"):
        read_exam_file(path)
    path.write_bytes(b"\n")
    with pytest.raises(DataError, match="holds no question"):
        read_exam_file(path)
    path.write_bytes(b'{"question": 1}\n')
    with pytest.raises(DataError, match="unknown key 'question'"):
        read_exam_file(path)
