"""`lamina serve --replicas`: engines in many processes, asked as if they were one.

Every replica opens the shared store and has lamina's own engine. Here, where HTTP comes in, a
request becomes plain values, goes to a replica that holds its stack, and its tokens come back. The
answer of a replica that dies goes on in another one, after the tokens that were told: as a token
comes of what stands before it, the seed and its place, it is the answer that would have been.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any

from lamina.core.errors import BusyError, FleetError, LaminaError
from lamina.core.manifests import Descriptor
from lamina.fleet.cluster import cluster
from lamina.fleet.replicas import Group, replicas, size_of
from lamina.flows.crossing import event_of, plain
from lamina.flows.elsewhere import error_of, told
from lamina.flows.replica import holder
from lamina.serve.engine import Limits
from lamina.serve.request import (
    Event,
    Finished,
    Listener,
    Reason,
    Request,
    Serving,
    Stats,
    Token,
    check,
)
from lamina.stack.resolve import over_base, resolve
from lamina.store.layout import Store

_LOG = logging.getLogger(__name__)

TRIES = 5
"""Replicas that may fail an answer one after another without a new token, before it is given up."""
PAUSE_SECONDS = 0.2
"""Before it is asked again, times the failures."""
WAITING = 1024
"""Most requests that wait here for a place, as an engine has it."""
_SAID = "RuntimeError: "


class Replicas:
    """Engines for a `Host`, in `count` replicas on the Ray cluster at `address`; None: one for each
    machine, and a cluster of this machine's own. All have these `limits`."""

    def __init__(
        self, store: Store, limits: Limits, count: int | None, address: str | None
    ) -> None:
        self._store, self._limits = store, limits
        self._count, self._address = count, address
        self._group: Group | None = None

    @contextmanager
    def there(
        self, bases: Sequence[str], say: Callable[[str], None], watch: Callable[[], None]
    ) -> Iterator[None]:
        """The replicas themselves, for the length of a block.

        `bases`: references that will surely be asked; what they stand on is loaded first. `watch`
        is called again and again until then, and may raise.
        Raises UsageError where the cluster is too small, FleetError, what a replica could not do.
        """
        given = told(self._store) | {
            "limits": asdict(self._limits),
            "bases": [resolve(self._store, name).config.base for name in bases],
        }
        with cluster(self._address) as ray:
            size = size_of(ray, self._count)
            say(f"beginning {size}")
            with _as_said_there(), replicas(ray, holder, given, size, say, watch) as self._group:
                yield

    def make(self, store: Store, base: Descriptor) -> Serving:
        """A `hosting.EngineMaker`: has all replicas load a base. Only while they are there.

        Raises what the first one that cannot says, FleetError.
        """
        group = self._group
        assert group is not None
        identity = over_base(store, base, label="the base").config.base
        found = group.run(group.all("prepare", identity)).result()
        if not found:
            raise FleetError("no replica is there", hint="see: ray status")
        for each in found:
            if "fault" in each:
                raise error_of(each["fault"])
        return Spread(group, base.digest, identity, **found[0])

    def abandon(self) -> None:
        """Have them end, without waiting for it."""
        if self._group is not None:
            self._group.leave(wait=False)


@contextmanager
def _as_said_there() -> Iterator[None]:
    """What a replica said when it could not begin, as the error that it was."""
    try:
        yield
    except FleetError as error:
        _, _, text = error.message.partition(_SAID)
        if not text:
            raise
        raise error_of(text) from error


