"""Rows' activations that outlast a run: what lies below is the same in the next update too.

One folder for all that decides them beside the row (base, layers, first trained layer, code,
processor), in it a safetensors file a run, in which a tensor is called by the digests of its row's
token ids and of its own bytes. Files appear whole, the oldest give way to new ones, and all of it
may be deleted at any time.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lamina.bases.header import TensorEntry, read_entries
from lamina.bases.shell import TORCH_DTYPES
from lamina.core.errors import BaseError, ReadOnlyStoreError, StoreFullError
from lamina.core.files import atomic_writer

MOST = 1 << 30
"""Bytes of all packs of a store, at most."""
SHARE_OF_DISK = 1 / 4
"""Of what is free on its disk, at most, for a new one."""
SUFFIX = ".safetensors"
_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


class Item(NamedTuple):
    """A tensor to be written."""

    row: str
    """Hex digest of the row's token ids."""
    content: str
    """Hex digest of the tensor's bytes."""
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Of the tensor."""
        return int(torch.Size(self.shape).numel() * self.dtype.itemsize)


class _Found(NamedTuple):
    handle: int
    entry: TensorEntry
    content: str


class Packs:
    """What earlier runs left under one key. What cannot be read, or not whole, is not there."""

    def __init__(self, root: Path, key: str, most: int = MOST) -> None:
        """`root`: the folder of all keys; `most`: bytes of all of them."""
        self._root, self._folder, self._most = root, root / key, most
        self._handles: list[int] = []
        self._rows: dict[str, _Found] = {}
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            with contextlib.suppress(OSError, BaseError):
                self._open(path)

    def __del__(self) -> None:
        for handle in self._handles:
            os.close(handle)

    def __contains__(self, row: str) -> bool:
        return row in self._rows

    def _open(self, path: Path) -> None:
        entries = read_entries(path)
        handle = os.open(path, os.O_RDONLY)
        self._handles.append(handle)
        os.utime(path)  # used: the last to give way
        for entry in entries:
            row, _, content = entry.name.partition(".")
            self._rows.setdefault(row, _Found(handle, entry, content))

    def look_up(self, row: str) -> Tensor | None:
        """A row's activations, checked; None where they are not there."""
        found = self._rows.get(row)
        if found is None:
            return None
        entry = found.entry
        with contextlib.suppress(OSError):
            data = bytearray(os.pread(found.handle, entry.end - entry.start, entry.start))
            if hashlib.sha256(data).hexdigest() == found.content:
                flat = torch.frombuffer(data, dtype=TORCH_DTYPES[entry.dtype])
                return flat.view(entry.shape)
        del self._rows[row]
        return None

    def add(self, items: Sequence[Item], tensors: Iterable[Tensor]) -> None:
        """Write a pack of as many of the tensors, in their order, as there is room for.

        Nothing where the system does not let it.
        """
        with contextlib.suppress(OSError, StoreFullError, ReadOnlyStoreError):
            self._root.mkdir(parents=True, exist_ok=True)
            room = min(self._most, int(SHARE_OF_DISK * shutil.disk_usage(self._root).free))
            chosen, size = [], 0
            for item in items:
                if size + item.bytes > room:
                    break
                chosen.append(item)
                size += item.bytes
            if chosen:
                self._make_room(size)
                self._write(chosen, tensors)

    def _make_room(self, size: int) -> None:
        found = []
        for path in self._root.glob(f"*/*{SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        total = sum(each for _, each, _ in found)
        for _, each, path in sorted(found):
            if total + size <= self._most:
                break
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                path.parent.rmdir()  # where it was the last
            total -= each

    def _write(self, items: Sequence[Item], tensors: Iterable[Tensor]) -> None:
        header: dict[str, object] = {}
        end = 0
        for item in items:
            start, end = end, end + item.bytes
            header[f"{item.row}.{item.content}"] = {
                "dtype": _NAMES[item.dtype],
                "shape": list(item.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header).encode()
        with atomic_writer(self._folder / f"{uuid.uuid4().hex}{SUFFIX}") as handle:
            handle.write(len(text).to_bytes(8, "little") + text)
            for _, x_TC in zip(items, tensors, strict=False):
                handle.write(x_TC.contiguous().view(torch.uint8).flatten().numpy().data)
