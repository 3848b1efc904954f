"""A safetensors header read with suspicion: names, dtypes, shapes and offsets, no torch.

Format: 8 bytes little-endian length N, N bytes of JSON, then the tensors' bytes without holes.
https://huggingface.co/docs/safetensors/index#format
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.core.errors import BaseError, LaminaError
from lamina.core.plain import line_fault
from lamina.core.strict import loads

MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 100_000
MAX_AXES = 8
MAX_NAME = 500
"""Most characters of a tensor's name."""
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
_DEPTH = 3
_FIELDS = {"dtype", "shape", "data_offsets"}


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
    that overlap, leave holes or run past the end (as in a truncated file); more than MAX_TENSORS,
    MAX_AXES or MAX_NAME.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(_PREFIX_BYTES), "little")
            raw = handle.read(length) if _fits(length, size) else b""
    except FileNotFoundError as error:
        raise BaseError(f"there is no {path}", hint="pull the base again") from error
    try:
        return _entries(raw, length, size)
    except HeaderError as error:
        raise BaseError(
            f"{path.name} cannot be used: {error.message}", faults=error.faults, hint=error.hint
        ) from None


def check_bytes(data: bytes | memoryview) -> tuple[TensorEntry, ...]:
    """The same of a file's bytes. Raises HeaderError."""
    length = int.from_bytes(data[:_PREFIX_BYTES], "little")
    raw = data[_PREFIX_BYTES : _PREFIX_BYTES + length] if _fits(length, len(data)) else b""
    return _entries(bytes(raw), length, len(data))


class HeaderError(LaminaError, ValueError):
    """A safetensors header that cannot be believed; whoever reads it says whose it is."""


def _fits(length: int, size: int) -> bool:
    return length <= min(MAX_HEADER_BYTES, size - _PREFIX_BYTES)


def _entries(raw: bytes, length: int, size: int) -> tuple[TensorEntry, ...]:
    """From a header's bytes, the length that it claims and the whole file's size."""
    if not _fits(length, size):
        raise _bad(f"its header claims {length} bytes, the file has {size}")
    data_bytes = size - _PREFIX_BYTES - length
    faults: list[str] = []
    found: list[TensorEntry] = []
    for name, fields in _parse(raw).items():
        if name == "__metadata__":
            continue
        entry = _entry(name, fields, _PREFIX_BYTES + len(raw), faults)
        if entry is not None:
            found.append(entry)
    faults += _layout_faults(found, _PREFIX_BYTES + len(raw), data_bytes) if not faults else []
    if faults:
        raise _bad("its header is not valid", faults)
    return tuple(sorted(found, key=lambda entry: entry.name))


def _parse(raw: bytes) -> dict[str, Any]:
    """The header's object, no key of which comes twice, at any depth."""
    try:
        parsed = loads(raw, depth=_DEPTH)
    except ValueError as error:
        raise _bad(f"its header is not JSON that lamina reads: {error}") from None
    if not raw.startswith(b"{") or not isinstance(parsed, dict):
        raise _bad("its header is not a JSON object")
    if len(parsed) > MAX_TENSORS:
        raise _bad(f"it has {len(parsed):,} tensors; {MAX_TENSORS:,} are read")
    return parsed


def _entry(name: str, fields: Any, data_start: int, faults: list[str]) -> TensorEntry | None:
    """One tensor's fields, checked by themselves; None after adding to `faults`."""
    fault = line_fault(name, MAX_NAME)
    if fault:
        faults.append(f"{name[:80]!r} {fault}")
        return None
    if not isinstance(fields, dict) or fields.keys() != _FIELDS:
        faults.append(f"{name}: needs exactly dtype, shape and data_offsets")
        return None
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        faults.append(f"{name}: unknown dtype {str(dtype)[:40]!r}")
        return None
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        faults.append(f"{name}: shape and data_offsets must be natural numbers")
        return None
    if len(shape) > MAX_AXES:
        faults.append(f"{name}: {len(shape)} axes; {MAX_AXES} are read")
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


def _bad(why: str, faults: list[str] | tuple[str, ...] = ()) -> HeaderError:
    return HeaderError(
        why,
        faults=faults,
        hint="the file is damaged or was not written by safetensors; fetch it again",
    )
