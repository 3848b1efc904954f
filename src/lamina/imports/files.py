"""Safetensors and JSON from strangers: headers checked before anything is read, no pickle."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lamina.bases.header import TensorEntry, read_entries
from lamina.bases.shell import TORCH_DTYPES
from lamina.core.errors import BaseError, LayerError
from lamina.core.plain import MAX_LINE
from lamina.core.strict import loads
from lamina.imports.adapter import Stored, shown
from lamina.lowrank.codec import MAX_CONFIG_BYTES, is_pickle

_UNREADABLE = "it is cut short, or was not written by safetensors; pickles are never opened"


def tensors_of(path: Path) -> dict[str, Stored]:
    """Every tensor of a safetensors file by name, unread.

    Raises LayerError: not safetensors, a header that lies, dtypes that torch has no plain form of.
    """
    refuse_pickle(path)
    try:
        entries = read_entries(path)
    except BaseError as error:
        why = error.message.removeprefix(f"{path.name} cannot be used: ")
        raise LayerError(
            f"{shown(path.name)} is not a safetensors file that can be used: {shown(why)}",
            faults=map(shown, error.faults),
            hint=_UNREADABLE,
        ) from None
    faults = [
        f"{shown(e.name)}: dtype {e.dtype} is not read"
        for e in entries
        if e.dtype not in TORCH_DTYPES
    ]
    if faults:
        raise LayerError(f"{shown(path.name)} cannot be used", faults=faults)
    return {entry.name: _stored(path, entry) for entry in entries}


def _stored(path: Path, entry: TensorEntry) -> Stored:
    def read() -> Tensor:
        data = bytearray(entry.end - entry.start)
        with path.open("rb") as handle:
            handle.seek(entry.start)
            if handle.readinto(data) != len(data):
                raise LayerError(f"{shown(path.name)} changed while it was read")
        if not data:
            return torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype])
        return torch.frombuffer(data, dtype=TORCH_DTYPES[entry.dtype]).view(entry.shape)

    return Stored(entry.shape, entry.dtype, read)


def metadata_of(path: Path) -> dict[str, str]:
    """The `__metadata__` of a safetensors file whose header `tensors_of` has read."""
    with path.open("rb") as handle:
        header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
    found = header.get("__metadata__") or {}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def json_of(path: Path) -> dict[str, Any]:
    """A JSON object. Raises LayerError."""
    try:
        size = path.stat().st_size
        if size > MAX_CONFIG_BYTES:
            raise LayerError(f"{path.name} has {size} bytes; {MAX_CONFIG_BYTES} are read")
        value = loads(path.read_bytes())
    except FileNotFoundError:
        raise LayerError(f"there is no {path.name} in {path.parent}") from None
    except ValueError as error:
        raise LayerError(f"{path.name} is not JSON: {shown(str(error))}") from None
    if not isinstance(value, dict):
        raise LayerError(f"{path.name} is not a JSON object")
    return value


def refuse_pickle(path: Path) -> None:
    """Raise LayerError for a file whose name is a pickle's, or that is none."""
    if is_pickle(path.name):
        raise LayerError(
            f"{shown(path.name)} is a pickle, which is never opened",
            hint="save it as safetensors where you trust it (safe_serialization=True)",
        )
    if not path.is_file():
        raise LayerError(f"there is no file {path}")


def base_named(found: Mapping[str, Any], *keys: str) -> str | None:
    """What a file calls the base that it was made on; of a path on somebody's machine the last
    part only."""
    text = text_in(found, *keys)
    if text is None or not re.match(r"[/\\~.]|[A-Za-z]:[/\\]", text):
        return text
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1] or None


def text_in(found: Mapping[str, Any], *keys: str) -> str | None:
    """The first of `keys` that has a short printable text."""
    for key in keys:
        value = found.get(key)
        if isinstance(value, str) and value.strip() and len(value) <= MAX_LINE:
            return shown(value.strip())
    return None
