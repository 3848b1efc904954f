"""A base that is larger than one worker's memory: each holds a share of every decoder layer.

The shares are torch's own (FSDP2, arXiv:2304.11277): rows of the weights, side by side where
linears read as many channels. A layer is gathered when a product needs it, the next one while the
present one is used, and given up again; nothing is summed, as the base is frozen. Gathering moves
bytes and rounds nothing, so the numbers are those of a base in memory, to the bit. Embeddings and
head are not shared out: each worker maps them, or copies them to its GPU.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lamina.bases import families
from lamina.bases.filed import FiledLinear
from lamina.bases.shell import Files, fill, replace_linears, shell
from lamina.bases.turns import NOTHING, Course, Wish, next_of
from lamina.core import heap

GATHERED = 3
"""Layers that are whole at a time, at most: the one in use, and the next one twice, as it came and
as it is put together."""


BLOCK = 4 << 20
"""Bytes from which memory goes back to the system at once: layers come and go in larger blocks."""


class ShardedLinear(FiledLinear):
    """A linear of whose weight this worker holds a share."""

    def __init__(
        self,
        shards: "Shards",
        name: str,
        shape_OI: tuple[int, int],
        bias: nn.Parameter | None,
        dtype: torch.dtype,
    ) -> None:
        """As `FiledLinear`."""
        super().__init__(shards.files, name, shape_OI, bias, dtype)
        self.shards, self.layer = shards, families.layer_of(name)
        shards.expect(self)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W (O, I), a new tensor."""
        return self.supplied().clone()

    def supplied(self, out: Tensor | None = None) -> Tensor:
        """W (O, I), gathered; without `out` it holds until another layer is asked for."""
        weight_OI = self.shards.rows([self])
        assert weight_OI is not None
        return weight_OI if out is None else out.copy_(weight_OI)


@dataclass(frozen=True, eq=False)
class _Block:
    """Linears of a layer that read as many channels: their weights by rows, as one parameter."""

    linears: list[ShardedLinear]
    home: nn.Module
    workers: int

    @property
    def weight(self) -> Any:
        """(rows, inputs): a DTensor, or all of it while the layer is gathered."""
        return self.home.weight

    @property
    def rows(self) -> int:
        """Of all workers."""
        return sum(each.out_features for each in self.linears)

    @property
    def row_bytes(self) -> int:
        """One row's."""
        return self.linears[0].in_features * self.linears[0].dtype.itemsize

    @property
    def chunk(self) -> int:
        """Rows a worker, as torch.chunk cuts them: the last ones have fewer, and fill them up."""
        return -(-self.rows // self.workers)

    def spans(self) -> Iterator[tuple[ShardedLinear, int, int]]:
        """Each linear's rows."""
        start = 0
        for each in self.linears:
            yield each, start, start + each.out_features
            start += each.out_features


class _Wire:
    """How FSDP2 gathers between processors: everybody sends its part to the others, into one piece
    of memory that is there for good.

    gloo's own gathering makes copies of all on either side, of which malloc keeps holes (measured:
    docs/log.md).
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._waiting: list[Any] = []

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for a gathering; the one before is over."""
        needed = math.prod(size) * dtype.itemsize
        if len(self._memory) < needed:
            self._memory = torch.empty(needed, dtype=torch.uint8, device=device)
        return self._memory[:needed].view(dtype).view(*size)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False
    ) -> None:
        """Begin; `input_tensor` lies in its place in `output_tensor`."""
        import torch.distributed as distributed

        self._waiting = [
            distributed.broadcast(part, group_src=owner, group=group, async_op=True)
            for owner, part in enumerate(output_tensor.chunk(group.size()))
        ]
        if not async_op:
            self.wait()

    def wait(self) -> None:
        """Until all is there."""
        for each in self._waiting:
            each.wait()
        self._waiting = []


