"""`/v1/chat/completions` over an engine that echoes."""

import json

import pytest

from lamina.core.digest import short
from lamina.stack.resolve import resolve
from tests.web.engine import Fake, forever

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "adds",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}


def says(text):
    """An engine that says a text, in the pico tokenizer's tokens."""

    def script(request):
        return TOKENS(text)

    return Fake(script)


def TOKENS(text):  # noqa: N802 - set by the fixture below
    raise AssertionError


@pytest.fixture(autouse=True)
def _tokens(seed_store, monkeypatch):
    from lamina.stack.compile import base_format

    fmt = base_format(seed_store, resolve(seed_store, "pico"))
    monkeypatch.setitem(
        globals(), "TOKENS", lambda text: fmt.tokenizer.encode(text, add_special_tokens=False)
    )


def events(response):
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_an_answer_has_openais_form(world):
    found = world.said(temperature=0)
    digest = resolve(world.store, "support").digest
    assert found["object"] == "chat.completion"
    assert found["model"] == "support"
    assert found["system_fingerprint"] == short(digest)
    (choice,) = found["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "user\nthe user asks\nassistant\n",
        "refusal": None,
    }
    assert choice["finish_reason"] == "stop"
    (asked,) = world.engine.requests
    usage = found["usage"]
    assert usage["prompt_tokens"] == len(asked.prompt)
    assert usage["completion_tokens"] == len([t for t in asked.prompt if t > 4])
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert asked.stack.digest == digest


