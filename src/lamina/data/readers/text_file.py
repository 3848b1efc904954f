"""Plain text: whole paragraphs, gathered into rows of about 2,000 characters."""

from collections.abc import Iterator
from typing import BinaryIO

from lamina.data.readers.rows import Row, lines

ROW_CHARACTERS = 2000
"""A row ends before the paragraph that would make it longer; a longer paragraph ends at a line."""


def text_rows(stream: BinaryIO) -> Iterator[Row]:
    """Rows of a text file. Blank lines part paragraphs; several of them count as one.

    A line that cannot be read is a row of its own, with its fault.
    """
    row: list[str] = []
    start = 0
    for line, paragraph, fault in _paragraphs(stream):
        length = sum(map(len, row)) + 2 * len(row)
        if row and (fault or length + len(paragraph) > ROW_CHARACTERS):
            yield Row(start, "\n\n".join(row))
            row = []
        if fault:
            yield Row(line, None, fault)
            continue
        start = start if row else line
        row.append(paragraph)
    if row:
        yield Row(start, "\n\n".join(row))


def _paragraphs(stream: BinaryIO) -> Iterator[tuple[int, str, str | None]]:
    """(first line, text, fault) of each paragraph, or of a piece of a very long one."""
    found: list[str] = []
    start = length = 0
    for line in lines(stream):
        blank = not line.fault and not line.text.strip()
        if found and (line.fault or blank or length + len(line.text) > ROW_CHARACTERS):
            yield start, "\n".join(found), None
            found, length = [], 0
        if line.fault:
            yield line.number, "", line.fault
        elif not blank:
            start = start if found else line.number
            found.append(line.text)
            length += len(line.text) + 1
    if found:
        yield start, "\n".join(found), None
