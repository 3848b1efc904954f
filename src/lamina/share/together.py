"""Several jobs at once, most of which wait: for an answer, or for the disk."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

from lamina.core.errors import LaminaError

WORKERS = 8
"""Jobs at once: while one waits for an answer or the disk, another hashes."""
BULK_WORKERS = 4
"""Large transfers at once. With more of them all end at the same moment, and then wait for the disk
together, instead of one being synced while the next one comes."""
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class StoppedError(LaminaError):
    """Another thread failed, or the user asked to stop."""


def side_by_side(
    work: Callable[[ItemT, threading.Event], ResultT],
    items: Sequence[ItemT],
    workers: int = WORKERS,
) -> list[ResultT]:
    """Do work on all items, several at once; the results in their order.

    `work` gets an event that is set when it should stop: the first error stops all, and is raised,
    and so does Ctrl-C.
    """
    stop = threading.Event()
    if len(items) <= 1 or workers == 1:
        return [work(item, stop) for item in items]
    with ThreadPoolExecutor(max_workers=min(workers, len(items))) as pool:
        jobs = [pool.submit(work, item, stop) for item in items]
        try:
            wait(jobs, return_when=FIRST_EXCEPTION)
        finally:
            if any(not job.done() or job.exception() for job in jobs):
                stop.set()
                for job in jobs:
                    job.cancel()
    errors = [job.exception() for job in jobs if not job.cancelled() and job.exception()]
    for error in errors:
        if error is not None and not isinstance(error, StoppedError):
            raise error
    return [job.result() for job in jobs]
