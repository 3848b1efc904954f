"""A safetensors header read with suspicion: names, dtypes, shapes and offsets, no torch.

Format: 8 bytes little-endian length N, N bytes of JSON, then the tensors' bytes without holes.
https://huggingface.co/docs/safetensors/index#format
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.core.errors import BaseError

MAX_HEADER_BYTES = 100_000_000
ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
_PREFIX_BYTES = 8


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file; `start` and `end` are byte offsets from the file's beginning."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_entries(path: Path) -> tuple[TensorEntry, ...]:
    """Every tensor of a safetensors file, sorted by name.

    Raises BaseError listing every fault: not safetensors, a header longer than the file or than
    MAX_HEADER_BYTES, a name twice, an unknown dtype, a size that is not shape x dtype, offsets
    that overlap, leave holes or run past the end (as in a truncated file).
    """
    raw, data_bytes = _read_header(path)
    pairs = _parse(path, raw)
    faults: list[str] = []
    found: list[TensorEntry] = []
    seen: set[str] = set()
    for name, fields in pairs:
        if name in seen:
            faults.append(f"{name}: is there twice")
        seen.add(name)
        if name == "__metadata__":
            continue
        entry = _entry(name, fields, _PREFIX_BYTES + len(raw), faults)
        if entry is not None:
            found.append(entry)
    faults += _layout_faults(found, _PREFIX_BYTES + len(raw), data_bytes) if not faults else []
    if faults:
        raise _bad(path, "its header is not valid", faults)
    return tuple(sorted(found, key=lambda entry: entry.name))


def _read_header(path: Path) -> tuple[bytes, int]:
    """The header's bytes and the number of bytes after it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(_PREFIX_BYTES), "little")
            if size < _PREFIX_BYTES or length > min(MAX_HEADER_BYTES, size - _PREFIX_BYTES):
                raise _bad(path, f"its header claims {length} bytes, the file has {size}")
            return handle.read(length), size - _PREFIX_BYTES - length
    except FileNotFoundError as error:
        raise BaseError(f"there is no {path}", hint="pull the base again") from error


def _parse(path: Path, raw: bytes) -> list[tuple[str, Any]]:
    """The header's (name, fields) pairs, with repeated names kept."""
    try:
        # Nested objects become lists of pairs too, so that a repeated key cannot hide.
        parsed = json.loads(raw, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"its header is not JSON ({type(error).__name__})") from error
    if not raw.startswith(b"{") or not isinstance(parsed, list):
        raise _bad(path, "its header is not a JSON object")
    return parsed


def _entry(name: str, fields: Any, data_start: int, faults: list[str]) -> TensorEntry | None:
    """One tensor's fields, checked by themselves; None after adding to `faults`."""
    try:
        known = dict(fields)
        dtype, shape, offsets = known.pop("dtype"), known.pop("shape"), known.pop("data_offsets")
        if known or len(fields) != 3:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        faults.append(f"{name}: needs exactly dtype, shape and data_offsets")
        return None
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        faults.append(f"{name}: unknown dtype {str(dtype)[:40]!r}")
        return None
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        faults.append(f"{name}: shape and data_offsets must be natural numbers")
        return None
    entry = TensorEntry(name, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])
    if entry.elements * ITEM_BYTES[dtype] != offsets[1] - offsets[0]:
        faults.append(
            f"{name}: {dtype} of shape {entry.shape} is not {offsets[1] - offsets[0]} bytes"
        )
        return None
    return entry


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _layout_faults(entries: list[TensorEntry], data_start: int, data_bytes: int) -> list[str]:
    """Overlaps, holes, and a data part that is longer or shorter than the header says."""
    faults = []
    position = data_start
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.end)):
        if entry.start != position:
            what = "overlaps the tensor before it" if entry.start < position else "leaves a hole"
            faults.append(f"{entry.name}: {what}")
        position = max(position, entry.end)
    if position != data_start + data_bytes:
        faults.append(
            f"the header describes {position - data_start} bytes of tensors, the file has "
            f"{data_bytes}"
        )
    return faults


def _bad(path: Path, why: str, faults: list[str] | tuple[str, ...] = ()) -> BaseError:
    return BaseError(
        f"{path.name} cannot be used: {why}",
        faults=faults,
        hint="the file is damaged or was not written by safetensors; fetch it again",
    )
