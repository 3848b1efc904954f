"""The API over the real engine and a pico base."""

import concurrent.futures
import json

import pytest

from lamina.flows.hosting import Host, with_limits
from lamina.serve.engine import Limits
from lamina.web.app import create_app
from tests.web.test_server import post, until  # noqa: F401 - `post` is a fixture

MODELS = ("pico", "support", "sales")


@pytest.fixture
def engine(seed_store):
    """The real engine over the pico base."""
    made = with_limits(Limits(cache_tokens=4096))(seed_store, seed_store.bases()["pico"])
    yield made
    made.drain(0)


@pytest.fixture
def world(make, engine):
    return make(engine)


def test_stacks_answer_together_as_they_do_alone(world):
    def ask(model):
        return world.said(model=model, temperature=0.8, seed=3, max_tokens=24, n=2)["choices"]

    alone = {model: ask(model) for model in MODELS}
    assert len({str(choices) for choices in alone.values()}) == 3
    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        together = list(pool.map(ask, MODELS * 3))
    assert together == [alone[model] for model in MODELS * 3]


def test_a_prompt_that_was_read_is_not_read_again(world):
    first = world.said("tell me " * 20, max_tokens=2, temperature=0)
    second = world.said("tell me " * 20, max_tokens=2, temperature=0)
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert first["choices"] == second["choices"]
    several = world.said("tell you " * 20, max_tokens=2, n=3)
    assert several["usage"]["prompt_tokens_details"]["cached_tokens"] < 16
    assert several["usage"]["completion_tokens"] <= 6


def test_a_random_model_keeps_to_a_schema_and_calls_what_it_must(world):
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["a", "b"]}, "count": {"enum": [1, 22, 333]}},
        "required": ["kind", "count"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    tool = {"type": "function", "function": {"name": "add", "parameters": schema}}
    for seed in range(6):
        drawn = {"temperature": 1.5, "seed": seed, "max_tokens": 300}
        (choice,) = world.said(response_format=form, **drawn)["choices"]
        found = json.loads(choice["message"]["content"])
        assert found["kind"] in ("a", "b")
        assert found["count"] in (1, 22, 333)
        assert choice["finish_reason"] == "stop"
        asked = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
        (choice,) = world.said(**asked, **drawn)["choices"]
        (call,) = choice["message"]["tool_calls"]
        assert call["function"]["name"] == "add"
        assert json.loads(call["function"]["arguments"])["kind"] in ("a", "b")


def test_logprobs_are_those_of_what_was_said(world):
    (choice,) = world.said(temperature=0, max_tokens=5, logprobs=True, top_logprobs=3)["choices"]
    for told in choice["logprobs"]["content"]:
        assert told["logprob"] == pytest.approx(told["top_logprobs"][0]["logprob"])
        assert [t["logprob"] for t in told["top_logprobs"]] == sorted(
            (t["logprob"] for t in told["top_logprobs"]), reverse=True
        )


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_blocks(serve, engine, post, stream):  # noqa: F811
    with serve(engine) as world:
        free = engine.stats().blocks_free
        asking = post(world.url, stream=stream, max_tokens=1500, temperature=1.9)
        until(lambda: engine.stats().tokens_out > 3)
        assert engine.stats().running == 1
        asking.leave()
        until(lambda: engine.stats().running == 0)
        until(lambda: world.records)
        said = world.records[0]["completion_tokens"]
        assert engine.stats().blocks_free <= free
        assert said < 1500
        assert world_answers(world)


def test_a_client_that_leaves_while_its_prompt_is_read(serve, seed_store, post):  # noqa: F811
    engine = with_limits(Limits(cache_tokens=4096, pass_tokens=1))(
        seed_store, seed_store.bases()["pico"]
    )
    with serve(engine) as world:
        content = "tell me the user asks " * 150
        asking = post(world.url, stream=True, messages=[{"role": "user", "content": content}])
        until(lambda: engine.stats().tokens_in > 40)
        asking.leave()
        until(lambda: engine.stats().running == 0)
        until(lambda: world.records)
        assert world.records[0]["completion_tokens"] == 0
        assert engine.stats().tokens_in < world.records[0]["prompt_tokens"]
        assert world_answers(world)


def test_a_stack_that_is_removed_while_it_answers(serve, store, post):  # noqa: F811
    """What runs goes on with the layers in memory; whoever asks then is told that it is gone."""
    from lamina.flows.remove import remove

    engine = with_limits(Limits(cache_tokens=4096))(store, store.bases()["pico"])
    asked = {"stream": True, "max_tokens": 600, "temperature": 1.9, "seed": 5}

    def contents(response):
        lines = [line for line in response.read().decode().split("\n\n") if "content" in line]
        return [json.loads(line[6:])["choices"][0]["delta"] for line in lines]

    with serve(engine, store=store) as world:
        whole = contents(post(world.url, **asked).answer())
        before = engine.stats().tokens_out
        asking = post(world.url, **asked)
        until(lambda: engine.stats().tokens_out > before)
        assert engine.stats().running == 1
        remove(store, ["support"])
        store.collect(grace_seconds=0)
        assert engine.stats().running == 1
        assert post(world.url, **asked).answer().status == 404
        assert contents(asking.answer()) == whole


def world_answers(world):
    return world.said(max_tokens=1)["usage"]["completion_tokens"] == 1


def test_each_base_has_an_engine_and_is_loaded_when_it_is_asked(store, tmp_path):
    from starlette.testclient import TestClient

    from lamina.core.report import Silent
    from lamina.flows.bases import pull
    from lamina.web.settings import Settings
    from tests.pico import pico_base

    pull(
        store,
        str(pico_base(tmp_path / "q", family="qwen3", hidden=32, layers=1)),
        "other",
        Silent(),
    )
    host = Host(store, with_limits(Limits(cache_tokens=512)))
    client = TestClient(create_app(host, Settings()), base_url="http://localhost")
    assert host.sure() == []
    for model in ("support", "other", "sales"):
        body = {"model": model, "prompt": "the user", "max_tokens": 2}
        assert client.post("/v1/completions", json=body).status_code == 200
    assert sorted(host.stats()) == ["other", "pico"]
    assert host.drain(5)
