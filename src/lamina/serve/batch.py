"""One pass of the base: which tokens of which sequences, in which order, under which layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lamina.lowrank.maths import LayerFactors

BLOCK = 32
"""Tokens of a block of the cache of keys and values."""


class Loaded(Protocol):
    """A layer's factors, as a decoder keeps them."""

    @property
    def bytes(self) -> int:
        """What they take in memory."""

    @property
    def key(self) -> int:
        """Differs from that of any other: orders the rows of a pass."""


@dataclass(frozen=True, eq=False)
class Span:
    """Tokens of one sequence that are read in this pass."""

    ids: Sequence[int]
    past: int
    """Tokens of the sequence that are in the cache already."""
    blocks: Sequence[int]
    """The cache's blocks that hold the sequence, in order, those for `ids` included."""
    layers: Sequence[Loaded]
    """What is added to the base, lowest first."""
    wanted: bool
    """Whether the logits after the last token are asked for."""


class Decoder(Protocol):
    """A base that reads spans of many sequences at once, each under its own layers."""

    @property
    def vocabulary(self) -> int:
        """V."""

    @property
    def block_bytes(self) -> int:
        """What a block of the cache takes."""

    def reserve(self, blocks: int) -> None:
        """Make the cache: `blocks` blocks, once, before `run`."""

    def load(self, factors: LayerFactors) -> Loaded:
        """Keep a layer's factors, scales and weight included. From any thread.

        Raises LayerError listing every fault when they do not fit.
        """

    def run(self, spans: Sequence[Span]) -> Tensor:
        """Read the spans, write their keys and values into their blocks; float32 logits (M, V) of
        those wanted, in the order given. The tensor is valid until the next run."""


@dataclass(frozen=True, eq=False)
class Run:
    """Neighbouring rows of a pass that one layer is added to."""

    layer: Loaded
    depth: int
    """Its place in the stack: sums have this order."""
    lo: int
    hi: int


@dataclass(frozen=True, eq=False)
class Laid:
    """Spans as rows: those under the same lower layers stand together."""

    order: list[int]
    """Places of the spans, as they were given, in the order of the rows."""
    ids_N: Tensor
    """int64."""
    position_N: np.ndarray
    """int64, each row's place in its sequence."""
    seq_N: np.ndarray
    """int32, each row's span, in the order of the rows."""
    start_S: np.ndarray
    """int64 (S + 1), first rows."""
    past_S: np.ndarray
    """int64."""
    blocks_SW: np.ndarray
    """int32, filled up with 0."""
    wanted_M: np.ndarray
    """int64, rows whose logits are asked for, in the order that the spans were given."""
    runs: list[Run]


def lay_out(spans: Sequence[Span]) -> Laid:
    """Rows of a pass. Stacks that share their lower layers are neighbours, so that each shared
    layer has few runs of rows, mostly one."""
    order = sorted(range(len(spans)), key=lambda i: ([x.key for x in spans[i].layers], i))
    placed = [spans[i] for i in order]
    lengths = np.array([len(span.ids) for span in placed], dtype=np.int64)
    start = np.zeros(len(placed) + 1, dtype=np.int64)
    np.cumsum(lengths, out=start[1:])
    past = np.array([span.past for span in placed], dtype=np.int64)
    seq = np.repeat(np.arange(len(placed), dtype=np.int32), lengths)
    width = max(len(span.blocks) for span in placed)
    blocks = np.zeros((len(placed), width), dtype=np.int32)
    for row, span in zip(blocks, placed, strict=True):
        row[: len(span.blocks)] = span.blocks
    last = {place: int(start[row + 1]) - 1 for row, place in enumerate(order)}
    return Laid(
        order=order,
        ids_N=torch.tensor([token for span in placed for token in span.ids]),
        position_N=np.arange(start[-1]) - start[:-1][seq] + past[seq],
        seq_N=seq,
        start_S=start,
        past_S=past,
        blocks_SW=blocks,
        wanted_M=np.array([last[i] for i in range(len(spans)) if spans[i].wanted], dtype=np.int64),
        runs=_runs(placed, start),
    )


def _runs(placed: Sequence[Span], start: np.ndarray) -> list[Run]:
    runs: list[Run] = []
    for depth in range(max((len(span.layers) for span in placed), default=0)):
        open_run: Run | None = None
        for row, span in enumerate(placed):
            layer = span.layers[depth] if depth < len(span.layers) else None
            lo, hi = int(start[row]), int(start[row + 1])
            if open_run and open_run.layer is layer:
                open_run = Run(open_run.layer, depth, open_run.lo, hi)
                runs[-1] = open_run
            else:
                open_run = Run(layer, depth, lo, hi) if layer is not None else None
                runs += [open_run] if open_run else []
    return runs
