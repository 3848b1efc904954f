"""Several jobs at once, most of which wait: for an answer, or for the disk."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from lamina.core.errors import LaminaError

WORKERS = 8
"""Jobs at once: while one waits for an answer or the disk, another hashes."""
ItemT = TypeVar("ItemT")


class StoppedError(LaminaError):
    """Another thread failed, or the user asked to stop."""


def side_by_side(
    work: Callable[[ItemT, threading.Event], Any], items: Sequence[ItemT], workers: int = WORKERS
) -> None:
    """Do work on all items, several at once. The first error stops all, and is raised.

    `work` gets an event that is set when it should stop. Ctrl-C stops all too.
    """
    stop = threading.Event()
    if len(items) <= 1 or workers == 1:
        for item in items:
            work(item, stop)
        return
    with ThreadPoolExecutor(max_workers=min(workers, len(items))) as pool:
        jobs: list[Future[Any]] = [pool.submit(work, item, stop) for item in items]
        try:
            wait(jobs, return_when=FIRST_EXCEPTION)
        finally:
            if any(not job.done() or job.exception() for job in jobs):
                stop.set()
                for job in jobs:
                    job.cancel()
    errors = [job.exception() for job in jobs if not job.cancelled() and job.exception()]
    own = [error for error in errors if not isinstance(error, StoppedError)]
    if own and own[0] is not None:
        raise own[0]
