"""Content and calls in an answer that comes piece by piece."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.data.example import ToolCall
from lamina.tokens.reading import AnswerReader
from lamina.tokens.tools import CALL_CLOSE, CALL_OPEN, parse_tool_calls

CALL = f'{CALL_OPEN}\n{{"name": "add", "arguments": {{"a": 1}}}}\n{CALL_CLOSE}'
ADD = ToolCall(name="add", arguments='{"a":1}')
BARE = '{"name": "add", "parameters": {"a": 1}}'
PARTS = [
    "a",
    " ",
    "\n",
    "<",
    "<tool",
    CALL_OPEN,
    CALL_CLOSE,
    CALL,
    "<think>",
    "</think>",
    "{",
    BARE,
]


def read(pieces):
    """(content, calls, faults) of an answer that comes in these pieces."""
    reader = AnswerReader()
    content = "".join(reader.push(piece) for piece in pieces)
    rest = reader.end()
    return content + rest.content, rest.calls, rest.faults


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("just text", "just text", ()),
        (CALL, "", (ADD,)),
        (f"let me see\n{CALL}", "let me see", (ADD,)),
        (f"{CALL}\n{CALL}", "", (ADD, ADD)),
        (f"  {BARE}", "  ", (ADD,)),
        (f"[TOOL_CALLS] [{BARE}]", "", (ADD,)),
        ("{not a call", "{not a call", ()),
        ("a < b and a <tool", "a < b and a <tool", ()),
        (f"<think>shall I {CALL}?</think>\nno", f"<think>shall I {CALL}?</think>\nno", ()),
        (f"<think>yes</think>\n{CALL}", "<think>yes</think>\n", (ADD,)),
        (f'{CALL_OPEN}{{"name": 1}}', f'{CALL_OPEN}{{"name": 1}}', ()),
        ("", "", ()),
    ],
)
def test_content_and_calls(text, content, calls):
    for pieces in ([text], list(text)):
        said, found, _ = read(pieces)
        assert (said, found) == (content, calls)


def test_text_is_told_as_soon_as_it_can_be_no_call():
    reader = AnswerReader()
    assert reader.push("hello wor") == "hello wor"
    assert reader.push("ld <to") == "ld"
    assert reader.push("x") == " <tox"
    assert reader.push("<tool_call>") == ""


@given(st.lists(st.sampled_from(PARTS), max_size=8), st.data())
def test_pieces_do_not_matter_and_nothing_gets_lost(parts, data):
    text = "".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = read([text])
    content, calls, faults = read(pieces)
    assert (calls, faults) == parse_tool_calls(text)
    if not calls or faults:
        assert content == text
    else:
        assert text.startswith(content)
    assert (content, calls, faults) == whole
