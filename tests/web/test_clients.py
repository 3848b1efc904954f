"""Clients that people use, unchanged, against a server on a port."""

import json
import os
import subprocess
import sys

import pytest

from tests.web.engine import Fake, forever

pytest.importorskip("openai", reason="the official client: pip install 'lamina[dev]'")

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"enum": [1, 2]}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}
ASKED = [{"role": "user", "content": "the user asks"}]


@pytest.fixture
def client():
    """Makes the official client for a world."""
    import openai

    def made(world, key="none", **options):
        return openai.OpenAI(
            base_url=f"{world.url}/v1", api_key=key, max_retries=0, timeout=20, **options
        )

    return made


def test_chat_whole_and_streamed(serve, client):
    with serve() as world, client(world) as api:
        whole = api.chat.completions.create(model="support", messages=ASKED, logprobs=True)
        text = whole.choices[0].message.content
        assert text == "user\nthe user asks\nassistant\n"
        assert whole.usage.completion_tokens == len(whole.choices[0].logprobs.content)
        stream = api.chat.completions.create(
            model="support", messages=ASKED, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
        assert "".join(pieces) == text
        assert len([piece for piece in pieces if piece]) > 3
        assert chunks[-1].usage == whole.usage
        with api.chat.completions.stream(model="support", messages=ASKED) as events:
            assert events.get_final_completion().choices[0].message.content == text
    assert whole._request_id in {record["id"] for record in world.records}


def test_tools_and_parsed_answers(serve, client):
    import pydantic

    class Answer(pydantic.BaseModel):
        good: bool

    engine = Fake(forever)
    with serve(engine) as world, client(world) as api:
        called = api.chat.completions.create(
            model="support", messages=ASKED, tools=[ADD], tool_choice="required", max_tokens=200
        )
        (call,) = called.choices[0].message.tool_calls
        assert json.loads(call.function.arguments)["a"] in (1, 2)
        back = [
            *ASKED,
            called.choices[0].message,
            {"role": "tool", "tool_call_id": call.id, "content": "3"},
        ]
        again = api.chat.completions.create(
            model="support", messages=back, tools=[ADD], tool_choice="none", max_tokens=5
        )
        assert again.choices[0].finish_reason == "length"
        parsed = api.chat.completions.parse(
            model="support", messages=ASKED, response_format=Answer, max_tokens=200
        )
        assert isinstance(parsed.choices[0].message.parsed, Answer)


def test_texts_and_models(serve, client):
    with serve() as world, client(world) as api:
        assert [model.id for model in api.models.list()] == ["pico", "sales", "support"]
        assert api.models.retrieve("support").owned_by == "lamina"
        found = api.completions.create(model="sales", prompt=["the user", "the tool"], logprobs=2)
        assert [choice.text for choice in found.choices] == ["the user", "the tool"]
        streamed = api.completions.create(model="sales", prompt="the user", stream=True)
        assert "".join(part.choices[0].text for part in streamed) == "the user"


def test_errors_are_the_clients_own(serve, client):
    import openai

    with serve() as world, client(world) as api:
        with pytest.raises(openai.NotFoundError, match="nothing is called"):
            api.chat.completions.create(model="nothing", messages=ASKED)
        with pytest.raises(openai.BadRequestError, match="temprature"):
            api.chat.completions.create(
                model="support", messages=ASKED, extra_body={"temprature": 1}
            )
        from lamina.web.keys import NewKey

        secret = world.keys.add(NewKey("ann", requests_per_minute=1))
        with pytest.raises(openai.AuthenticationError):
            api.models.list()
        with client(world, secret) as known:
            known.models.list()
            with pytest.raises(openai.RateLimitError):
                known.models.list()


def test_an_error_in_a_stream_is_raised(serve, client):
    import openai

    from lamina.core.errors import LayerError

    with serve(Fake(lambda request: [5, LayerError("gone")])) as world, client(world) as api:
        stream = api.chat.completions.create(model="support", messages=ASKED, stream=True)
        with pytest.raises(openai.APIError, match="gone"):
            list(stream)


@pytest.mark.slow
def test_the_llm_command(serve, tmp_path):
    pytest.importorskip("llm", reason="the llm command: pip install 'lamina[dev]'")
    with serve() as world:
        (tmp_path / "extra-openai-models.yaml").write_text(
            f"- model_id: mine\n  model_name: support\n  api_base: {world.url}/v1\n"
        )

        def llm(*words):
            done = subprocess.run(
                [sys.executable, "-m", "llm", *words],
                env={**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        said = llm("-m", "mine", "the user asks", "-s", "be short")
        assert "the user asks" in said
        assert "be short" in said
        assert llm("-m", "mine", "the user asks", "--no-stream", "-o", "max_tokens", "2").strip()
    assert {r["status"] for r in world.records} == {200}
