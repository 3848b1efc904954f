"""Parquet tables, through pyarrow (optional)."""

from collections.abc import Iterator
from typing import BinaryIO

from lamina.core.errors import DataError, MissingPartError
from lamina.data.readers.rows import Row

_BATCH_ROWS = 1000


def parquet_rows(stream: BinaryIO) -> Iterator[Row]:
    """Rows of a table, numbered from 1. The file is held in memory.

    Raises: MissingPartError without pyarrow; DataError for a file that is not Parquet.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingPartError(
            "reading Parquet needs pyarrow, which is not installed",
            hint="pip install 'lamina[parquet]'",
        ) from None
    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(stream.read()))
        for batch in table.iter_batches(batch_size=_BATCH_ROWS):
            for value in batch.to_pylist():
                number += 1
                yield Row(number, value)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError("not Parquet", faults=[f"not a readable Parquet file: {error}"]) from error
