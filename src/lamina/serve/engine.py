"""Continuous batching over many stacks: every pass reads what is next of every running answer.

An answer is a list of tokens of which the first `computed` are in the cache. A pass reads on from
there: one token of answers that are being said, chunks of prompts that are new. Whoever has been
read to the end gets a next token. Where blocks run out, the youngest answer gives up its own and
is read again later: as numbers do not depend on the batch, it goes on as if nothing had been.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lamina.core.errors import BusyError, LaminaError
from lamina.lowrank.maths import LayerFactors
from lamina.serve.answer import Answer
from lamina.serve.batch import BLOCK, Decoder, Span
from lamina.serve.blocks import Blocks
from lamina.serve.layers import LayerCache
from lamina.serve.request import Listener, Reason, Request, Stats, check
from lamina.stack.resolve import ResolvedLayer

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """How much an engine takes on."""

    cache_tokens: int = 65536
    """Tokens whose keys and values are kept, prompts and answers of all together."""
    pass_tokens: int = 256
    """Most tokens a pass reads: prompts are cut into chunks, so that answers go on meanwhile."""
    rows: int = 128
    """Most answers in a batch."""
    waiting: int = 1024
    """Most requests that wait for a place; one more is refused."""
    layer_bytes: int | None = None
    """Memory for layers that are kept for the next request; None: all that were ever asked for."""
    layer_bits: int = 16
    """16: factors in bfloat16; 8: in bytes with a scale for each rank, half the memory to read."""


@dataclass(eq=False)
class _Counts:
    tokens_in: int = 0
    tokens_cached: int = 0
    tokens_out: int = 0
    steps: int = 0


@dataclass(eq=False)
class _Ticket:
    """See `request.Ticket`."""

    answer: Answer
    wake: Callable[[], None] = field(repr=False)

    def cancel(self) -> None:
        """See `request.Ticket.cancel`."""
        self.answer.cancelled.set()
        self.wake()


class Engine:
    """See `request.Serving`. Has a thread of its own, which alone touches the decoder.

    base: the digest of the base that `decoder` is; `read` gives a layer's factors, weight included.
    """

    def __init__(
        self,
        base: str,
        decoder: Decoder,
        read: Callable[[ResolvedLayer], LayerFactors],
        *,
        context: int,
        limits: Limits | None = None,
    ) -> None:
        self._base, self._decoder, self._limits = base, decoder, limits or Limits()
        blocks = max(2, -(-self._limits.cache_tokens // BLOCK))
        decoder.reserve(blocks)
        self._cache = Blocks(blocks)
        self._context = min(context, blocks * BLOCK)
        self._layers = LayerCache(read, decoder.load, self._limits.layer_bytes)
        self._counts = _Counts()
        self._changed = threading.Condition()
        self._arrived: deque[Answer] = deque()
        self._waiting: deque[Answer] = deque()
        self._running: list[Answer] = []  # oldest first
        self._draining = False
        self._dropped = False
        self._thread = threading.Thread(target=self._work, name="lamina-engine", daemon=True)
        self._thread.start()

    @property
    def context(self) -> int:
        """See `request.Serving`."""
        return self._context

    @property
    def vocabulary(self) -> int:
        """See `request.Serving`."""
        return self._decoder.vocabulary

    def submit(self, request: Request, listener: Listener) -> _Ticket:
        """See `request.Serving`."""
        check(request, base=self._base, vocabulary=self.vocabulary, context=self._context)
        with self._changed:
            if self._draining:
                raise BusyError("the engine is being shut down", hint="ask again in a moment")
            if len(self._arrived) + len(self._waiting) >= self._limits.waiting:
                raise BusyError(
                    f"{self._limits.waiting} requests are waiting already",
                    hint="ask again in a moment",
                )
            layers = self._layers.acquire(request.stack.layers)
            answer = Answer(request, listener, layers)
            self._arrived.append(answer)
            self._changed.notify()
        for layer in layers:
            layer.add_done_callback(lambda _: self._wake())
        return _Ticket(answer, self._wake)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def stats(self) -> Stats:
        """See `request.Serving`."""
        layers, layer_bytes = self._layers.held()
        done = self._counts
        return Stats(
            running=len(self._running),
            waiting=len(self._arrived) + len(self._waiting),
            tokens_in=done.tokens_in,
            tokens_cached=done.tokens_cached,
            tokens_out=done.tokens_out,
            steps=done.steps,
            blocks=self._cache.count,
            blocks_free=self._cache.free,
            layers_loaded=layers,
            layer_bytes=layer_bytes,
            layers_evicted=self._layers.evicted,
        )

    def drain(self, seconds: float) -> bool:
        """See `request.Serving`."""
        with self._changed:
            self._draining = True
            self._changed.notify()
        self._thread.join(seconds)
        whole = not self._thread.is_alive()
        self._dropped = True
        self._wake()
        self._thread.join()
        self._layers.close()
        return whole

    # -- the engine's own thread

    def _work(self) -> None:
        with torch.inference_mode():
            while self._gathered():
                try:
                    self._pass()
                except Exception as error:  # as no memory; whoever is running hears of it
                    _LOG.exception("a pass failed")
                    for answer in list(self._running):
                        self._end(answer, "error", _as_lamina(error))

    def _gathered(self) -> bool:
        """Wait until there is something to read; False where nothing will come any more."""
        while True:
            with self._changed:
                self._waiting.extend(self._arrived)
                self._arrived.clear()
            self._drop()
            self._admit()
            if self._running:
                return True
            with self._changed:
                if self._arrived or self._pending():
                    continue
                if self._draining and not self._waiting:
                    return False
                self._changed.wait()

    def _pending(self) -> bool:
        """Whether anything can be done for those who wait."""
        return any(answer.cancelled.is_set() or answer.ready for answer in self._waiting) or (
            self._dropped and bool(self._waiting)
        )

    def _drop(self) -> None:
        """End what was cancelled."""
        for answers in (self._waiting, self._running):
            for answer in [a for a in answers if self._dropped or a.cancelled.is_set()]:
                self._end(answer, "cancelled")

    def _end(self, answer: Answer, reason: Reason, error: LaminaError | None = None) -> None:
        place = self._running if answer in self._running else self._waiting
        place.remove(answer)
        answer.retreat(self._cache)
        self._layers.release(answer.request.stack.layers)
        answer.end(reason, error)

    def _admit(self) -> None:
        """Take in those whose layers are there, in order, while there is room for their prompts."""
        for answer in [a for a in self._waiting if a.ready]:
            if len(self._running) >= self._limits.rows:
                return
            try:
                _ = answer.layers
            except Exception as error:  # whatever reading a layer from the store may raise
                self._end(answer, "error", _as_lamina(error))
                continue
            answer.begin(self._cache)
            need = answer.missing(len(answer.tokens) - answer.computed)
            if need + len(self._running) > self._cache.available:  # a block each to go on with
                answer.retreat(self._cache)
                return
            if not answer.new_tokens:
                self._counts.tokens_cached += answer.cached
            self._waiting.remove(answer)
            self._running.append(answer)

    def _pass(self) -> None:
        """Read once, and give a next token to everyone who has been read to the end."""
        chosen, spans = self._chosen()
        logits_MV = self._decoder.run(spans)
        self._counts.steps += 1
        told = []
        for answer, span in zip(chosen, spans, strict=True):
            answer.read(len(span.ids), self._cache)
            new = answer.computed - len(answer.request.prompt)
            self._counts.tokens_in += max(0, len(span.ids) - max(0, new))
            if span.wanted:
                told.append(answer)
        if told:
            self._tell(told, logits_MV)

    def _chosen(self) -> tuple[list[Answer], list[Span]]:
        """Whose tokens are read: all that are being said, then prompts, oldest first, up to the
        budget of a pass."""
        budget = self._limits.pass_tokens
        ordered = sorted(self._running, key=lambda a: len(a.tokens) - a.computed > 1)
        counts: list[tuple[Answer, int]] = []
        for answer in ordered:
            count = min(len(answer.tokens) - answer.computed, budget)
            if count and answer in self._running and self._room(answer, count):
                counts.append((answer, count))
                budget -= count
        counts = [(answer, count) for answer, count in counts if answer in self._running]
        return [a for a, _ in counts], [answer.span(count) for answer, count in counts]

    def _room(self, answer: Answer, count: int) -> bool:
        """Blocks for `count` more tokens, at the youngest's expense where there are none."""
        need = answer.missing(count)
        while need > self._cache.available:
            youngest = self._running[-1]
            youngest.retreat(self._cache)
            self._running.pop()
            self._waiting.appendleft(youngest)
            if youngest is answer:
                return False
        taken = self._cache.take(max(0, need))
        assert taken is not None
        answer.blocks += taken
        return True

    def _tell(self, answers: Sequence[Answer], logits_MV: Tensor) -> None:
        best_M = logits_MV.argmax(dim=-1).tolist()
        for row, answer in enumerate(answers):
            before = answer.new_tokens
            try:
                reason = answer.take(best_M[row]) if answer.plain else answer.draw(logits_MV[row])
            except LaminaError as error:  # of a constraint
                self._end(answer, "error", error)
                continue
            self._counts.tokens_out += answer.new_tokens - before
            if reason:
                self._end(answer, reason)


def _as_lamina(error: BaseException) -> LaminaError:
    if isinstance(error, LaminaError):
        return error
    return LaminaError(f"the answer failed: {type(error).__name__}: {error}")
