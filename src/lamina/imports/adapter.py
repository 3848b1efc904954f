"""What every reader gives: low-rank pairs and whole tensors by the file's own names, unread."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from lamina.core.digest import digest_file
from lamina.core.imported import ImportedFile, ImportKind
from lamina.core.plain import shown_in_line

MERGE_FIRST = (
    "merge it with the tool that made it (peft: merge_and_unload), and import the merged checkpoint"
)
"""The way out for whatever is no low-rank sum."""
WORDS: dict[ImportKind, str] = {
    "peft": "PEFT adapter",
    "checkpoint": "whole model",
    "gguf-lora": "GGUF LoRA",
    "kohya": "LoRA with kohya's or diffusers' names",
    "mlx": "mlx-lm adapter",
}
"""What each kind is called."""
_SHOWN = 160


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor in a file: what the header says of it, and how to read it."""

    shape: tuple[int, ...]
    dtype: str
    """As the file calls it: F32, BF16, Q8_0, …"""
    read: Callable[[], Tensor]

    def transposed(self) -> "Stored":
        """The same matrix with its axes swapped."""
        return Stored(self.shape[::-1], self.dtype, lambda: self.read().T)

    def flattened(self) -> "Stored":
        """The matrix (O, I kh kw) of a convolution's (O, I, kh, kw)."""
        shape = (self.shape[0], math.prod(self.shape[1:]))
        return Stored(shape, self.dtype, lambda: self.read().flatten(1))


@dataclass(frozen=True, eq=False)
class Pair:
    """delta W = scale * B A of one linear, with what DoRA and trained biases add to it."""

    a_RI: Stored
    b_OR: Stored
    scale: float
    magnitude_O: Stored | None = None
    """DoRA: the norm of each row of the new weight (arXiv:2402.09353)."""
    bias_O: Stored | None = None
    """A bias of B: adds scale * bias to the outputs."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """What was read from somebody's files, before it meets a base."""

    kind: ImportKind
    files: tuple[Path, ...]
    pairs: Mapping[str, Pair]
    """By module name as the file has it."""
    rest: Mapping[str, Stored]
    """Whole tensors, by name as the file has it."""
    made_on: str | None = None
    licence: str | None = None
    author: str | None = None
    notes: tuple[str, ...] = ()
    reference: Callable[[Path, Collection[str]], None] | None = None
    """Writes the adapter into a folder as PEFT reads it, by what the files say, but for some whole
    tensors; None where PEFT has no such form."""

    def noted(self, *notes: str) -> "Adapter":
        """The same with more to be said."""
        return replace(self, notes=(*self.notes, *notes))

    def sources(self) -> tuple[ImportedFile, ...]:
        """Its files as the layer's manifest names them. Reads every byte."""
        return tuple(
            ImportedFile(name=path.name, sha256=digest_file(path), bytes=path.stat().st_size)
            for path in self.files
        )


def shown(name: str) -> str:
    """A name from somebody's file, fit for a terminal: printable and not endless."""
    text = shown_in_line(name)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
