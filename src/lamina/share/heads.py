"""HTTP answers whose head must be whole.

`http.client` takes a connection that ends among an answer's headers for the end of the headers. So
a connection that breaks there gives an answer that looks whole and lacks headers, or has one of
them cut in its middle: half a digest, half a place to upload to.
"""

import http.client
from typing import Any

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


class BrokenHeadError(http.client.HTTPException):
    """The connection ended before the headers did; urllib3 makes a ProtocolError of it."""


class _Lines:
    """A file whose lines must all end."""

    def __init__(self, file: Any) -> None:
        self._file, self._started = file, False

    def readline(self, limit: int = -1) -> bytes:
        line: bytes = self._file.readline(limit)
        # before the first line there is no answer at all, which http.client tells itself
        if self._started and not line:
            raise BrokenHeadError("the connection broke in the head of an answer")
        self._started = True
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Answer(http.client.HTTPResponse):
    def begin(self) -> None:
        if self.headers is not None:  # read before
            return
        file = self.fp
        self.fp = _Lines(file)
        try:
            super().begin()
        finally:
            if self.fp is not None:
                self.fp = file


class _Connection(HTTPConnection):
    response_class = _Answer


class _TLSConnection(HTTPSConnection):
    response_class = _Answer


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


POOLS = {"http": _Pool, "https": _TLSPool}
"""For a urllib3 PoolManager's `pool_classes_by_scheme`."""
