"""Opening what a user names: a file by its suffix, images, or a data set of the hub. Hashed."""

import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Protocol, cast

from lamina.core.errors import DataError
from lamina.data.readers.csv_file import csv_rows, tsv_rows
from lamina.data.readers.hub import PREFIX, HubRows
from lamina.data.readers.images import ImageRows
from lamina.data.readers.json_file import json_rows, jsonl_rows
from lamina.data.readers.parquet_file import parquet_rows
from lamina.data.readers.rows import Row
from lamina.data.readers.text_file import text_rows


class Container(Protocol):
    """Takes the rows out of a file's bytes, one after the other."""

    def __call__(self, stream: BinaryIO) -> Iterator[Row]:
        """Rows in order. Raises DataError, its faults without the file's name."""


CONTAINERS: MappingProxyType[str, Container] = MappingProxyType(
    {
        ".jsonl": jsonl_rows,
        ".ndjson": jsonl_rows,
        ".json": json_rows,
        ".csv": csv_rows,
        ".tsv": tsv_rows,
        ".parquet": parquet_rows,
        ".txt": text_rows,
        ".md": text_rows,
    }
)
"""Container by the file's suffix; each also with `.gz` behind it."""

_BUFFER_BYTES = 1 << 18


@dataclass(frozen=True)
class Opened:
    """A source that is being read."""

    name: str
    """File name without its folder, or the `hf:` name."""
    rows: Iterator[Row]
    seal: Callable[[], tuple[str, int]]
    """sha256 and size in bytes of the source, once its rows are read."""


@contextmanager
def open_source(source: str | Path) -> Iterator[Opened]:
    """Open a file or an `hf:` data set.

    Raises: DataError, also while rows are read; its faults do not name the source. UsageError for
    an `hf:` name that is none; MissingPartError.
    """
    if isinstance(source, str) and source.startswith(PREFIX):
        rows = HubRows(source)
        yield Opened(source, iter(rows), rows.seal)
        return
    path = Path(source)
    try:
        if path.is_dir() or path.suffix.lower() == ".zip":
            images = ImageRows(path)
            yield Opened(path.name, images.rows(), images.seal)
            return
        container = _container(path)
        with path.open("rb", buffering=0) as raw:
            hashing = _Hashing(raw)
            plain = io.BufferedReader(hashing, _BUFFER_BYTES)
            if path.suffix.lower() == ".gz":
                with gzip.GzipFile(fileobj=plain) as stream:
                    yield Opened(path.name, container(cast(BinaryIO, stream)), hashing.seal)
            else:
                yield Opened(path.name, container(plain), hashing.seal)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError("damaged", faults=[f"not a whole gzip file: {error}"]) from error
    except OSError as error:
        raise DataError("unreadable", faults=[_words(error)]) from error


def _container(path: Path) -> Container:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    found = CONTAINERS.get(suffixes[-1]) if suffixes else None
    if found is None and path.exists():
        known = ", ".join(CONTAINERS)
        fault = f"unknown type of file; known: {known}, and .gz; of images folders and .zip"
        raise DataError("unknown type", faults=[fault])
    return found or text_rows  # a missing file says so when it is opened


def _words(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return error.strerror or str(error)


class _Hashing(io.RawIOBase):
    """A file whose bytes are hashed as they pass."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._hash = hashlib.sha256()
        self._bytes = 0

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; how many bytes were there."""
        count = self._raw.readinto(buffer) or 0
        self._hash.update(memoryview(buffer)[:count])
        self._bytes += count
        return count

    def seal(self) -> tuple[str, int]:
        """Read what is left; sha256 and size of the whole file."""
        while self.read(_BUFFER_BYTES):
            pass
        return f"sha256:{self._hash.hexdigest()}", self._bytes
