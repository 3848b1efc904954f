"""Who answers in an arena: a stack here, or a model behind an OpenAI-compatible endpoint.

Each question is asked by itself, greedily, and timed from the asking to the last token.
"""

import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from lamina.core.errors import DataError, LaminaError, MissingPartError, UsageError
from lamina.data.example import Message, ToolCall
from lamina.exams.examinee import Prompt
from lamina.serve.engine import Engine
from lamina.serve.open import open_engine
from lamina.serve.request import Event, Finished, Request, Token
from lamina.stack.compile import base_format
from lamina.stack.resolve import ResolvedStack
from lamina.store.layout import Store
from lamina.tokens.tools import render_answer

RETRIES = 5
"""Of a request that an endpoint did not take: too many at once, a fault of its own."""
TIMEOUT = 120.0
"""Seconds that an endpoint may take for one answer."""
_HERE = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Said:
    """One answer."""

    text: str
    seconds: float
    tokens_in: int | None = None
    """Of the prompt, as the contestant's own tokenizer counts; None where it does not say."""
    tokens_out: int | None = None
    fault: str | None = None
    """Why there is no answer."""


class Contestant(Protocol):
    """Somebody who answers."""

    @property
    def label(self) -> str:
        """What people call it."""

    @property
    def host(self) -> str | None:
        """The machine that questions are sent to; None where they stay here."""

    def ask(self, prompt: Prompt, max_new_tokens: int) -> Said:
        """One answer; from any thread. A question that cannot be put gives a fault."""

    def close(self) -> None:
        """Let go of what it holds."""


class StackContestant:
    """A stack of this store, through the engine that serves."""

    host = None

    def __init__(self, store: Store, stack: ResolvedStack, engine: Engine | None = None) -> None:
        """`engine`: one over the same base, which it then shares and leaves open."""
        self.stack = stack
        self.label = stack.label
        self._format = base_format(store, stack)
        self.engine = engine or open_engine(store, stack.base)
        self._own = engine is None

    def ask(self, prompt: Prompt, max_new_tokens: int) -> Said:
        """See `Contestant.ask`."""
        heard: list[int] = []
        ended = threading.Event()
        last: list[Finished] = []

        def listen(event: Event) -> None:
            if isinstance(event, Token):
                heard.append(event.id)
            else:
                last.append(event)
                ended.set()

        began = time.perf_counter()
        try:
            ids = self._format.prompt_ids(prompt.messages, prompt.tools)
            request = Request(self.stack, tuple(ids), max_new_tokens, self._format.stop_ids)
            self.engine.submit(request, listen)
        except (DataError, UsageError) as error:  # the base cannot read it
            return Said("", time.perf_counter() - began, fault=error.message)
        ended.wait()
        seconds = time.perf_counter() - began
        if last[0].error is not None:
            raise last[0].error
        text = self._format.decode(heard)
        for stop in self._format.stop_strings:
            text = text.partition(stop)[0]
        return Said(text, seconds, last[0].prompt_tokens, last[0].new_tokens)

    def close(self) -> None:
        """See `Contestant.close`."""
        if self._own:
            self.engine.drain(0)


class EndpointContestant:
    """A model behind an OpenAI-compatible chat endpoint."""

    def __init__(self, url: str, model: str | None, key: str | None) -> None:
        """`url`: up to and with `/v1`. Without a `model` the endpoint has to have exactly one.

        Raises UsageError for a URL or model that is none, MissingPartError.
        """
        self.host = _host_of(url)
        self._client = _client(url, key)
        self._model = model or self._only_model(url)
        self.label = f"{self._model} at {self.host}"
        self._longest = "max_tokens"

    def ask(self, prompt: Prompt, max_new_tokens: int) -> Said:
        """See `Contestant.ask`."""
        import openai

        began = time.perf_counter()
        try:
            given = self._asked(prompt, max_new_tokens)
        except openai.OpenAIError as error:
            return Said("", time.perf_counter() - began, fault=_reason(error))
        seconds = time.perf_counter() - began
        if not given.choices:
            return Said("", seconds, fault="an answer without a choice")
        turn, usage = given.choices[0].message, given.usage
        return Said(
            render_answer(turn.content or "", _calls(turn.tool_calls or ())),
            seconds,
            usage.prompt_tokens if usage else None,
            usage.completion_tokens if usage else None,
        )

    def _asked(self, prompt: Prompt, most: int) -> Any:
        import openai

        body: dict[str, Any] = {
            "model": self._model,
            "messages": to_openai(prompt.messages),
            "temperature": 0,
        }
        if prompt.tools:
            body["tools"] = [json.loads(tool) for tool in prompt.tools]
        try:
            return self._client.chat.completions.create(**body, **{self._longest: most})
        except openai.BadRequestError as error:
            # newer models of OpenAI's take it under another name, and only that
            if self._longest != "max_tokens" or "max_completion_tokens" not in str(error):
                raise
            self._longest = "max_completion_tokens"
            return self._client.chat.completions.create(**body, **{self._longest: most})

    def _only_model(self, url: str) -> str:
        import openai

        try:
            names = sorted(str(model.id) for model in self._client.models.list())
        except openai.OpenAIError as error:
            raise UsageError(
                f"{url} does not say which models it has: {_reason(error)}",
                hint="check the URL (it ends with /v1 as a rule), or name one: --model NAME",
            ) from error
        if len(names) != 1:
            raise UsageError(
                f"{url} has {len(names)} models; say which: --model NAME", faults=names
            )
        return names[0]

    def close(self) -> None:
        """See `Contestant.close`."""
        self._client.close()


def stays_here(host: str | None) -> bool:
    """Whether what is sent to this host leaves the machine."""
    return host is None or host in _HERE


def to_openai(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as the API has them, which gives calls and their results an id in common."""
    found: list[dict[str, Any]] = []
    open_ids: list[str] = []
    count = 0
    for message in messages:
        turn = message.to_json()
        for call in turn.get("tool_calls", ()):
            call["id"] = f"call_{count}"
            open_ids.append(call["id"])
            count += 1
        if message.role == "tool":
            turn["tool_call_id"] = open_ids.pop(0) if open_ids else "call_0"
        found.append(turn)
    return found


def _calls(given: Sequence[Any]) -> list[ToolCall]:
    calls = [call.function for call in given if getattr(call, "function", None)]
    return [ToolCall(name=call.name, arguments=_object(call.arguments)) for call in calls]


def _object(arguments: str) -> str:
    """Arguments as compact JSON; what is no object is wrong, and stays so."""
    try:
        loaded = json.loads(arguments)
    except (ValueError, RecursionError):
        loaded = None
    usable = loaded if isinstance(loaded, Mapping) else {"": arguments}
    return json.dumps(usable, ensure_ascii=False, separators=(",", ":"))


def _host_of(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{url!r} is no URL of an endpoint", hint="http://127.0.0.1:8000/v1")
    return parts.hostname


def _client(url: str, key: str | None) -> Any:
    try:
        import openai
    except ImportError as error:
        raise MissingPartError(
            "asking an endpoint needs openai's client", hint="pip install 'lamina[arena]'"
        ) from error
    return openai.OpenAI(base_url=url, api_key=key or "none", timeout=TIMEOUT, max_retries=RETRIES)


def _reason(error: Exception) -> str:
    """What went wrong, on one line, without the request that an error may quote."""
    if isinstance(error, LaminaError):
        return error.message
    cause = error.__cause__ or error
    text = " ".join(str(cause).split()) or type(cause).__name__
    return "".join(c if c.isprintable() else "?" for c in text)[:200]
