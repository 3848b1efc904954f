"""Processes that answer alike, through Ray Serve: found by what they hold, begun again where they
die.

Ray Serve's own proxy is not started: whoever listens to the world asks them from here. They go away
when nobody has been in touch with them for a while: who is killed leaves nothing behind.
"""

import asyncio
import contextlib
import logging
import secrets
import threading
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from lamina.core.errors import FleetError, MissingPartError
from lamina.core.libraries import tell
from lamina.fleet.cluster import POLL_SECONDS, graphics, last_line, processors, ray_itself
from lamina.fleet.crew import share_of

_LOG = logging.getLogger(__name__)
ONGOING = 32
"""Answers that a replica without a GPU works on at once; one that has so many is passed over for
another, and what all of them have no room for waits with whoever asks. Passes of 32 rows say 96% of
what passes of 48 say in a second (docs/log.md)."""
ONGOING_GPU = 128
"""The same, with a GPU."""
PROBE_SECONDS = 5.0
"""How long a replica may take to say how much it has to do, before it is passed over for one that
does not hold the key: all its processors are at work."""
HELD = 128
"""Keys that a replica is known to hold, the last ones asked. With every change all replicas' keys
travel to whoever asks."""
BEATS_PER_SECOND = 50
"""Most replicas that are looked after in a second."""
BEAT_SECONDS = 2.0
"""How often each is asked how it does, where there are few."""
LEASE_SECONDS = 30.0
"""Replicas that nobody has been in touch with for so long go away (longer where there are many)."""
STARTS = 3
"""Failed beginnings after which it is given up; once one has begun, never."""
QUIET_SECONDS = 10.0
"""After which whoever waits for a beginning is told why it takes so long."""


