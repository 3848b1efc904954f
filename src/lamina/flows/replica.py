"""What a replica of `lamina serve` does: lamina's own engines, in a process that Ray has begun."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from lamina.core.errors import LaminaError
from lamina.core.manifests import StackConfig
from lamina.flows.crossing import Piece, plain_event, request_of
from lamina.flows.elsewhere import store_of, text_of
from lamina.flows.hosting import Host, ServedBase, with_limits
from lamina.serve.constrain import GrammarState
from lamina.serve.engine import Limits
from lamina.serve.request import Event, Finished, Request
from lamina.stack.resolve import ResolvedStack, of_config
from lamina.store.layout import Store

MESSAGES_PER_SECOND = 50
"""How many a replica sends of all its answers together: tokens between two of an answer's travel as
one. A message takes about a millisecond of both ends' processors."""
LONGEST_PAUSE = 0.2
"""Seconds between two messages of an answer at most; more than ten answers send more by that."""
_STACKS = 1024


def holder(given: dict[str, Any]) -> "Holder":
    """A `fleet.replicas.Make`. Raises RuntimeError with `text_of` what is wrong: a line of text is
    all that comes through."""
    try:
        return Holder(given)
    except LaminaError as error:
        raise RuntimeError(text_of(error)) from None


class Holder:
    """A `fleet.replicas.Answerer` of the shared store, over a host of its own."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        store = store_of(dict(given), Path(given["store"]))
        self._host = Host(store, with_limits(Limits(**given["limits"])))
        self._stack = lru_cache(maxsize=_STACKS)(lambda *named: _stack(store, *named))
        self._answering = 0
        for identity in given["bases"]:
            self._base(identity)

    def prepare(self, what: str) -> dict[str, Any]:
        """Load the base of this identity; what its engine takes, or the fault."""
        try:
            engine = self._base(what).engine
        except LaminaError as error:
            return {"fault": text_of(error)}
        return {"context": engine.context, "vocabulary": engine.vocabulary}

    def report(self) -> dict[str, dict[str, int]]:
        """Each loaded base's numbers, by its identity."""
        return {base.identity: asdict(base.engine.stats()) for base in self._host.loaded()}

    async def answers(self, asked: Mapping[str, Any]) -> AsyncGenerator[list[Piece], None]:
        """Events: the first token at once, those after it together with others."""
        try:
            served, request = await asyncio.to_thread(self._read, asked)
            heard = _Heard(request, asyncio.get_running_loop())
            if request.constraint is not None and request.constraint.ended:  # nothing may follow
                heard.take(Finished("stop", len(request.prompt), 0, len(request.said)))
                ticket = None
            else:
                ticket = served.engine.submit(request, heard)
        except LaminaError as error:
            prompt, said = len(asked["prompt"]), len(asked["said"])
            yield [plain_event(Finished("error", prompt, 0, said, error))]
            return
        self._answering += 1
        try:
            while pieces := await heard.more():
                yield pieces
                pause = min(LONGEST_PAUSE, self._answering / MESSAGES_PER_SECOND)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(heard.over.wait(), pause)
        finally:
            self._answering -= 1
            if ticket is not None:
                ticket.cancel()

    def _base(self, identity: str) -> ServedBase:
        return self._host.base_of(self._stack(StackConfig(base=identity), "the base"))

    def _read(self, asked: Mapping[str, Any]) -> tuple[ServedBase, Request]:
        stack = self._stack(StackConfig.model_validate_json(asked["stack"]), asked["label"])
        served = self._host.base_of(stack)
        return served, request_of(asked, stack, lambda: served.grammars)


def _stack(store: Store, config: StackConfig, label: str) -> ResolvedStack:
    return of_config(store, config, label=label, force=True)  # whoever asks has judged it


class _Heard:
    """A `request.Listener` whose events an event loop waits for."""

    def __init__(self, request: Request, loop: asyncio.AbstractEventLoop) -> None:
        self._request, self._loop = request, loop
        self._pieces: list[Piece] = []
        self._came, self.over = asyncio.Event(), asyncio.Event()

    def __call__(self, event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended with its process
            self._loop.call_soon_threadsafe(self.take, event)

    def take(self, event: Event) -> None:
        """An event, on the loop."""
        if isinstance(event, Finished):
            event = _checked(event, self._request)
            self.over.set()
        self._pieces.append(plain_event(event))
        self._came.set()

    async def more(self) -> list[Piece]:
        """What came since the last time, once something has; nothing after the end."""
        if self.over.is_set() and not self._pieces:
            return []
        await self._came.wait()
        self._came.clear()
        pieces, self._pieces = self._pieces, []
        return pieces


def _checked(event: Finished, request: Request) -> Finished:
    """With the fault of a grammar that gave up: whoever asked has another copy of it."""
    try:
        if event.error is None and isinstance(request.constraint, GrammarState):
            request.constraint.check()
    except LaminaError as error:
        return Finished("error", event.prompt_tokens, event.cached_tokens, event.new_tokens, error)
    return event