def test_a_stream_says_the_same(world):
    whole = world.said(n=2, seed=1)["choices"]
    streamed = world.chat(n=2, seed=1, stream=True, stream_options={"include_usage": True})
    found = events(streamed)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert {event["object"] for event in found} == {"chat.completion.chunk"}
    assert found[-1]["choices"] == []
    assert found[-1]["usage"]["completion_tokens"] > 0
    assert all(event["usage"] is None for event in found[:-1])
    for index in (0, 1):
        mine = [c for e in found for c in e["choices"] if c["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        text = "".join(c["delta"].get("content") or "" for c in mine)
        assert text == whole[index]["message"]["content"]
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == ["stop"]


def test_parameters_reach_the_engine(world):
    world.said(
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.1,
        max_completion_tokens=3,
        seed=5,
        n=2,
    )
    one, two = world.engine.requests
    drawn = one.sampling
    assert (drawn.temperature, drawn.top_p, drawn.top_k, drawn.min_p) == (0.5, 0.9, 7, 0.1)
    assert (drawn.presence_penalty, drawn.frequency_penalty) == (0.5, -0.5)
    assert drawn.repetition_penalty == 1.1
    assert one.max_new_tokens == 3
    assert one.sampling.seed != two.sampling.seed
    world.said(seed=5)
    assert world.engine.requests[-1].sampling.seed == one.sampling.seed
    assert world.engine.requests[-1].sampling.temperature == 1.0


def test_the_length_ends_it(world):
    (choice,) = world.said(max_tokens=2)["choices"]
    assert choice["finish_reason"] == "length"
    assert world.said(max_tokens=2)["usage"]["completion_tokens"] == 2


def test_a_stop_string_ends_it_and_frees_the_engine(make):
    world = make(Fake(forever))
    (choice,) = world.said(stop=["asks"])["choices"]
    assert choice["message"]["content"] == "user\nthe user "
    assert choice["finish_reason"] == "stop"
    assert world.engine.stats().running == 0


def test_logprobs(world):
    (choice,) = world.said(logprobs=True, top_logprobs=2, max_tokens=3)["choices"]
    told = choice["logprobs"]["content"]
    assert len(told) == 3
    assert "".join(t["token"] for t in told) == choice["message"]["content"]
    assert bytes(told[0]["bytes"]).decode() == told[0]["token"]
    assert [t["logprob"] for t in told[0]["top_logprobs"]] == [-0.5, -1.5]
    found = events(world.chat(logprobs=True, max_tokens=3, stream=True))
    chunks = [c["logprobs"]["content"] for e in found for c in e["choices"] if c.get("logprobs")]
    assert [t["token"] for chunk in chunks for t in chunk] == [t["token"] for t in told]


@pytest.mark.parametrize("stream", [False, True])
def test_calls_are_parsed_as_exams_parse_them(make, stream):
    text = 'let me see\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    world = make(says(text))
    answered = world.chat(tools=[ADD], stream=stream)
    if stream:
        deltas = [c["delta"] for e in events(answered) for c in e["choices"]]
        content = "".join(d.get("content") or "" for d in deltas)
        calls = [call for d in deltas for call in d.get("tool_calls", ())]
        ending = events(answered)[-1]["choices"][0]["finish_reason"]
        assert [call["index"] for call in calls] == [0]
    else:
        (choice,) = answered.json()["choices"]
        content, calls = choice["message"]["content"], choice["message"]["tool_calls"]
        ending = choice["finish_reason"]
        assert "index" not in calls[0]
    assert content == "let me see"
    assert [call["function"] for call in calls] == [{"name": "add", "arguments": '{"a":1,"b":2}'}]
    assert calls[0]["type"] == "function"
    assert calls[0]["id"]
    assert ending == "tool_calls"


def test_what_is_no_call_stays_content(make):
    text = 'a <tool_call>\n{"name": 3}\n</tool_call> b'
    world = make(says(text))
    (choice,) = world.said(tools=[ADD])["choices"]
    assert choice["message"]["content"] == text
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"


def test_without_tools_or_with_none_nothing_is_parsed(make):
    text = '{"name": "add", "arguments": {}}'
    world = make(says(text))
    for more in ({}, {"tools": [ADD], "tool_choice": "none"}):
        (choice,) = world.said(**more)["choices"]
        assert choice["message"]["content"] == text
    prompts = [request.prompt for request in world.engine.requests]
    assert prompts[0] == prompts[1]


def test_one_call_where_only_one_is_wanted(make):
    one = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    world = make(says(one + "\n" + one))
    (both,) = world.said(tools=[ADD])["choices"]
    assert len(both["message"]["tool_calls"]) == 2
    (single,) = world.said(tools=[ADD], parallel_tool_calls=False)["choices"]
    assert len(single["message"]["tool_calls"]) == 1


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_demanded_call_comes_whatever_the_model_says(make, choice):
    world = make(closing(Fake(lambda request: forever(request))))
    other = {"type": "function", "function": {"name": "zero"}}
    (found,) = world.said(tools=[other, ADD], tool_choice=choice)["choices"]
    assert found["finish_reason"] == "tool_calls"
    (call,) = found["message"]["tool_calls"]
    if isinstance(choice, dict):
        assert call["function"]["name"] == "add"
        assert set(json.loads(call["function"]["arguments"])) == {"a", "b"}
    assert found["message"]["content"] is None


def test_a_strict_tool_is_called_as_its_schema_says_or_not_at_all(make):
    text = 'well <tool_call>\n{"name": "add", "arguments": {"a": "one"}}\n</tool_call>'
    strict = {"type": "function", "function": {**ADD["function"], "strict": True}}
    (loose,) = make(says(text)).said(tools=[ADD])["choices"]
    assert json.loads(loose["message"]["tool_calls"][0]["function"]["arguments"]) == {"a": "one"}
    (found,) = make(closing(says(text))).said(tools=[strict])["choices"]
    (call,) = found["message"]["tool_calls"]
    assert set(json.loads(call["function"]["arguments"])) == {"a", "b"}
    assert found["message"]["content"] == "well"


def closing(engine):
    """Prefers what ends JSON soon."""
    engine.prefer = [t for text in ("}", "]", '"', ",", "0") for t in TOKENS(text)]
    return engine


@pytest.mark.parametrize(
    ("form", "check"),
    [
        ({"type": "json_object"}, lambda v: isinstance(v, dict)),
        (
            {
                "type": "json_schema",
                "json_schema": {
                    "name": "x",
                    "strict": True,
                    "schema": {
                        "type": "object",
                        "properties": {"answer": {"enum": ["yes", "no"]}},
                        "required": ["answer"],
                        "additionalProperties": False,
                    },
                },
            },
            lambda v: v["answer"] in ("yes", "no"),
        ),
    ],
)
def test_the_answer_has_the_form_that_was_asked_for(make, form, check):
    world = make(closing(Fake(forever)))
    (choice,) = world.said(response_format=form)["choices"]
    assert check(json.loads(choice["message"]["content"]))
    assert choice["finish_reason"] == "stop"
    world.said(response_format=form, tools=[ADD])


def test_messages_of_every_kind_are_read(world):
    world.said(
        messages=[
            {"role": "developer", "content": "be short"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "annotations": [],
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "add", "arguments": '{"a": 1}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
        ],
        tools=[ADD],
    )
    (asked,) = world.engine.requests
    served = world.host.base_of(asked.stack)
    text = served.format.decode(asked.prompt, special=True)
    assert "be short" in text.split("<|im_end|>")[0]
    assert "ab<|im_end|>" in text
    assert '"name": "add"' in text
    assert "<|im_start|>tool\n3<|im_end|>" in text


REFUSED = {
    "an unknown key": ({"temprature": 1}, "temprature", "unknown_parameter"),
    "an unknown key in a message": (
        {"messages": [{"role": "user", "content": "x", "images": []}]},
        "images",
        "unknown_parameter",
    ),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "content",
        None,
    ),
    "no messages": ({"messages": []}, "messages", None),
    "no content": ({"messages": [{"role": "user", "content": None}]}, "content", None),
    "half a pair": ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages", None),
    "too many choices": ({"n": 99}, "n", None),
    "an empty stop": ({"stop": ["x", ""]}, "stop[1]", None),
    "a biased token": ({"logit_bias": {"5": 1}}, "logit_bias", None),
    "two lengths": ({"max_tokens": 1, "max_completion_tokens": 2}, "not both", None),
    "a schema of an unknown type": (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "blah"}},
            }
        },
        "blah",
        None,
    ),
    "a tool that is not there": (
        {"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "sub"}}},
        "sub",
        None,
    ),
    "a call without tools": ({"tool_choice": "required"}, "no tools", None),
    "a long conversation": (
        {"messages": [{"role": "user", "content": "word " * 600}]},
        "tokens, and base pico reads 512",
        "context_length_exceeded",
    ),
    "a huge one": (
        {"messages": [{"role": "user", "content": "word " * 700_000}]},
        "3500000 characters, and base pico reads 512",
        "context_length_exceeded",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_with_what_is_wrong(world, what):
    body, said, code = REFUSED[what]
    raw = json.dumps({"model": "support", "messages": [{"role": "user", "content": "x"}]} | body)
    answered = world.client.post(
        "/v1/chat/completions", content=raw, headers={"content-type": "application/json"}
    )
    assert answered.status_code == 400, answered.text
    error = answered.json()["error"]
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] == code
    assert world.engine.requests == []


def test_what_openais_clients_send_beside_is_taken(world):
    world.said(user="u", store=False, metadata={"a": "b"}, parallel_tool_calls=True, n=None)


@pytest.mark.parametrize("model", ["nothing", "support:v9", "@123456", "sha256:" + "0" * 64])
def test_an_unknown_model_is_404(world, model):
    answered = world.chat(model=model)
    assert answered.status_code == 404
    assert answered.json()["error"]["code"] == "model_not_found"


def test_an_engines_error_is_told(make):
    from lamina.core.errors import LayerError

    world = make(Fake(lambda request: [5, LayerError("the layer is gone")]))
    assert world.chat().status_code == 400
    lines = world.chat(stream=True).text.split("\n\n")
    assert "the layer is gone" in lines[-2]
    assert "[DONE]" not in lines[-2]


def test_too_long_in_time(make):
    world = make(Fake(forever, delay=0.01, context=10**6), timeout_seconds=0.2)
    assert world.chat().status_code == 504
    assert '"code": "timeout"' in world.chat(stream=True).text
    assert world.engine.stats().running == 0
