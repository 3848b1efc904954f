"""A row as a container gives it, and reading lines without trusting their length or encoding."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from lamina.core.errors import DataError
from lamina.data.example import kind

MAX_LINE_BYTES = 10_000_000
"""Longest line, and longest row of a JSON array; a longer one is a fault, and is not kept."""

_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_SKIP_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its value, or the fault that kept it from being read."""

    line: int
    """Where it starts; in tables and hub data sets its number. Counts from 1."""
    value: dict[str, Any] | str | None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One line of text without its line break."""

    number: int
    text: str
    """Undecodable bytes are replaced, an overlong line is empty: then `fault` is set."""
    fault: str | None = None


def lines(stream: BinaryIO, limit: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """Lines of a UTF-8 file, with or without byte order mark; memory stays below `limit` bytes.

    Raises: DataError for UTF-16.
    """
    offset = number = 0
    while raw := stream.readline(limit + 1):
        number += 1
        start, offset = offset, offset + len(raw)
        if number == 1 and raw.startswith(_UTF16_MARKS):
            raise DataError("UTF-16", faults=["it is UTF-16 text; save it as UTF-8"])
        if len(raw) > limit and not raw.endswith(b"\n"):
            offset += _skip_line(stream)
            yield Line(number, "", f"longer than {limit:,} bytes ({offset - start:,})")
            continue
        if number == 1 and raw.startswith(_UTF8_MARK):
            raw, start = raw.removeprefix(_UTF8_MARK), len(_UTF8_MARK)
        yield _decoded(raw, number, start)


def parse_object(text: str, line: int) -> Row:
    """A row from the JSON text of an object."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return Row(line, None, f"not JSON: {error.msg} (column {error.colno})")
    except RecursionError:
        return Row(line, None, "JSON nested too deeply")
    except ValueError as error:  # a number of thousands of digits
        return Row(line, None, f"not usable JSON: {error}")
    return as_object(value, line)


def as_object(value: Any, line: int) -> Row:
    """A row from a JSON value, which must be an object."""
    if isinstance(value, dict):
        return Row(line, value)
    what = "null" if value is None else kind(value)
    return Row(line, None, f"{what}, where a JSON object was expected")


def _decoded(raw: bytes, number: int, start: int) -> Line:
    raw = raw.removesuffix(b"\n").removesuffix(b"\r")
    nul = raw.find(b"\0")
    if nul >= 0:
        text = raw.decode("utf-8", "replace")
        return Line(number, text, f"NUL byte at byte {start + nul}: is this a text file?")
    try:
        return Line(number, raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        fault = f"not UTF-8 at byte {start + error.start} ({raw[error.start]:#04x}); save as UTF-8"
        return Line(number, raw.decode("utf-8", "replace"), fault)


def _skip_line(stream: BinaryIO) -> int:
    """Read on to the end of the line; how many bytes that were."""
    skipped = 0
    while raw := stream.readline(_SKIP_BYTES):
        skipped += len(raw)
        if raw.endswith(b"\n"):
            break
    return skipped