class Shards:
    """This worker's share of every decoder layer, and the layers that are whole at the moment.

    Over torch.distributed's default process group. Whatever asks for a layer waits until all
    workers have said what they need: those that need nothing call `attend`.
    """

    def __init__(self, files: Files, device: torch.device) -> None:
        import torch.distributed as distributed

        self._distributed = distributed
        self.files, self._device = files, device
        self._rank, self.workers = distributed.get_rank(), distributed.get_world_size()
        self._expected: dict[int, list[ShardedLinear]] = defaultdict(list)
        self._homes: dict[int, Any] = {}
        self._blocks: dict[int, list[_Block]] = {}
        self._places: dict[str, tuple[_Block, int]] = {}
        self._course = Course(0)
        self._hand = self._before = -1
        self._coming: tuple[int, Any] | None = None
        self._after: dict[tuple[int, int], int] = {}
        self._wire = _Wire()
        self._filled = False
        self.gathered = 0
        """Bytes that came from other workers so far."""

    def expect(self, linear: ShardedLinear) -> None:
        """Announce a linear, in the order of the forward pass."""
        self._expected[linear.layer].append(linear)

    def deal(self) -> None:
        """Share out what was announced; nothing is read yet."""
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import fully_shard  # half a second, which few need

        group = self._distributed.group.WORLD
        assert group is not None
        mesh = DeviceMesh.from_group(group, self._device.type)
        for layer, linears in self._expected.items():
            home, alike = nn.Module(), defaultdict(list)
            for each in linears:
                alike[each.in_features].append(each)
            for inputs, some in alike.items():
                block = _Block(some, nn.Module(), self.workers)
                empty_OI = torch.empty(block.rows, inputs, dtype=some[0].dtype, device="meta")
                block.home.weight = nn.Parameter(empty_OI, requires_grad=False)
                home.add_module(str(inputs), block.home)
                self._blocks.setdefault(layer, []).append(block)
                self._places |= {each.name: (block, start) for each, start, _ in block.spans()}
            shared: Any = fully_shard(home, mesh=mesh)
            home.to_empty(device=self._device)
            if self._device.type == "cpu":
                shared.set_custom_all_gather(self._wire)
            self._homes[layer] = shared
        self._expected.clear()
        self._course = Course(1 + max(self._homes))

    @property
    def share_bytes(self) -> int:
        """What this worker holds of the decoder's weights."""
        return sum(block.chunk * block.row_bytes for block in self._all_blocks())

    @property
    def bytes(self) -> int:
        """The decoder's weights."""
        return sum(block.rows * block.row_bytes for block in self._all_blocks())

    # -- reading ---------------------------------------------------------------------------------

    @torch.inference_mode(False)
    @torch.no_grad()
    def fill(self) -> None:
        """Read this worker's share, one linear at a time, frozen layers folded in. Raises OSError.

        A linear into which something is folded is read whole, where this worker holds rows of it:
        a product of some of its rows may be rounded in another way.
        """
        for block in self._all_blocks():
            share_OI = block.weight.to_local()
            first = self._rank * block.chunk
            last = first + len(share_OI)
            for each, start, stop in block.spans():
                low, high = max(first, start), min(last, stop)
                if low < high:
                    read = self._read(each, slice(low - start, high - start))
                    share_OI[low - first : high - first].copy_(read)
                each.forget()
        self._filled = True

    def _read(self, linear: ShardedLinear, rows: slice) -> Tensor:
        if linear.plain:
            return linear.finished(self.files.read_rows(linear.name, rows))
        return linear.finished(self.files.read(linear.name))[rows]

    def _all_blocks(self) -> list[_Block]:
        return [block for blocks in self._blocks.values() for block in blocks]

    # -- gathering -------------------------------------------------------------------------------

    def rows(self, linears: Sequence[ShardedLinear]) -> Tensor | None:
        """The linears' weights side by side (sum of O, I), until another layer is asked for; None
        where they do not lie so."""
        block, start = self._places[linears[0].name]
        self._take(linears[0].layer)
        stop = start
        for each in linears:
            if self._places[each.name] != (block, stop):
                return None
            stop += each.out_features
        weight_OI: Tensor = block.weight.data[start:stop]
        return weight_OI

    def attend(self) -> None:
        """Take part while others need layers, until nobody needs any."""
        while self._turn(NOTHING):
            pass
        self._course.begin()

    def _take(self, layer: int) -> None:
        if self._hand == layer:
            return
        wish = self._course.wish(layer)
        while self._hand != layer:
            self._turn(wish)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _turn(self, wish: Wish) -> bool:
        """Have the layer gathered that is next by all workers' wishes; whether there is one."""
        if not self._filled:
            self.fill()
        said = [torch.empty(len(wish), dtype=torch.int64) for _ in range(self.workers)]
        self._distributed.all_gather(said, torch.tensor(wish))
        layer = next_of([Wish(*each.tolist()) for each in said])
        if layer is None:
            return False
        if layer != self._hand:
            self._gather(layer)
        return True

    def _gather(self, layer: int) -> None:
        if self._hand >= 0:
            self._homes[self._hand].reshard()
        if self._coming is not None and self._coming[0] != layer:
            self._homes[self._arrived()].reshard()
        if self._coming is None:
            self._begin(layer)
        self._arrived()
        self._after[self._before, self._hand] = layer
        self._before, self._hand = self._hand, layer
        following = self._after.get((self._before, layer))
        if following is not None:
            self._begin(following)

    def _arrived(self) -> int:
        """Wait for the layer that comes; which one it is."""
        assert self._coming is not None
        layer, handle = self._coming
        self._wire.wait()
        handle.wait()
        self._coming = None
        return layer

    def _begin(self, layer: int) -> None:
        """Gather a layer, all workers at once."""
        for block in self._blocks[layer]:
            self.gathered += (self.workers - 1) * block.chunk * block.row_bytes
        self._coming = layer, self._homes[layer].unshard(async_op=True)


