"""JSON lines, one object a line; and a JSON array of objects."""

import json
from collections.abc import Iterator
from typing import BinaryIO

from lamina.core.errors import DataError
from lamina.data.readers.rows import MAX_LINE_BYTES, Line, Row, as_object, lines, parse_object

MAX_ARRAY_BYTES = 2_000_000_000
"""Largest array; it is held in memory as a whole."""

_SPACE = " \t\n\r"


def jsonl_rows(stream: BinaryIO) -> Iterator[Row]:
    """Rows of a JSON lines file; blank lines are no rows."""
    return (_row(line) for line in lines(stream) if line.fault or line.text.strip())


def json_rows(stream: BinaryIO) -> Iterator[Row]:
    """Rows of a `.json` file: of an array if the file is one, of JSON lines otherwise.

    A row's line is where its object starts. Raises: DataError for an array that is not UTF-8.
    """
    found = lines(stream)
    for line in found:
        if not line.fault and line.text.lstrip().startswith("["):
            yield from _array_rows(_join(line, found), line.number)
            return
        if line.fault or line.text.strip():
            yield _row(line)
            break
    yield from (_row(line) for line in found if line.fault or line.text.strip())


def _row(line: Line) -> Row:
    return (
        Row(line.number, None, line.fault) if line.fault else parse_object(line.text, line.number)
    )


def _join(first: Line, rest: Iterator[Line]) -> str:
    texts, faults, size = [first.text], [], len(first.text)
    for line in rest:
        texts.append(line.text)
        size += len(line.text)
        if line.fault:
            faults.append(f"line {line.number}: {line.fault}")
        if size > MAX_ARRAY_BYTES:
            faults.append(f"an array of more than {MAX_ARRAY_BYTES:,} bytes; save it as JSON lines")
            break
    if faults:
        raise DataError("not a readable JSON array", faults=faults)
    return "\n".join(texts)


def _array_rows(text: str, line: int) -> Iterator[Row]:
    """Decode one element after the other; after one that is not JSON nothing more can be found."""
    decoder = json.JSONDecoder()
    position = _after_space(text, text.index("[") + 1)
    counted = 0
    while not text.startswith("]", position):
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            yield Row(line, None, f"not JSON: {_words(error)}; nothing after it can be read")
            return
        if end - position > MAX_LINE_BYTES:
            yield Row(line, None, f"longer than {MAX_LINE_BYTES:,} characters")
        else:
            yield as_object(value, line)
        position = _after_space(text, end)
        if text.startswith(",", position):
            position = _after_space(text, position + 1)
        elif not text.startswith("]", position):
            yield Row(line, None, "no comma or ] after it; nothing after it can be read")
            return
    if text[position + 1 :].strip():
        line += text.count("\n", counted, position)
        yield Row(line, None, "text after the end of the array")


def _after_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in _SPACE:
        position += 1
    return position


def _words(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
