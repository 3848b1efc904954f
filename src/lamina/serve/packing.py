"""Weights and factors as the kernels read them, in buffers of large pages.

Packed: panels of some outputs, a word of 32 bits holding two neighbours of the inputs.
"""

import contextlib
import mmap
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lamina.kernels.native import LANES
from lamina.lowrank.maths import Factors

PANEL = 32
"""Outputs of a panel of packed weights."""
LINE = 64
"""Bytes of a cache line."""
ADDRESSES = (0, 4, 7, 10)
"""Places of addresses among the words of an update."""


class Arena:
    """One buffer of large pages, where the system has them: of 4 KiB pages each tile would meet
    hundreds, more than the processor keeps the addresses of."""

    def __init__(self, sizes: Iterable[int]) -> None:
        """sizes: bytes of each tensor that will be put here."""
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory has no large pages
        room = mmap.mmap(-1, max(LINE, sum(map(_lines, sizes))), flags=private)
        with contextlib.suppress(AttributeError, OSError):  # elsewhere than on Linux
            room.madvise(mmap.MADV_HUGEPAGE)
        self.room = torch.frombuffer(room, dtype=torch.int32)
        """All of it: zeros at first, which take memory once they are written."""
        self._used = 0

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.room.nbytes

    def put(self, tensor: Tensor) -> int:
        """Copy an int32 tensor to the next free line; its address."""
        place = self.room[self._used // 4 :][: tensor.numel()]
        place.copy_(tensor.flatten())
        self._used += _lines(tensor.nbytes)
        return place.data_ptr()


def _lines(size: int) -> int:
    """Bytes of whole cache lines."""
    return -(-size // LINE) * LINE


class Packed:
    """A layer's factors as the kernels read them: B scaled, all in bfloat16, in one piece."""

    def __init__(self, key: int, arena: Arena, table: np.ndarray, widest: int) -> None:
        self.key, self._arena, self.table, self.widest = key, arena, table, widest

    @property
    def bytes(self) -> int:
        """What they take in memory."""
        return self._arena.bytes + self.table.nbytes


def update_words(parts: Sequence[Factors | None], tensors: list[Tensor]) -> tuple[list[int], int]:
    """UPDATE_WORDS of one group, with numbers of `tensors` (from 1) for addresses, and its columns
    of u; what they point at is added to `tensors`."""
    words: list[int] = []
    rows: list[Tensor] = []
    used, first = 0, len(tensors)
    for part in parts:
        if part is None:
            words += [used, 0, 0]
            continue
        a_RI, b_OR = part.a_RI.to(torch.bfloat16), (part.b_OR * part.scale).to(torch.bfloat16)
        if part.rank % 2:  # a word holds two neighbours
            a_RI = nn.functional.pad(a_RI, (0, 0, 0, 1))
            b_OR = nn.functional.pad(b_OR, (0, 1))
        tensors.append(panels(b_OR, LANES))
        words += [used, len(a_RI) // 2, len(tensors) + 1]  # behind A, which is read first
        rows.append(a_RI)
        used += len(a_RI)
    if not rows:
        return [0] * 11, 0
    a_RI = torch.cat(rows)
    a_RI = nn.functional.pad(a_RI, (0, 0, 0, -used % LANES))
    tensors.insert(first, panels(a_RI, len(a_RI)))
    words += [0, 0, 0] * (3 - len(parts))
    return [first + 1, len(a_RI), *words], len(a_RI)


def joined(tensors: Sequence[Tensor], interleaved: bool) -> Tensor:
    """Rows side by side; interleaved: 16 of the first, 16 of the second, …"""
    if not interleaved:
        return torch.cat(list(tensors))
    chunks = [t.view(-1, LANES, *t.shape[1:]) for t in tensors]
    return torch.stack(chunks, dim=1).flatten(0, 2)


def panels(weight_OI: Tensor, columns: int) -> Tensor:
    """(O, I) bfloat16 -> [O / columns][I / 2][columns], a word holding two neighbours of I; outputs
    are filled up with zeros."""
    outputs, inputs = weight_OI.shape
    weight_OI = nn.functional.pad(weight_OI, (0, 0, 0, -outputs % columns))
    halves = weight_OI.contiguous().view(torch.int32)
    return halves.view(-1, columns, inputs // 2).transpose(1, 2).contiguous()


def packed_bytes(outputs: int, inputs: int) -> int:
    """What a linear's weight takes once it is packed."""
    return -(-outputs // PANEL) * PANEL * inputs * 2
