"""A run's state in one file that appears whole or not at all, checked when it is read.

Tensors as safetensors, the rest as JSON in its metadata; no pickle. The file carries a digest of
its own tensors and state, so a flipped byte is found before it is trained on.
"""

import errno
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lamina.core.digest import canonical_json
from lamina.core.errors import TrainError
from lamina.core.files import atomic_path
from lamina.core.values import Value

FILE = "state.safetensors"
V = TypeVar("V", bound=Value)
_OS_ERROR = re.compile(r"os error (\d+)")


class Progress(Value):
    """Everything a loop needs beside tensors to go on exactly where it stopped."""

    step: int
    """Optimiser steps done."""
    steps: int | None = None
    """Steps of the schedule; None while a time limit is still being measured."""
    warmup: int
    tokens: int
    """Learned from, over all steps."""
    looked_at: int = 0
    """Tokens of rows looked at without learning (see `train.plan`)."""
    passes: int = 0
    """The pass that runs and the step it began with, where rows that are known are left out."""
    pass_began: int = 0
    skipped_in_row: int
    seconds: float
    """Training time so far, over all sittings."""
    best_step: int
    best_loss: float | None = None
    first_loss: float | None = None
    since_best: int
    supervised: int | None = None
    """Tokens learned to predict, over all steps; None in a state from before this was counted."""
    evaluated: int = 0
    """Held-out tokens looked at, over all evaluations; and those of them that are predicted."""
    evaluated_supervised: int = 0
    joules: float | None = None
    """Energy of the same time as `seconds`; None where a sitting had no counter."""
    metered: str | None = None
    """By which counters, or why there are none."""
    stopped: str | None = None
    """Why the run ended before its schedule did."""


def save(directory: Path, progress: Progress, tensors: dict[str, Tensor]) -> None:
    """Write the state atomically. Raises StoreFullError, ReadOnlyStoreError."""
    write(directory / FILE, progress, tensors)


def write(path: Path, progress: Value, tensors: Mapping[str, Tensor]) -> None:
    """As `save`, for a state of another kind."""
    text = progress.to_bytes().decode()
    tensors = {key: value.cpu() for key, value in tensors.items()}
    metadata = {"progress": text, "digest": _digest(text, tensors)}
    with atomic_path(path) as place:  # from where the tensors lie: no copy of them
        try:
            safetensors.torch.save_file(tensors, place, metadata=metadata)
        except safetensors.SafetensorError as error:
            raise _system_error(error) from error


def _system_error(error: Exception) -> OSError:
    """What the system said, which safetensors passes on as text only."""
    found = _OS_ERROR.search(str(error))
    return OSError(int(found[1]) if found else errno.EIO, str(error))


def load(directory: Path) -> tuple[Progress, dict[str, Tensor]] | None:
    """The saved state, or None where there is none. Raises TrainError when it is damaged."""
    return read(directory / FILE, Progress)


def read(path: Path, kind: type[V]) -> tuple[V, dict[str, Tensor]] | None:
    """As `load`, for a state of another kind."""
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as handle:
            metadata: dict[str, Any] = handle.metadata() or {}
            # copies, so that nothing trains on pages of a file that may be replaced
            tensors = {key: handle.get_tensor(key).clone() for key in handle.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise TrainError(f"the checkpoint {path} cannot be read: {error}", hint=_HINT) from None
    text = metadata.get("progress", "")
    if metadata.get("digest") != _digest(text, tensors):
        raise TrainError(f"the checkpoint {path} is damaged", hint=_HINT)
    return kind.parse(json.loads(text), "the checkpoint"), tensors


_HINT = "delete the file to train this run from its start"


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    state = hashlib.sha256(canonical_json(text))
    for key in sorted(tensors):
        state.update(key.encode())
        state.update(tensors[key].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()
