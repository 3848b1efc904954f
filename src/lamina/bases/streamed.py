"""A base that is larger than the memory at hand: its decoder's weights stay in the files.

They are read when a product needs them, the next ones while the present ones are used, into two
buffers as large as the largest group of linears. Frozen layers of the stack are folded in after
each reading, as they would be into a copy of all weights: float32 sum, rounded once; so that the
numbers are those of a base in memory, to the bit. Embeddings and head are mapped.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lamina.bases.filed import FiledLinear
from lamina.bases.header import TensorEntry
from lamina.bases.shell import Files, fill, replace_linears, shell

SAMPLE_BYTES = 256 << 20
"""How much is read to measure how fast that goes."""


class WeightFiles:
    """The weight files of a base, read again and again. Counts what is read."""

    def __init__(self, files: Files, *, cached: bool) -> None:
        """`cached`: whether the system's cache may keep what was read."""
        self.files, self._cached = files, cached
        self.bytes_read = 0

    def entry(self, name: str) -> TensorEntry:
        """Where a tensor lies."""
        return self.files.entries[name]

    def read(self, name: str, out: Tensor) -> None:
        """A tensor's bytes into `out` (uint8, flat, of that size). Raises OSError."""
        self.files.read_into(name, out)
        self.bytes_read += len(out)
        if not self._cached:
            self.forget(name)

    def forget(self, name: str) -> None:
        """Tell the system that a tensor's bytes need not stay in its cache."""
        if hasattr(os, "posix_fadvise"):
            entry, handle = self.entry(name), self.files.handle(name)
            size = entry.end - entry.start
            os.posix_fadvise(handle, entry.start, size, os.POSIX_FADV_DONTNEED)


class StreamedLinear(FiledLinear):
    """A linear whose weight is read from a file, with frozen layers folded in after the reading."""

    def __init__(
        self,
        ahead: "Ahead",
        name: str,
        shape_OI: tuple[int, int],
        bias: nn.Parameter | None,
        dtype: torch.dtype,
    ) -> None:
        """As `FiledLinear`."""
        super().__init__(ahead.files.files, name, shape_OI, bias, dtype)
        self.ahead = ahead

    def supplied(self, out: Tensor | None = None) -> Tensor:
        """W (O, I) read now, frozen layers folded in."""
        raw = torch.empty((self.out_features, self.in_features), dtype=self.stored_dtype)
        self.ahead.files.read(self.name, raw.view(-1).view(torch.uint8))
        return self.finished(raw, out)


class _Reading(NamedTuple):
    names: tuple[str, ...]
    buffer: int
    done: Future[None]


class Ahead:
    """Reads the group of weights that comes next while the one in hand is used.

    Groups are used in the same order again and again, forward and back; what came next the last
    time is what is read ahead.
    """

    def __init__(self, files: WeightFiles) -> None:
        self.files = files
        self._buffers = [torch.empty(0, dtype=torch.uint8)] * 2
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lamina-weights")
        self._coming: _Reading | None = None
        self._hand: tuple[tuple[str, ...], int] = ((), 0)
        self._before: tuple[str, ...] = ()
        self._order: list[tuple[str, ...]] = []
        self._after: dict[tuple[tuple[str, ...], tuple[str, ...]], tuple[str, ...]] = {}

    def expect(self, names: tuple[str, ...]) -> None:
        """Announce a group, in the order of the forward pass; makes room for it."""
        if names in self._order:
            return
        self._order.append(names)
        size = self._size(names)
        if size > len(self._buffers[0]):
            with torch.inference_mode(False):
                self._buffers = [torch.empty(size, dtype=torch.uint8) for _ in range(2)]
            self._hand, self._coming = ((), 0), None

    def take(self, names: tuple[str, ...]) -> tuple[Tensor, bool]:
        """The group's bytes, one member after the other (uint8, flat), and whether they were read
        anew; they are the caller's to change, and hold until the next `take`. Raises OSError."""
        hand, buffer = self._hand
        if names == hand:
            return self._buffers[buffer][: self._size(names)], False
        if self._coming is not None and self._coming.names == names:
            self._coming.done.result()
            buffer = self._coming.buffer
        else:
            if self._coming is not None:
                self._coming.done.result()
            buffer = 1 - buffer
            self._read(names, buffer)
        self._coming = None
        self._after[self._before, hand] = names
        self._before, self._hand = hand, (names, buffer)
        following = self._after.get((hand, names)) or self._guess(hand, names)
        if following is not None:
            done = self._thread.submit(self._read, following, 1 - buffer)
            self._coming = _Reading(following, 1 - buffer, done)
        return self._buffers[buffer][: self._size(names)], True

    def _guess(self, before: tuple[str, ...], names: tuple[str, ...]) -> tuple[str, ...] | None:
        """The neighbour in the direction of the last two; None at the end."""
        places = {each: place for place, each in enumerate(self._order)}
        here = places.get(names, len(places))
        step = -1 if places.get(before, -1) > here else 1
        there = here + step
        return self._order[there] if 0 <= there < len(self._order) else None

    def _read(self, names: tuple[str, ...], buffer: int) -> None:
        start = 0
        for name in names:
            size = self._size((name,))
            self.files.read(name, self._buffers[buffer][start : start + size])
            start += size

    def _size(self, names: tuple[str, ...]) -> int:
        entries = [self.files.entry(name) for name in names]
        return sum(entry.end - entry.start for entry in entries)


