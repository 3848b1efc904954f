"""`/v1/completions` and `/v1/models`."""

import json

import pytest

from lamina.stack.resolve import resolve
from lamina.web.keys import NewKey
from tests.web.engine import Fake, forever


def ask(world, **body):
    given = {"model": "support", "prompt": "the user asks"} | body
    return world.client.post("/v1/completions", json=given)


def test_a_text_is_continued(world):
    found = ask(world).json()
    assert found["object"] == "text_completion"
    (choice,) = found["choices"]
    assert choice == {
        "index": 0,
        "text": "the user asks",
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert world.engine.requests[0].max_new_tokens == 16


def test_several_prompts_with_several_choices_each(world):
    found = ask(world, prompt=["the user", "the tool"], n=2).json()
    assert [c["text"] for c in found["choices"]] == ["the user"] * 2 + ["the tool"] * 2
    assert [c["index"] for c in found["choices"]] == [0, 1, 2, 3]
    read = {r.prompt for r in world.engine.requests}
    assert found["usage"]["prompt_tokens"] == sum(map(len, read))


def test_token_ids_and_control_tokens(world):
    ask(world, prompt=[5, 6, 7])
    ask(world, prompt=[[5, 6], [2]])
    ask(world, prompt="<|im_end|>")
    one, two, three, text = (request.prompt for request in world.engine.requests)
    assert (one, two, three) == ((5, 6, 7), (5, 6), (2,))
    assert 2 not in text
    assert ask(world, prompt=[400]).status_code == 400


def test_a_stream_says_the_same(world):
    streamed = ask(world, stream=True, logprobs=1, stream_options={"include_usage": True})
    lines = streamed.text.strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    choices = [c for e in events for c in e["choices"]]
    assert "".join(c["text"] for c in choices) == "the user asks"
    assert choices[-1]["finish_reason"] == "stop"
    assert events[-1]["usage"]["completion_tokens"] > 0
    told = [c["logprobs"] for c in choices]
    whole = ask(world, logprobs=1).json()["choices"][0]["logprobs"]
    for key in ("tokens", "text_offset", "token_logprobs"):
        assert [value for one in told for value in one[key]] == whole[key]
    assert "".join(whole["tokens"]) == "the user asks"
    assert whole["text_offset"][1] == len(whole["tokens"][0])


def test_stop_and_length(make):
    world = make(Fake(forever))
    assert ask(world, stop="asks").json()["choices"][0]["text"] == "the user "
    assert ask(world, max_tokens=1).json()["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    "body",
    [
        {"echo": True},
        {"suffix": "x"},
        {"best_of": 3},
        {"prompt": ""},
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": "a " * 1_000_000},
        {"prompt": [1, "a"]},
        {"prompt": [-1]},
        {"prompt": ["a"] * 9, "n": 2},
        {"logprobs": True},
        {"temperature": -1},
    ],
)
def test_refused(world, body):
    answered = ask(world, **body)
    assert answered.status_code == 400, answered.text
    assert answered.json()["error"]["message"]


def test_models_are_stacks_versions_and_bases(world):
    found = world.client.get("/v1/models").json()["data"]
    assert [m["id"] for m in found] == ["pico", "sales", "support"]
    support = next(m for m in found if m["id"] == "support")
    digest = resolve(world.store, "support").digest
    assert support["stack"] == digest
    assert support["created"] > 1_600_000_000
    assert all(world.client.get(f"/v1/models/{m['id']}").json() == m for m in found)
    for name in ("support", "@" + digest[7:19], digest):
        one = world.client.get(f"/v1/models/{name}").json()
        assert (one["id"], one["stack"]) == (name, digest)
    assert world.client.get("/v1/models/other").status_code == 404


def test_only_the_stacks_that_the_server_was_started_with(make):
    world = make(stacks=["support"])
    assert [m["id"] for m in world.client.get("/v1/models").json()["data"]] == ["support"]
    assert world.chat().status_code == 200
    assert world.chat(model="@" + resolve(world.store, "support").digest[7:]).status_code == 200
    refused = world.chat(model="sales")
    assert refused.status_code == 404
    assert "it serves: support" in refused.json()["error"]["message"]
    secret = world.keys.add(NewKey("shop", stacks=("pico",)))
    refused = world.chat(model="sales", headers={"authorization": f"Bearer {secret}"})
    assert refused.status_code == 404
    assert "support" not in refused.json()["error"]["message"]


def test_a_stack_over_another_base_is_refused_with_what_to_do(store, make, tmp_path):
    from lamina.core.report import Silent
    from lamina.flows.bases import pull
    from tests.pico import pico_base

    pull(store, str(pico_base(tmp_path / "other", hidden=32, layers=1, seed=7)), "other", Silent())
    world = make(store=store, base="other")
    assert [m["id"] for m in world.client.get("/v1/models").json()["data"]] == ["other"]
    refused = world.chat(model="support")
    assert refused.status_code == 404
    message = refused.json()["error"]["message"]
    assert "support stands on base pico" in message
    assert "lamina serve support" in message


def test_a_stack_that_is_removed_while_in_use(store, make):
    import threading

    from lamina.flows.remove import remove

    world = make(Fake(forever, delay=0.005), store=store)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(world.chat(max_tokens=100)))
    thread.start()
    while not world.engine.requests:
        threading.Event().wait(0.01)
    remove(store, ["support"])
    store.collect(grace_seconds=0)
    thread.join()
    assert answers[0].status_code == 200
    assert world.chat().status_code == 404
    assert [m["id"] for m in world.client.get("/v1/models").json()["data"]] == ["pico", "sales"]


def test_a_name_that_moves_is_answered_by_what_it_means_now(store, make):
    from lamina.core.names import Name
    from lamina.store.refs import ANYTHING

    world = make(store=store)
    before = world.said()["system_fingerprint"]
    store.tag(Name("support"), store.resolve(Name("sales")), expected=ANYTHING)
    assert world.said()["system_fingerprint"] == world.said(model="sales")["system_fingerprint"]
    assert world.said()["system_fingerprint"] != before