def shards_of(linears: Iterable[nn.Linear]) -> Shards | None:
    """What holds the weights of some linears, where they are shared out."""
    return next((each.shards for each in linears if isinstance(each, ShardedLinear)), None)


def supplier_of_shards(
    linears: Sequence[ShardedLinear], room: Callable[[], Tensor]
) -> Callable[[], Tensor]:
    """Gives the members' weights side by side (sum of O, I); `room()` is memory of that shape, used
    where they do not lie so."""
    outs = [linear.out_features for linear in linears]

    def supplier() -> Tensor:
        weight_OI = linears[0].shards.rows(linears)
        if weight_OI is not None:
            return weight_OI
        weight_OI = room()
        for linear, part_OI in zip(linears, torch.split(weight_OI, outs), strict=True):
            linear.supplied(part_OI)
        return weight_OI

    return supplier


def load_sharded(directory: Path, *, dtype: torch.dtype, device: str) -> nn.Module:
    """A base's model, computing in `dtype`, of whose decoder's weights each worker of the default
    process group holds a share on `device`. They are read by `Shards.fill`, or at the first use.

    Raises BaseError listing every tensor that is missing or of another shape.
    """
    heap.keep_apart(BLOCK)
    files = Files(directory)
    model, shards = shell(directory, dtype=dtype), Shards(files, torch.device(device))

    def sharded(name: str, linear: nn.Linear) -> nn.Linear:
        shape = (linear.out_features, linear.in_features)
        bias = files.bias(name, linear, dtype)
        return ShardedLinear(shards, f"{name}.weight", shape, bias, dtype)

    replaced = replace_linears(
        model, sharded, f"the weights in {directory} cannot be shared out over workers"
    )
    fill(model, files, but=replaced, mapped=True)
    shards.deal()
    return model.eval().requires_grad_(False)
