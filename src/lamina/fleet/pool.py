"""Many pieces of work, each in a process of its own somewhere on a cluster, through Ray's tasks.

A process or machine that dies takes one piece with it, which is begun again elsewhere, a few times.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lamina.core.errors import UsageError
from lamina.fleet.cluster import POLL_SECONDS, graphics, last_line, ray_itself
from lamina.fleet.cluster import processors as machines

TRIES = 3
"""Times that a piece is begun before it is given up."""


@dataclass(frozen=True)
class Piece:
    """Something to do."""

    name: str
    given: Mapping[str, Any]
    """Plain values."""


@dataclass(frozen=True)
class Done:
    """A piece that came to its end."""

    name: str
    value: Any
    """What the function gave back; None where it never ended by itself."""
    fault: str | None
    """Why not."""
    tries: int
    seconds: float


Work = Callable[[dict[str, Any]], Any]
"""A function of a module; what it gives back has to be plain values."""


def spread(
    work: Work, pieces: Sequence[Piece], watch: Callable[[], None], *, processors: int = 1
) -> Iterator[Done]:
    """Every piece as it ends, on the cluster that Ray is connected to.

    Each gets so many `processors`, and a GPU where there are any. `watch` is called again and again
    meanwhile, in this thread. A function that raises, and a process that dies, are begun again up
    to `TRIES` times.
    Raises UsageError where no machine has so many processors.
    """
    ray = ray_itself()
    room_for(ray, processors)
    remote = ray.remote(num_cpus=processors, num_gpus=min(graphics(ray), 1), max_retries=0)(
        _in_task
    )
    began: dict[str, float] = {}

    def begin(piece: Piece) -> Any:
        began.setdefault(piece.name, time.perf_counter())
        return remote.remote(work, dict(piece.given), processors)

    running = {begin(piece): (piece, 1) for piece in pieces}
    while running:
        ready, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
        watch()
        for reference in ready:
            piece, tries = running.pop(reference)
            value, fault = None, None
            try:
                value = ray.get(reference)
            except ray.exceptions.RayError as error:
                if tries < TRIES:
                    running[begin(piece)] = piece, tries + 1
                    continue
                fault = last_line(error)
            seconds = time.perf_counter() - began[piece.name]
            yield Done(piece.name, value, fault, tries, seconds)


def room_for(ray: Any, processors: int) -> None:
    """See that a machine has so many. Raises UsageError."""
    most = max(machines(ray), default=0)
    if processors > most:
        raise UsageError(
            f"no machine of this cluster has {processors} processors for one piece of work",
            hint=f"the largest has {most}",
        )


def _in_task(work: Work, given: dict[str, Any], threads: int) -> Any:
    import torch

    torch.set_num_threads(threads)
    return work(given)
