"""Which rows were learned or examined, as eight bytes a row: enough to recognise a row, not to
read it.

A set is the sorted first 64 bits of the rows' content digests, big-endian. Two different rows are
taken for one with probability n / 2^64.
"""

from collections.abc import Iterable

from lamina.core.errors import DataError
from lamina.data.example import Example

WIDTH = 8
"""Bytes a row."""


def mark(example: Example) -> bytes:
    """The row's eight bytes."""
    return bytes.fromhex(example.content_digest().removeprefix("sha256:"))[:WIDTH]


def pack(marks: Iterable[bytes]) -> bytes:
    """A set of marks as bytes; equal sets, equal bytes."""
    return b"".join(sorted(set(marks)))


def unpack(data: bytes) -> frozenset[bytes]:
    """What `pack` wrote. Raises DataError for bytes that are no such set."""
    marks = [data[i : i + WIDTH] for i in range(0, len(data), WIDTH)]
    if len(data) % WIDTH or sorted(set(marks)) != marks:
        raise DataError("the list of rows already seen is damaged", hint="run: lamina verify")
    return frozenset(marks)
