"""What an arena sends, and what it keeps back."""

import pytest

from lamina.core.errors import UsageError
from lamina.data.example import Example, Message, ToolCall
from lamina.exams import tasks
from lamina.flows.arena import Match, _may_be_sent
from lamina.flows.contestants import stays_here, to_openai
from lamina.flows.questions import exam_of


def test_calls_and_their_results_have_an_id_in_common():
    calls = ToolCall(name="a", arguments="{}"), ToolCall(name="b", arguments="{}")
    turns = [
        Message(role="user", content="go"),
        Message(role="assistant", content="", tool_calls=calls),
        Message(role="tool", content="1", name="a"),
        Message(role="tool", content="2", name="b"),
    ]
    sent = to_openai(turns)
    assert [call["id"] for call in sent[1]["tool_calls"]] == ["call_0", "call_1"]
    assert [turn["tool_call_id"] for turn in sent[2:]] == ["call_0", "call_1"]


@pytest.mark.parametrize("host", [None, "127.0.0.1", "localhost", "::1"])
def test_these_stay_here(host):
    assert stays_here(host)


@pytest.mark.parametrize("host", ["api.openai.com", "127.0.0.1.evil.org", "10.0.0.1", "0.0.0.0"])
def test_these_do_not(host):
    assert not stays_here(host)


def test_withheld_questions_are_sent_only_when_told():
    row = Example(
        messages=(
            Message(role="user", content="2 plus 2?"),
            Message(role="assistant", content="4"),
        )
    )
    spec, data = exam_of("sums", "exact", [row], private=True)
    exams = [tasks.load(spec, "layer", data)]
    with pytest.raises(UsageError, match=r"would be sent to far\.example"):
        _may_be_sent(exams, "far.example", Match())
    _may_be_sent(exams, "far.example", Match(send_private=True))
    _may_be_sent(exams, "127.0.0.1", Match())
    spec, data = exam_of("sums", "exact", [row])
    _may_be_sent([tasks.load(spec, "layer", data)], "far.example", Match())
