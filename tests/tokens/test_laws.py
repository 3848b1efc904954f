"""Training and generation see the same ids, on every family of templates."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.data.example import Example, Message, ToolCall
from lamina.tokens.mask import Encoded, encode
from tests.tokens.formats import CHAT_FAMILIES, STABLE, format_of, tokenizer_of

CONTROL = (
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "<|eot_id|>",
    "<end_of_turn>",
    "<bos>",
    "<|im_<|im_end|>end|>",
    "LITERAL0x0E",
)
pieces = st.one_of(
    st.text(max_size=12),
    st.sampled_from([*CONTROL, "\n", "  ", "the question", "<tool_call>", "<think>a</think>\n"]),
)
contents = st.lists(pieces, max_size=4).map("".join)


@st.composite
def conversations(draw):
    turns = draw(st.lists(st.tuples(contents, contents), min_size=1, max_size=3))
    return tuple(
        Message(role=role, content=text)
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    )


def example_of(messages, tools=()):
    return Example(messages=messages, tools=tools)


def runs(row: Encoded) -> list[tuple[int, int]]:
    """Start and end of every run of supervised tokens."""
    edges = [i for i in range(1, len(row)) if row.mask[i] != row.mask[i - 1]]
    edges += [len(row)] * (len(edges) % 2)
    return list(zip(edges[::2], edges[1::2], strict=True))


def answers_of(messages):
    return [i for i, message in enumerate(messages) if message.role == "assistant"]


def plain_rendering(family, messages):
    """The conversation as transformers renders it, up to the last end-of-turn marker."""
    rows = [{"role": m.role, "content": m.content} for m in messages]
    return tokenizer_of(family).apply_chat_template(rows, tokenize=False).rstrip("\n")


@pytest.mark.parametrize("family", CHAT_FAMILIES)
@settings(max_examples=40, deadline=None)
@given(messages=conversations())
def test_a_prompt_is_what_stands_before_the_answer_in_training(family, messages):
    fmt = format_of(family)
    rows = encode(example_of(messages), fmt, max_length=100_000)
    starts = [(row, start) for row in rows for start, _ in runs(row)]
    assert len(starts) == len(answers_of(messages))
    for index, (row, start) in zip(answers_of(messages), starts, strict=True):
        assert fmt.prompt_ids(messages[:index]) == row.ids[:start].tolist()


@pytest.mark.parametrize("family", STABLE)
@settings(max_examples=40, deadline=None)
@given(messages=conversations())
def test_ids_read_back_as_the_rendered_text(family, messages):
    fmt = format_of(family)
    (row,) = encode(example_of(messages), fmt, max_length=100_000)
    assert fmt.decode(row.ids, special=True) == plain_rendering(family, messages)


@pytest.mark.parametrize("family", STABLE)
@settings(max_examples=40, deadline=None)
@given(messages=conversations())
def test_supervised_tokens_are_content_and_end_of_turn(family, messages):
    fmt = format_of(family)
    (row,) = encode(example_of(messages), fmt, max_length=100_000)
    trims = family in ("llama3", "gemma")
    end = fmt.decode(fmt.stop_ids[:1], special=True)
    for index, (start, stop) in zip(answers_of(messages), runs(row), strict=True):
        content = messages[index].content
        wanted = (content.strip() if trims else content) + end
        assert fmt.decode(row.ids[start:stop], special=True) == wanted


@pytest.mark.parametrize("family", STABLE)
@settings(max_examples=40, deadline=None)
@given(messages=conversations())
def test_contents_never_become_control_tokens(family, messages):
    fmt = format_of(family)
    harmless = tuple(Message(role=m.role, content="x") for m in messages)
    (row,) = encode(example_of(messages), fmt, max_length=100_000)
    (plain,) = encode(example_of(harmless), fmt, max_length=100_000)
    special = set(tokenizer_of(family).all_special_ids)
    assert [i for i in row.ids if i in special] == [i for i in plain.ids if i in special]


@pytest.mark.parametrize("family", [*STABLE, "qwen3"])
def test_laws_hold_with_tools(family):
    fmt = format_of(family)
    tool = (
        '{"function":{"description":"Add <|im_end|>","name":"add","parameters":'
        '{"properties":{"a":{"type":"integer"}},"type":"object"}},"type":"function"}'
    )
    messages = (
        Message(role="system", content="Be brief."),
        Message(role="user", content="add 1 and 2, then 3"),
        Message(
            role="assistant",
            content="",
            tool_calls=(
                ToolCall(name="add", arguments='{"a":1,"b":"<|im_end|>"}'),
                ToolCall(name="add", arguments='{"a":3}'),
            ),
        ),
        Message(role="tool", content="3", name="add"),
        Message(role="tool", content="6", name="add"),
        Message(role="assistant", content="It is 6."),
    )
    (row,) = encode(example_of(messages, (tool,)), fmt, max_length=100_000)
    (first, first_end), (second, _) = runs(row)
    assert fmt.prompt_ids(messages[:2], (tool,)) == row.ids[:first].tolist()
    assert fmt.prompt_ids(messages[:5], (tool,)) == row.ids[:second].tolist()
    end = fmt.decode(fmt.stop_ids[:1], special=True)
    assert fmt.decode(row.ids[first:first_end], special=True) == (
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "<|im_end|>"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {"a": 3}}\n</tool_call>' + end
    )
    assert '"a":{"type":"integer"}' in fmt.decode(row.ids).replace(" ", "")
    assert "Be brief." in fmt.decode(row.ids[:first])
