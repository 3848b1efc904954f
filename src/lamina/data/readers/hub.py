"""Data sets of the Hugging Face hub, or of a local folder, through `datasets` (optional).

    hf:org/name[/config][:split][@revision]        hf:./folder[:split]      hf:/folder[:split]

The split is `train` where none is given.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lamina.core.errors import DataError, MissingPartError, UsageError
from lamina.data.readers.rows import Row

PREFIX = "hf:"
_SPLIT = "train"


@dataclass(frozen=True)
class HubName:
    """A parsed `hf:` source."""

    path: str
    config: str | None
    split: str
    revision: str | None


def parse_hub_name(source: str) -> HubName:
    """Parse `hf:…` as in the grammar above. Raises UsageError."""
    body, _, revision = source.removeprefix(PREFIX).partition("@")
    path, _, split = body.partition(":")
    config = None
    parts = path.split("/")
    if not path.startswith((".", "/")):
        if len(parts) not in (2, 3) or not all(parts):
            raise UsageError(
                f"{source!r} names no data set",
                hint="write hf:org/name, hf:org/name/config:split or hf:org/name@revision",
            )
        path, config = "/".join(parts[:2]), parts[2] if len(parts) == 3 else None
    return HubName(path, config, split or _SPLIT, revision or None)


class HubRows:
    """Rows of a data set, hashed while they are read."""

    def __init__(self, source: str) -> None:
        self._name = parse_hub_name(source)
        self._hash = hashlib.sha256()
        self._bytes = 0

    def __iter__(self) -> Iterator[Row]:
        """Rows, numbered from 1. Raises MissingPartError, DataError."""
        for number, value in enumerate(self._load(), start=1):
            data = json.dumps(value, sort_keys=True, default=str).encode() + b"\n"
            self._hash.update(data)
            self._bytes += len(data)
            yield Row(number, value)

    def seal(self) -> tuple[str, int]:
        """sha256 and size of the rows read, as JSON lines."""
        return f"sha256:{self._hash.hexdigest()}", self._bytes

    def _load(self) -> Any:
        try:
            import datasets
        except ImportError:
            raise MissingPartError(
                "reading hf: data sets needs `datasets`, which is not installed",
                hint="pip install 'lamina[datasets]'",
            ) from None
        name = self._name
        try:
            return datasets.load_dataset(
                name.path, name.config, split=name.split, revision=name.revision
            )
        except Exception as error:  # the network, the hub and each builder fail in their own ways
            fault = f"cannot be loaded: {type(error).__name__}: {error}"
            raise DataError("not loadable", faults=[fault]) from error
