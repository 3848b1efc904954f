"""Grammars, token by token."""

import json

import numpy as np
import pytest

from lamina.core.errors import UsageError
from lamina.serve.constrain import KEPT, Grammars
from lamina.tokens.call_form import HERMES, CallForm
from lamina.tokens.tools import parse_tool_calls
from tests.pico import pico_base

VOCABULARY, STOPS = 416, (2, 0)
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 22]}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
ADD = json.dumps({"type": "function", "function": {"name": "add", "parameters": SCHEMA}})
NONE = json.dumps({"type": "function", "function": {"name": "now"}})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from lamina.bases.load import load_tokenizer

    return load_tokenizer(pico_base(tmp_path_factory.mktemp("pico") / "base", vocab=VOCABULARY))


@pytest.fixture
def grammars(tokenizer):
    return Grammars(tokenizer, STOPS, VOCABULARY)


def allowed(state):
    mask = np.zeros(VOCABULARY // 32, dtype=np.int32)
    state.fill(mask)
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def takes(state, ids):
    """Whether the state lets these tokens through, and then an end."""
    for token in ids:
        if state.ended or token not in allowed(state):
            return False
        state.push(token)
    return state.ended or set(STOPS) <= allowed(state)


def walk(state, seed, most=400):
    """A random answer that the state lets through."""
    chance, ids = np.random.default_rng(seed), []
    while not state.ended and len(ids) < most:
        token = int(chance.choice(sorted(allowed(state))))
        if token in STOPS:
            break
        state.push(token)
        ids.append(token)
    return ids


def test_whatever_is_drawn_is_json_of_the_schema(grammars, tokenizer):
    for seed in range(20):
        found = json.loads(tokenizer.decode(walk(grammars.schema(SCHEMA), seed)))
        assert found["a"] in (1, 22)
        assert found["b"] in (True, False)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"a": 1, "b": true}', True),
        ('{"a": 22, "b": false}', True),
        ('{"a": 2, "b": true}', False),
        ('{"a": 1}', False),
        ('{"a": 1, "b": true, "c": 1}', False),
        ('{"a":  1, "b": true}', False),
        ('{"a": 1, "b": true} and more', False),
    ],
)
def test_what_a_schema_lets_through(grammars, tokenizer, text, fits):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert takes(grammars.schema(SCHEMA), ids) is fits


def test_calls_are_such_as_exams_read(grammars, tokenizer):
    for seed in range(20):
        state = grammars.calls(HERMES, [ADD, NONE], several=False)
        calls, faults = parse_tool_calls(tokenizer.decode(walk(state, seed)))
        assert faults == ()
        (call,) = calls
        assert call.name in ("add", "now")
        if call.name == "now":
            assert json.loads(call.arguments) == {}
        else:
            assert json.loads(call.arguments)["a"] in (1, 22)


def test_several_calls_only_where_they_are_wanted(grammars, tokenizer):
    one = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    ids = tokenizer.encode(f"{one}\n{one}", add_special_tokens=False)
    assert takes(grammars.calls(HERMES, [NONE], several=True), ids)
    assert not takes(grammars.calls(HERMES, [NONE], several=False), ids)


def test_calls_or_an_answer_of_a_schema(grammars, tokenizer):
    for text in (
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        '{"a": 1, "b": true}',
    ):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert takes(grammars.calls(HERMES, [NONE], several=True, otherwise=SCHEMA), ids)


def test_any_text_but_calls_of_a_schema(grammars, tokenizer):
    def fits(text, **more):
        state = grammars.text_or_calls(HERMES, [ADD, NONE], **{"several": True} | more)
        return takes(state, tokenizer.encode(text, add_special_tokens=False))

    right = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": true}}\n</tool_call>'
    assert fits("the user asks <b> {")
    assert fits(f"the user asks\n{right}\n{right}\nand so on")
    assert not fits(right.replace("1", "2"))
    assert not fits(right.replace("add", "sub"))
    assert fits(right, several=False)
    assert not fits(f"{right}\n{right}"[:-20].replace("1", "3"), several=True)
    assert grammars.text_or_calls(CallForm("{", "", "}"), [ADD], several=True) is None


def test_a_control_token_that_begins_a_call_stays_one_token(grammars, tokenizer):
    form = CallForm('<|endoftext|>{"name": "', '", "parameters": ', "}")
    state = grammars.calls(form, [NONE], several=False)
    (marker,) = tokenizer.encode("<|endoftext|>", add_special_tokens=False)
    assert allowed(state) == {marker}


def test_states_of_one_grammar_do_not_touch_each_other(grammars):
    one, two = grammars.schema(SCHEMA), grammars.schema(SCHEMA)
    before = allowed(two)
    one.push(min(allowed(one)))
    assert allowed(two) == before
    assert allowed(grammars.schema(SCHEMA)) == before


def test_a_grammar_is_made_anew_elsewhere_after_what_was_said(grammars, tokenizer):
    ids = walk(grammars.schema(SCHEMA), 5)
    elsewhere = Grammars(tokenizer, STOPS, VOCABULARY)
    for said in range(len(ids)):
        here = grammars.schema(SCHEMA)
        for token in ids[:said]:
            here.push(token)
        there = elsewhere.of(here.grammar, ids[:said])
        assert allowed(there) == allowed(here)
        assert takes(there, ids[said:])


def test_a_token_that_was_not_allowed_ends_it_with_a_fault(grammars):
    state = grammars.schema(SCHEMA)
    assert state.fault is None
    state.push(next(iter(set(range(5, VOCABULARY)) - allowed(state))))
    assert state.fault
    assert allowed(state) <= set(STOPS)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "blah"},
        {"$ref": "https://example.org/schema"},
        {"type": "string", "pattern": "(?=a)b"},
        {"type": "string", "pattern": "("},
        {"enum": ["\ud800"]},
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(grammars, schema):
    with pytest.raises(UsageError, match="JSON schema cannot be used"):
        grammars.schema(schema)


def test_what_a_client_says_about_white_space_is_not_heard(grammars, tokenizer):
    loose = {**SCHEMA, "x-guidance": {"whitespace_flexible": True}}
    ids = tokenizer.encode('{"a":   1, "b": true}', add_special_tokens=False)
    assert not takes(grammars.schema(loose), ids)


def test_only_so_many_grammars_are_kept(grammars):
    for number in range(KEPT + 5):
        grammars.schema({"const": number})
    assert len(grammars._compiled) == KEPT


def test_tokens_are_spelled_in_bytes(grammars, tokenizer):
    ids = tokenizer.encode("aß€😀", add_special_tokens=False)
    assert b"".join(grammars.spelled(token) for token in ids).decode() == "aß€😀"
