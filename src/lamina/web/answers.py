"""From tokens in an engine's thread to pieces of text in the event loop.

All answers to one HTTP request share one queue. Whatever ends the request (a client that left, a
timeout, an error) cancels what still runs, so its blocks are free at the engine's next step.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from lamina.flows.hosting import ServedBase
from lamina.serve.constrain import GrammarState
from lamina.serve.request import Event, Finished, Listener, Request, Ticket, Token
from lamina.tokens.stream import StreamDecoder
from lamina.web.errors import Refusal
from lamina.web.schema import CachedTokens, Usage


@dataclass(frozen=True)
class Piece:
    """More of one answer."""

    index: int
    text: str
    tokens: tuple[Token, ...]
    """Those that came since the piece before; their text may still be held back."""


@dataclass(frozen=True)
class End:
    """The end of one answer."""

    index: int
    by_length: bool
    """It was cut off at its most tokens."""


class Answers:
    """The answers to `requests`, heard in whatever order they come.

    `stops`: texts that end an answer, besides the engine's stop tokens; `seconds`: longest that
    they may take.
    """

    def __init__(
        self,
        served: ServedBase,
        requests: Sequence[Request],
        stops: Sequence[str],
        seconds: float,
    ) -> None:
        self.served = served
        self.requests = tuple(requests)
        self.tokens_out = 0
        self.first_seconds: float | None = None
        """From the start to the first token of any answer."""
        self.gaps: list[float] = []
        """Seconds between an answer's tokens."""
        texts = (*served.format.stop_strings, *stops)
        self._decoders = [StreamDecoder(served.format.tokenizer, texts) for _ in self.requests]
        self._heard: asyncio.Queue[tuple[int, Event, float]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._tickets: list[Ticket] = []
        self._finished: dict[int, Finished] = {}
        self._started = time.perf_counter()
        self._deadline = self._loop.time() + seconds
        self._cancelled = False

    def start(self) -> None:
        """Hand everything to the engine; on a refusal nothing goes on. May take a moment.

        Raises what `Serving.submit` raises.
        """
        try:
            for index, request in enumerate(self.requests):
                self._tickets.append(self.served.engine.submit(request, self._listener(index)))
        except BaseException:
            self.cancel()
            raise
        if self._cancelled:  # the client left while this ran in its thread
            self.cancel()

    def cancel(self) -> None:
        """Stop all that still runs. Any number of times."""
        self._cancelled = True
        for ticket in self._tickets:
            ticket.cancel()

    async def pieces(self) -> AsyncIterator[Piece | End]:
        """Pieces as they come, one `End` for each answer.

        Raises what an engine says went wrong, UsageError where a grammar gave up, TimeoutError,
        Refusal when the engine is shut down.
        """
        last: dict[int, float] = {}
        pending: dict[int, list[Token]] = {index: [] for index in range(len(self.requests))}
        stopped: set[int] = set()
        while len(self._finished) < len(self.requests):
            async with asyncio.timeout_at(self._deadline):
                index, event, at = await self._heard.get()
            if isinstance(event, Finished):
                self._finished[index] = event
                self._check(index, event)
                if event.reason == "cancelled" and index not in stopped:
                    raise Refusal(503, "the server is being shut down", "shutting_down")
                rest = "" if index in stopped else self._decoders[index].flush()
                if rest or pending[index]:
                    yield Piece(index, rest, tuple(pending[index]))
                yield End(index, by_length=event.reason == "length" and index not in stopped)
            elif index not in stopped:
                self._note(index, at, last)
                text, ended = self._decoders[index].push(event.id)
                pending[index].append(event)
                if ended:
                    stopped.add(index)
                    self._tickets[index].cancel()
                if text:
                    yield Piece(index, text, tuple(pending[index]))
                    pending[index] = []

    def usage(self) -> Usage:
        """What was read and said. A prompt that several answers share counts once; what the engine
        refused does not."""
        cached: dict[tuple[int, ...], int] = {}  # of a shared prompt: what its first answer found
        for index, request in enumerate(self.requests[: len(self._tickets)]):
            end = self._finished.get(index)
            found = end.cached_tokens if end else 0
            cached[request.prompt] = min(cached.get(request.prompt, found), found)
        read = sum(len(prompt) for prompt in cached)
        return Usage(
            prompt_tokens=read,
            completion_tokens=self.tokens_out,
            total_tokens=read + self.tokens_out,
            prompt_tokens_details=CachedTokens(cached_tokens=sum(cached.values())),
        )

    def _listener(self, index: int) -> Listener:
        def hear(event: Event) -> None:
            try:
                self._loop.call_soon_threadsafe(
                    self._heard.put_nowait, (index, event, time.perf_counter())
                )
            except RuntimeError:  # the server's loop has ended; nobody listens any more
                return

        return hear

    def _note(self, index: int, at: float, last: dict[int, float]) -> None:
        self.tokens_out += 1
        if self.first_seconds is None:
            self.first_seconds = at - self._started
        if index in last:
            self.gaps.append(at - last[index])
        last[index] = at

    def _check(self, index: int, event: Finished) -> None:
        if event.error is not None:
            raise event.error
        constraint = self.requests[index].constraint
        if isinstance(constraint, GrammarState):
            constraint.check()