class Answerer(Protocol):
    """What a replica does."""

    def answers(self, asked: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        """Plain values, as they come; closed early where nobody wants them any more."""

    def prepare(self, what: Any) -> Any:
        """Plain values for plain values; may take long."""

    def report(self) -> Any:
        """Plain values, at once."""


Make = Callable[[dict[str, Any]], Answerer]
"""A function of a module, called with plain values in every replica; takes as long as it likes."""


@dataclass(frozen=True)
class Size:
    """How many there are, and what each gets."""

    replicas: int
    processors: int
    gpus: int

    def __str__(self) -> str:
        has = _counted(self.processors, "processor") + (" and a GPU" if self.gpus else "")
        return _counted(self.replicas, "replica") + f" with {has}" + " each" * (self.replicas > 1)

    @property
    def ongoing(self) -> int:
        """See `ONGOING`."""
        return ONGOING_GPU if self.gpus else ONGOING

    @property
    def beat_seconds(self) -> float:
        """Between two looks at each."""
        return max(BEAT_SECONDS, self.replicas / BEATS_PER_SECOND)

    @property
    def lease_seconds(self) -> float:
        """See `LEASE_SECONDS`."""
        return max(LEASE_SECONDS, 5 * self.beat_seconds)


def size_of(ray: Any, replicas: int | None) -> Size:
    """So many replicas on the cluster that Ray is connected to; without a number one a machine, or
    one a GPU where there are any. Raises UsageError where it is too small."""
    count = replicas or graphics(ray) or sum(has > 0 for has in processors(ray))
    return Size(count, *share_of(ray, max(count, 1), "replicas"))


@contextmanager
def replicas(
    ray: Any,
    make: Make,
    given: Mapping[str, Any],
    size: Size,
    say: Callable[[str], None],
    watch: Callable[[], None],
) -> Iterator["Group"]:
    """Replicas for the length of a block, all of them ready.

    `say` is told where it takes long to begin; `watch` is called again and again until they have,
    in this thread, and may raise. Raises FleetError where they cannot be begun, MissingPartError.
    """
    serve = _serve_itself()
    group = Group(ray, serve, size)
    try:
        group._begin(_application(serve, make, given, size), say, watch)
        yield group
    finally:
        group.leave()


class Group:
    """Replicas, as one who asks them sees them. Made by `replicas`.

    Has a thread with an event loop of its own, `loop`, on which `ask` and `all` are to be used.
    """

    def __init__(self, ray: Any, serve: Any, size: Size) -> None:
        self._ray, self._serve, self.size = ray, serve, size
        self._name = ""
        self._application: Any = None
        self._handle: Any = None
        self._streams: set[Any] = set()
        self._failures = (ray.exceptions.RayError, serve.exceptions.RayServeException)
        self.reports: Sequence[Any] = ()
        """What each replica that is there said of itself when it was asked last."""
        self.loop = asyncio.new_event_loop()
        self._left = False
        self._thread = threading.Thread(target=self._work, name="lamina-replicas", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> "Future[Any]":
        """Begin a coroutine on the loop, from any other thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    async def ask(self, key: str, asked: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        """What a replica's `answers` gives: one that holds `key` where there is one that is not
        busy. Waits while all are busy or none is there; close it early to stop the replica.

        Raises FleetError where the replica dies, or fails.
        """
        stream = self._handle.options(
            stream=True, multiplexed_model_id=key, method_name="ask"
        ).remote(dict(asked))
        self._streams.add(stream)
        whole = False
        try:
            async for each in stream:
                yield each
            whole = True
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # we were, and not the replica's work
                raise
            raise FleetError("a replica was stopped", hint="ask again") from None
        except self._failures as error:
            raise FleetError(f"a replica failed: {last_line(error)}", hint="ask again") from error
        finally:
            self._streams.discard(stream)
            if not whole:
                stream.cancel()

    async def all(self, method: str, *given: Any, seconds: float | None = None) -> list[Any]:
        """What `prepare` or `report` gives, of every replica that is there and answers. Raises
        TimeoutError where that takes more than so many seconds; all have been asked then."""
        asked = self._handle.broadcast(method, *given)
        try:
            found = await asked.results_async(return_exceptions=True, timeout_s=seconds)
        except self._failures:  # none is there
            return []
        return [each for each in found if not isinstance(each, BaseException)]

    def leave(self, *, wait: bool = True) -> None:
        """End the replicas. Any number of times; `wait`: until they have."""
        if self._left:
            return
        self._left = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        if wait:
            self._thread.join(PROBE_SECONDS)
        with contextlib.suppress(Exception):  # the cluster may be gone, and they with it
            self._serve.delete(self._name, _blocking=wait)

    def _work(self) -> None:
        """The thread."""
        self.loop.run_forever()
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.loop.close()

    def _begin(
        self, application: Any, say: Callable[[str], None], watch: Callable[[], None]
    ) -> None:
        self._application = application
        self._deploy()
        self.run(self._look_after())
        self._await(say, watch)

    def _deploy(self) -> None:
        """Have Ray Serve begin replicas, under a name that no other command has, nor had."""
        if self._left:
            return
        self._name = f"lamina-{secrets.token_hex(4)}"
        target = self._serve.RunTarget(self._application, name=self._name, route_prefix=None)
        (handle,) = self._serve.run_many([target], wait_for_applications_running=False)
        self._handle = handle.options()  # one router for all that is asked

    def _await(self, say: Callable[[str], None], watch: Callable[[], None]) -> None:
        began, told = time.monotonic(), False
        while True:
            found = self._serve.status().applications.get(self._name)
            state = "gone" if found is None else str(found.status.value)
            if state == "RUNNING":
                return
            message = "" if found is None else _said(found)
            if state not in ("NOT_STARTED", "DEPLOYING"):
                raise FleetError(f"the replicas did not begin: {message or state}")
            if not told and time.monotonic() - began > QUIET_SECONDS:
                told = True
                say(self._why_slow(message))
            watch()
            time.sleep(POLL_SECONDS)

    def _why_slow(self, message: str) -> str:
        if message:
            return f"not begun yet: {message}"
        free = int(self._ray.available_resources().get("CPU", 0))
        return f"waiting for {self.size}; on the cluster {_counted(free, 'processor')} are free"

    async def _look_after(self) -> None:
        while True:
            try:
                self.reports = await self.all("report", seconds=self.size.lease_seconds / 3)
                if not self.reports and not await asyncio.to_thread(self._there):
                    await asyncio.to_thread(self._deploy)  # this process stood still for too long
                    for stream in list(self._streams):  # they would wait for those that are gone
                        stream.cancel()
            except Exception as error:  # whatever it was: replicas live by being looked after
                _LOG.warning("the replicas could not be asked how they do: %s", last_line(error))
            await asyncio.sleep(self.size.beat_seconds)

    def _there(self) -> bool:
        return self._name in self._serve.status().applications


def _application(serve: Any, make: Make, given: Mapping[str, Any], size: Size) -> Any:
    """What Ray Serve is to keep alive."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    serve.start(proxy_location="Disabled", logging_config=quiet)
    deployed = serve.deployment(
        _replica_class(serve),
        name="replica",
        num_replicas=size.replicas,
        max_ongoing_requests=size.ongoing,
        health_check_period_s=size.beat_seconds,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=5,
        max_constructor_retry_count=STARTS,
        ray_actor_options={"num_cpus": size.processors, "num_gpus": size.gpus},
        logging_config=quiet,
    )
    return deployed.bind(make, dict(given), size.processors, size.lease_seconds)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _said(application: Any) -> str:
    """The last line of what a deployment says of itself: what went wrong, if something did."""
    for deployment in application.deployments.values():
        lines = [line.strip() for line in deployment.message.splitlines() if line.strip()]
        if lines:
            return str(lines[-1])
    return ""


def _serve_itself() -> Any:
    """The library. Raises MissingPartError."""
    ray_itself()
    probe = str(PROBE_SECONDS)
    tell(  # read when it is first imported
        {
            "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": probe,
            "RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S": probe,
        }
    )
    try:
        from ray.serve import exceptions  # noqa: F401

        from ray import serve
    except ImportError as error:
        raise MissingPartError(
            f"replicas need {error.name or 'ray[serve]'}, which is not installed",
            hint="pip install 'lamina[ray]'",
        ) from None
    return serve


def _replica_class(serve: Any) -> type:
    """The class that Ray Serve is to make an object of in every replica."""

    class Replica:
        def __init__(
            self, make: Make, given: dict[str, Any], threads: int, lease_seconds: float
        ) -> None:
            import torch

            torch.set_num_threads(threads)  # Ray's own processes get what one of lamina's has
            self._answerer = make(given)
            self._heard, self._lease = time.monotonic(), lease_seconds
            self._name = serve.get_replica_context().app_name
            threading.Thread(target=self._watch, daemon=True).start()

        @serve.multiplexed(max_num_models_per_replica=HELD)  # type: ignore[untyped-decorator]
        async def hold(self, key: str) -> str:
            return key  # the answerer keeps what it needs by itself

        async def ask(self, asked: dict[str, Any]) -> AsyncIterator[Any]:
            await self.hold(serve.get_multiplexed_model_id())
            async with contextlib.aclosing(self._answerer.answers(asked)) as answers:
                async for each in answers:
                    yield each

        async def prepare(self, what: Any) -> Any:
            return await asyncio.to_thread(self._answerer.prepare, what)

        async def report(self) -> Any:
            self._heard = time.monotonic()
            return self._answerer.report()

        def _watch(self) -> None:
            while True:
                time.sleep(1)
                if time.monotonic() - self._heard > self._lease:
                    with contextlib.suppress(Exception):  # it is tried again, until this one ends
                        serve.delete(self._name, _blocking=False)

    return Replica
