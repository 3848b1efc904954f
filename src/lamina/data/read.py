"""Reading training data: every source to examples, every fault reported at once."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from lamina.core.errors import DataError, UsageError
from lamina.core.manifests import SourceFile
from lamina.core.plain import MAX_LINE, shown_in_line
from lamina.data.example import Example
from lamina.data.readers.format import RowFormat, RowValue
from lamina.data.readers.registry import FORMATS, JOINT, detect, formats_named
from lamina.data.readers.rows import Row
from lamina.data.readers.sources import open_source

_LOOKED_AT = 50
"""Readable rows by which a file's format is told."""


@dataclass(frozen=True)
class BadRow:
    """A row that was left out, and why."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True)
class Dataset:
    """What was read."""

    examples: tuple[Example, ...]
    """In the order of the files; of exact duplicates only the first."""
    files: tuple[SourceFile, ...]
    format: str
    """`chat`; `chat+text` where the files are written in several formats."""
    bad: tuple[BadRow, ...]
    """Rows left out by `skip_bad`."""
    duplicates: int
    """Exact duplicates left out."""
    licence: str | None


@dataclass
class _Reading:
    """What has been read so far."""

    allowed: tuple[RowFormat, ...]
    examples: dict[str, Example] = field(default_factory=dict)
    files: list[SourceFile] = field(default_factory=list)
    formats: set[str] = field(default_factory=set)
    bad: list[BadRow] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Faults of whole sources."""
    unreadable: int = 0
    rows: int = 0
    duplicates: int = 0


def read(
    sources: Sequence[str | Path],
    *,
    format: str | None = None,
    skip_bad: bool = False,
    licence: str | None = None,
) -> Dataset:
    """Read files and `hf:` data sets (see `readers.sources`) into examples.

    All rows of one file are in one format, which is detected unless `format` names it. Exact
    duplicates (equal content digest) are left out and counted. A file's sha256 is taken while it
    is read.

    Raises: DataError naming all bad rows of all files as `file:line: reason`; with `skip_bad` bad
    rows are left out and counted instead, but a file that cannot be read at all, or in which
    nothing is left, is still a fault. UsageError for an unknown format or no source;
    MissingPartError for a source whose optional library is missing.
    """
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    if not given:
        raise UsageError("no data given", hint="name a file: --data rows.jsonl")
    reading = _Reading(formats_named(format))
    for source in given:
        try:
            _read_source(source, reading)
        except DataError as error:
            reading.unreadable += 1
            reading.broken += [f"{source}: {fault}" for fault in error.faults or [error.message]]
    _raise_faults(reading, skip_bad, len(given))
    return Dataset(
        examples=tuple(reading.examples.values()),
        files=tuple(reading.files),
        format=JOINT.join(name for name in FORMATS if name in reading.formats),
        bad=tuple(reading.bad),
        duplicates=reading.duplicates,
        licence=licence,
    )


def _raise_faults(reading: _Reading, skip_bad: bool, sources: int) -> None:
    bad = [] if skip_bad and reading.examples else reading.bad
    counts = []
    if bad:
        counts.append(f"{len(bad)} of {reading.rows} rows cannot be used")
    if reading.broken:
        counts.append(f"{reading.unreadable} of {sources} sources cannot be read")
    if counts:
        hint = "correct these rows, or leave them out with --skip-bad"
        raise DataError(
            "; ".join(counts),
            faults=[*reading.broken, *map(str, bad)],
            hint=hint if bad and not skip_bad else "correct what is named above",
        )


def _read_source(source: str | Path, reading: _Reading) -> None:
    """Read one source to its end. Raises DataError for a fault of the whole source."""
    before = reading.rows
    with open_source(source) as opened:
        head, form = _detect(opened.rows, reading.allowed)
        for row in chain(head, opened.rows):
            reading.rows += 1
            reason = row.fault or _add(row.value, form, reading)
            if reason:
                reading.bad.append(BadRow(str(source), row.line, reason))
        rows = reading.rows - before
        if not rows:
            raise DataError("empty", faults=["is empty: it holds no rows"])
        sha256, size = opened.seal()
        name = shown_in_line(opened.name)[:MAX_LINE]
        reading.files.append(SourceFile(name=name, sha256=sha256, bytes=size, rows=rows))
        if form is not None:
            reading.formats.add(form.name)


def _detect(
    rows: Iterator[Row], allowed: Sequence[RowFormat]
) -> tuple[list[Row], RowFormat | None]:
    """The first rows, and the format of the readable ones; None where none can be read.

    Raises: DataError when they fit no format.
    """
    head: list[Row] = []
    values: list[RowValue] = []
    for row in rows:
        head.append(row)
        if row.value is not None:
            values.append(row.value)
        if len(values) == _LOOKED_AT:
            break
    if len(allowed) == 1:
        return head, allowed[0]
    name = detect(values, allowed) if values else None
    if name is None and values:
        first = next(row for row in head if row.value is not None)
        wanted = "; ".join(f"{form.name}: {form.expects}" for form in allowed)
        fault = (
            f"its rows are in no known format: line {first.line} has {_keys(values[0])} ({wanted})"
        )
        raise DataError("unknown format", faults=[fault])
    return head, FORMATS[name] if name else None


def _add(value: RowValue | None, form: RowFormat | None, reading: _Reading) -> str | None:
    """Take a row in, or say why not."""
    if value is None or form is None:
        return "holds nothing"
    if not form.matches(value):
        return _misfit(value, form)
    try:
        example = form.parse(value)
        digest = example.content_digest()
    except DataError as error:
        return "; ".join(error.faults)
    except RecursionError:
        return "nested too deeply"
    if digest in reading.examples:
        reading.duplicates += 1
    else:
        reading.examples[digest] = example
    return None


def _misfit(value: RowValue, form: RowFormat) -> str:
    other = detect([value])
    if other is not None and other != form.name:
        return f"a row in {other} format in a {form.name} file; one file holds one format"
    return f"has {_keys(value)}; a {form.name} row has {form.expects}"


def _keys(value: RowValue) -> str:
    """The keys of a row, for people."""
    if isinstance(value, str):
        return "plain text"
    keys: Iterable[str] = (f"{k} (null)" if v is None else str(k) for k, v in value.items())
    return "the keys " + ", ".join(keys) if value else "no keys"