class ReadingCost(NamedTuple):
    """What it takes to read a decoder's weights once."""

    bytes: int
    rate: float
    """Bytes a second, measured."""

    @property
    def seconds(self) -> float:
        """For all of them."""
        return self.bytes / self.rate


def reading_cost(linears: Iterable[nn.Linear]) -> ReadingCost | None:
    """Measured on some of the weights, past the cache where the system can be told so; None where
    none is streamed. Raises OSError."""
    streamed = [each for each in linears if isinstance(each, StreamedLinear)]
    if not streamed:
        return None
    files = streamed[0].ahead.files
    sizes = {each.name: each.bytes for each in streamed}
    done, seconds = 0, 0.0
    for name, size in sizes.items():
        files.forget(name)
        room = torch.empty(size, dtype=torch.uint8).zero_()
        began = time.perf_counter()
        files.read(name, room)
        seconds += time.perf_counter() - began
        done += size
        if done >= SAMPLE_BYTES:
            break
    return ReadingCost(sum(sizes.values()), done / max(seconds, 1e-9))


def supplier_of(
    linears: Sequence[StreamedLinear], room: Callable[[], Tensor]
) -> Callable[[], Tensor]:
    """Gives the members' weights side by side (sum of O, I), in the compute dtype, folded.

    `room()` is memory of that shape, used where the files have another dtype.
    """
    ahead, names = linears[0].ahead, tuple(linear.name for linear in linears)
    stored, dtype = linears[0].stored_dtype, linears[0].dtype
    outs = [linear.out_features for linear in linears]
    ahead.expect(names)

    def supplier() -> Tensor:
        raw, fresh = ahead.take(names)
        raw_OI = raw.view(stored).view(sum(outs), linears[0].in_features)
        weight_OI = raw_OI if stored == dtype else room()
        if fresh or stored != dtype:
            parts = zip(
                linears, torch.split(raw_OI, outs), torch.split(weight_OI, outs), strict=True
            )
            for linear, read_OI, part_OI in parts:
                linear.finished(read_OI, part_OI)
        return weight_OI

    return supplier


def load_streamed(directory: Path, *, dtype: torch.dtype, cached: bool) -> nn.Module:
    """A base's model, computing in `dtype`, whose decoder's weights are read as they are used.

    `cached`: whether the system's cache may keep them. Raises BaseError listing every tensor that
    is missing or of another shape.
    """
    files = Files(directory)
    model, ahead = shell(directory, dtype=dtype), Ahead(WeightFiles(files, cached=cached))

    def streamed(name: str, linear: nn.Linear) -> nn.Linear:
        shape = (linear.out_features, linear.in_features)
        bias = files.bias(name, linear, dtype)
        return StreamedLinear(ahead, f"{name}.weight", shape, bias, dtype)

    replaced = replace_linears(
        model, streamed, f"the weights in {directory} cannot be read as they are used"
    )
    fill(model, files, but=replaced, mapped=True)
    return model.eval().requires_grad_(False)