class Spread:
    """A `request.Serving` over replicas, of one base."""

    def __init__(
        self, group: Group, base: str, identity: str, *, context: int, vocabulary: int
    ) -> None:
        self._group, self._base, self._identity = group, base, identity
        self.context, self.vocabulary = context, vocabulary
        self._most = group.size.replicas * group.size.ongoing + WAITING
        self._live: set[_Answer] = set()
        self._changed = threading.Condition()
        self._draining = False

    def submit(self, request: Request, listener: Listener) -> "_Answer":
        """See `request.Serving`."""
        check(request, base=self._base, vocabulary=self.vocabulary, context=self.context)
        asked = plain(request)
        answer = _Answer(request, listener, self._group.loop, self._forget)
        with self._changed:
            if self._draining:
                raise BusyError("the server is being shut down", hint="ask again in a moment")
            if len(self._live) >= self._most:
                raise BusyError(
                    f"{self._most} requests are waiting already", hint="ask again in a moment"
                )
            self._live.add(answer)
        answer.begin(lambda: self._answer(answer, asked))
        return answer

    def stats(self) -> Stats:
        """See `request.Serving`: sums over the replicas that are there, as of their last reports.
        Requests that are on their way or wait for a replica count as waiting."""
        reports = self._group.reports
        found = [report[self._identity] for report in reports if self._identity in report]
        sums = {item.name: sum(each[item.name] for each in found) for item in fields(Stats)}
        with self._changed:
            here = sum(not answer.over for answer in self._live)
        waiting = max(0, here - sums["running"])
        return Stats(**sums | {"waiting": waiting, "replicas": len(reports)})

    def drain(self, seconds: float) -> bool:
        """See `request.Serving`. The replicas stay."""
        with self._changed:
            self._draining = True
            whole = self._changed.wait_for(lambda: not self._live, seconds)
            left = list(self._live)
        for answer in left:
            answer.cancel()
        with self._changed:
            self._changed.wait_for(lambda: not self._live)
        return whole

    def _forget(self, answer: "_Answer") -> None:
        with self._changed:
            self._live.discard(answer)
            self._changed.notify_all()

    async def _answer(self, answer: "_Answer", asked: Mapping[str, Any]) -> None:
        """Ask until the answer is whole."""
        failures, request = 0, answer.request
        while not answer.over:
            before = len(answer.said)
            try:
                await self._heard(answer, asked)
            except FleetError as error:
                failures = failures + 1 if len(answer.said) == before else 1
                if failures > TRIES:
                    answer.end("error", error)
                elif len(answer.said) >= request.max_new_tokens:
                    answer.end("length")
                else:
                    await asyncio.sleep(PAUSE_SECONDS * failures)

    async def _heard(self, answer: "_Answer", asked: Mapping[str, Any]) -> None:
        """One replica's part of it. Raises FleetError where that is not the rest."""
        stream = self._group.ask(answer.request.stack.digest, {**asked, "said": tuple(answer.said)})
        async with contextlib.aclosing(stream):
            async for pieces in stream:
                for piece in pieces:
                    answer.hear(event_of(piece))
        if not answer.over:
            raise FleetError("a replica left an answer without an end")


class _Answer:
    """See `request.Ticket`. Touched by the group's loop alone, but for `begin` and `cancel`."""

    def __init__(
        self,
        request: Request,
        listener: Listener,
        loop: asyncio.AbstractEventLoop,
        forget: Callable[["_Answer"], None],
    ) -> None:
        self.request, self.said, self.over = request, list(request.said), False
        self._listener, self._loop, self._forget = listener, loop, forget
        self._task: asyncio.Task[None] | None = None

    def begin(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have the loop do it; whatever ends it, the listener hears of an end."""

        def begun() -> None:
            self._task = self._loop.create_task(work())
            self._task.add_done_callback(ended)

        def ended(task: asyncio.Task[None]) -> None:
            if task.cancelled():
                self.end("cancelled")
            elif (fault := task.exception()) is not None:
                _LOG.error("an answer failed", exc_info=fault)
                self.end(
                    "error", LaminaError(f"the answer failed: {type(fault).__name__}: {fault}")
                )
            self._forget(self)

        self._loop.call_soon_threadsafe(begun)

    def cancel(self) -> None:
        """See `request.Ticket`."""

        def cancelled() -> None:
            if self._task is not None:
                self._task.cancel()

        with contextlib.suppress(RuntimeError):  # the loop has ended, and the answer before it
            self._loop.call_soon_threadsafe(cancelled)

    def hear(self, event: Event) -> None:
        """Pass on what a replica told, once it is sure to be the next of the answer."""
        if self.over:
            return
        self.over = isinstance(event, Finished)
        if isinstance(event, Token):
            self.said.append(event.id)
        self._listener(event)

    def end(self, reason: Reason, error: LaminaError | None = None) -> None:
        """Tell the listener that this was all, where nobody else has."""
        told = len(self.said)
        self.hear(Finished(reason, len(self.request.prompt), 0, told, error))
