"""CSV and TSV with a header line. A field may hold at most the csv module's 131,072 characters."""

import csv
from collections.abc import Iterator
from typing import Any, BinaryIO

from lamina.data.example import loaded
from lamina.data.readers.rows import Row, lines

_STRUCTURED = (
    "messages",
    "conversations",
    "tools",
    "history",
    "accept",
    "choices",
    "accept_calls",
)
"""Columns whose cells may hold a JSON list."""


def csv_rows(stream: BinaryIO) -> Iterator[Row]:
    """Rows of a comma-separated file; semicolons, if its header has those and no comma."""
    return _rows(stream, None)


def tsv_rows(stream: BinaryIO) -> Iterator[Row]:
    """Rows of a tab-separated file."""
    return _rows(stream, "\t")


def _rows(stream: BinaryIO, delimiter: str | None) -> Iterator[Row]:
    """One row a record, its line being where the record starts; empty cells are absent."""
    faults: list[str] = []
    source = _texts(stream, faults)
    first = next(source, None)
    if first is None:
        return
    if delimiter is None:
        delimiter = ";" if ";" in first and "," not in first else ","
    reader = csv.reader(_chain(first, source), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            faults.append(f"not CSV: {error}")
            cells = []
        if cells is None:
            return
        if header is None and not faults:
            header = cells
            continue
        found, faults[:] = "; ".join(faults), []
        if header is None:
            yield Row(line, None, f"the header cannot be read: {found}")
            return
        if found:
            yield Row(line, None, found)
        elif cells:
            yield _row(line, header, cells)


def _row(line: int, header: list[str], cells: list[str]) -> Row:
    if len(cells) != len(header):
        return Row(line, None, f"{len(cells)} fields, but the header has {len(header)}")
    return Row(line, {key: _value(key, text) for key, text in zip(header, cells, strict=True)})


def _value(key: str, text: str) -> Any:
    if key in _STRUCTURED and text.lstrip().startswith("["):
        return loaded(text)
    return text or None


def _texts(stream: BinaryIO, faults: list[str]) -> Iterator[str]:
    """Lines for the csv module, with their breaks; what is wrong with one goes to `faults`."""
    for line in lines(stream):
        if line.fault:
            faults.append(line.fault)
        yield line.text + "\n"


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest
