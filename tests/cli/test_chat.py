"""Talking to stacks: one answer, or a conversation through a pipe."""

import io

import pytest


def said(lines):
    return io.StringIO("\n".join(lines))


def test_once_prints_the_answer_alone(shared):
    result = shared("chat", "sums", "--once", "what is 1 plus 2?", "--max-tokens", 8).done()
    found = shared("chat", "sums", "--once", "what is 1 plus 2?", "--max-tokens", 8, "--json")
    assert found.done().json["answer"] == result.out.removesuffix("\n")
    assert found.json["stack"] == shared("show", "sums", "--json").json["stack"]


def test_a_seed_decides_what_is_drawn(shared):
    options = ("--once", "tell", "--temperature", 1.5, "--top-p", 0.95, "--max-tokens", 12)
    one, same, other = (shared("chat", "pico", *options, "--seed", s).done().out for s in (1, 1, 2))
    assert one == same != other


def test_a_conversation_through_a_pipe(shared):
    lines = ["hello", "/stack times", "again", "/history", "/reset", "/history", "/quit", "never"]
    result = shared("chat", "sums", "--max-tokens", 4, "--system", "short", stdin=said(lines))
    out = result.done().out
    assert out.count("user: ") == 2
    assert "user: hello" in out
    assert "user: again" in out
    assert out.count("assistant: ") == 2
    assert out.count("system: short") == 2
    assert "never" not in out
    assert "> " not in out  # no prompt where nobody sees it
    assert "now times" in result.err


def test_mistakes_in_a_conversation_do_not_end_it(shared):
    lines = ["/stack nobody", "/stack", "/nonsense", "/help", "", "hello", "/history"]
    result = shared("chat", "sums", "--max-tokens", 4, stdin=said(lines)).done()
    assert "nothing is called 'nobody'" in result.err
    assert "unknown: /nonsense" in result.err
    assert "/stack NAME" in result.err
    assert "user: hello" in result.out


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_conversation_in_another_encoding_is_refused(shared, errors):
    said = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8", errors=errors)
    shared("chat", "sums", stdin=said).refused("is not UTF-8")


@pytest.mark.parametrize("name", ["nobody", "sums:v9", "@000000"])
def test_nobody_answers(shared, name):
    shared("chat", name, "--once", "hello").refused()


def test_a_message_longer_than_the_model_reads_is_refused(shared):
    shared("chat", "sums", "--once", "word " * 4000).refused("the base reads 2048")
