"""Bodies of requests, and a count of what went over the wire."""

import threading
from collections.abc import Callable, Iterator

BLOCK_BYTES = 1 << 18
"""Bytes handed to the system at once; http.client's own 8 kB cost a third of the speed."""


class Traffic:
    """What went over the wire, counted from any thread. Bodies only, in bytes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.sent = 0
        self.received = 0
        self.retried = 0
        """Requests and transfers that failed and were tried again."""

    def add(self, *, sent: int = 0, received: int = 0, retried: int = 0) -> None:
        """Count."""
        with self._lock:
            self.sent += sent
            self.received += received
            self.retried += retried


class Body:
    """Bytes to send, read block by block, so that a time limit is one of a block."""

    def __init__(self, data: memoryview, tell: Callable[[int], None] | None = None) -> None:
        self._data, self._said, self._place = data, tell, 0

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[memoryview]:
        while piece := self.read(BLOCK_BYTES):
            yield piece

    def read(self, count: int = -1) -> memoryview:
        """The next bytes."""
        end = len(self._data) if count < 0 else min(self._place + count, len(self._data))
        piece = self._data[self._place : end]
        self._place = end
        if self._said is not None and piece:
            self._said(len(piece))
        return piece

    def tell(self) -> int:
        """How many bytes have been read."""
        return self._place

    def seek(self, place: int) -> int:
        """Go back, where a redirect wants all of it again."""
        self._place = place
        return place
