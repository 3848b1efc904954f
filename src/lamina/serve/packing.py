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
UPDATE_WORDS = 12
"""Words of what one layer adds to one group of linears."""
ADDRESSES = (0, 4, 7, 10, 11)
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
    """A layer's factors as the kernels read them, in one piece."""

    def __init__(self, key: int, arena: Arena, table: np.ndarray, widest: int) -> None:
        self.key, self._arena, self.table, self.widest = key, arena, table, widest

    @property
    def bytes(self) -> int:
        """What they take in memory."""
        return self._arena.bytes + self.table.nbytes


def update_words(
    parts: Sequence[Factors | None], tensors: list[Tensor], bits: int
) -> tuple[list[int], int]:
    """UPDATE_WORDS of one group, with numbers of `tensors` (from 1) for addresses, and its columns
    of u; what they point at is added to `tensors`, A first. `bits`: 16 for bfloat16, or 8."""
    words: list[int] = []
    downs: list[Tensor] = []
    ups: list[Tensor] = []
    scales: list[Tensor] = []
    used, first = 0, len(tensors)
    for part in parts:
        if part is None:
            words += [used, 0, 0]
            continue
        a_RI, b_OR, scale_R = _even(*(_in_bytes(part) if bits == 8 else _in_words(part)))
        ups.append(panels(b_OR, LANES))
        words += [used, len(a_RI) // 2, first + 1 + len(ups)]
        downs.append(a_RI)
        scales.append(scale_R)
        used += len(a_RI)
    if not downs:
        return [0] * UPDATE_WORDS, 0
    filling = -used % LANES
    a_RI = nn.functional.pad(torch.cat(downs), (0, 0, 0, filling))
    scale = 0
    tensors.append(panels(a_RI, LANES if bits == 8 else len(a_RI)))
    tensors += ups
    if bits == 8:
        tensors.append(nn.functional.pad(torch.cat(scales), (0, filling)).view(torch.int32))
        scale = len(tensors)
    words += [0, 0, 0] * (3 - len(parts))
    return [first + 1, len(a_RI), *words, scale], len(a_RI)


def _in_words(part: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """A and scaled B in bfloat16."""
    b_OR = (part.b_OR * part.scale).to(torch.bfloat16)
    return part.a_RI.to(torch.bfloat16), b_OR, torch.ones(part.rank)


def _in_bytes(part: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """A and B in signed bytes and, for each rank, what their products are multiplied with: the
    largest of a row of A and of a column of B becomes 127."""
    a_RI, b_OR = part.a_RI.float(), part.b_OR.float() * part.scale
    a_R1, b_R = a_RI.abs().amax(dim=1, keepdim=True) / 127, b_OR.abs().amax(dim=0) / 127
    tiny = torch.finfo(torch.float32).tiny
    bytes_RI = (a_RI / a_R1.clamp_min(tiny)).round().to(torch.int8)
    bytes_OR = (b_OR / b_R.clamp_min(tiny)).round().to(torch.int8)
    return bytes_RI, bytes_OR, a_R1[:, 0] * b_R


def _even(a_RI: Tensor, b_OR: Tensor, scale_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """An even rank, filled up with zeros: two neighbours share a word."""
    if len(a_RI) % 2 == 0:
        return a_RI, b_OR, scale_R
    pad = nn.functional.pad
    return pad(a_RI, (0, 0, 0, 1)), pad(b_OR, (0, 1)), pad(scale_R, (0, 1))


def joined(tensors: Sequence[Tensor], interleaved: bool) -> Tensor:
    """Rows side by side; interleaved: 16 of the first, 16 of the second, …"""
    if not interleaved:
        return torch.cat(list(tensors))
    chunks = [t.view(-1, LANES, *t.shape[1:]) for t in tensors]
    return torch.stack(chunks, dim=1).flatten(0, 2)


def panels(weight_OI: Tensor, columns: int) -> Tensor:
    """(O, I) bfloat16 or int8 -> [O / columns][I / 2][columns], int32 in all: two neighbours of I
    stay together; outputs are filled up with zeros."""
    outputs, inputs = weight_OI.shape
    weight_OI = nn.functional.pad(weight_OI, (0, 0, 0, -outputs % columns)).contiguous()
    pairs = weight_OI.view(torch.int32 if weight_OI.dtype.itemsize == 2 else torch.int16)
    packed = pairs.view(-1, columns, inputs // 2).transpose(1, 2).contiguous()
    return packed if packed.dtype == torch.int32 else packed.flatten().view(torch.int32)


def packed_bytes(outputs: int, inputs: int) -> int:
    """What a linear's weight takes once it is packed."""
    return -(-outputs // PANEL) * PANEL * inputs * 2
