"""Workers that take one run's steps together: each learns from its share of a step's rows.

All hold the same factors and take every decision alike. What travels a step is one sum over the
factors' gradient, the loss, and each row's worst: a few megabytes, whatever the base's size; and
the base itself, where they hold it together (`bases.sharded`). The step is that of one worker up to
the order in which numbers are added.
"""

import time
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lamina.bases.sharded import Shards
from lamina.core import machine


class Crew(Protocol):
    """Those that work together, seen from one of them."""

    rank: int
    """Which one this is; 0 writes, and its clock counts."""
    size: int
    sent: int
    """Bytes of numbers that this worker has put into sums and taken from others so far."""
    beside: int
    """Workers on this machine, this one included."""

    @property
    def gathered(self) -> int:
        """Bytes of the base's weights that came from others so far."""

    def add(self, numbers: Tensor) -> None:
        """Make it the sum of everybody's, in place, the same to the bit for all."""

    def follow(self, numbers: Tensor) -> None:
        """Make it what worker 0 has, in place."""

    def hold(self, shards: Shards | None) -> None:
        """Hold the base together from now on, if it is shared out: whoever comes to a sum first
        takes part in what others still gather."""


class Alone:
    """A crew of one: everything is as it would be without."""

    rank, size, sent, beside, gathered = 0, 1, 0, 1, 0

    def add(self, numbers: Tensor) -> None:
        """Nothing to add."""

    def follow(self, numbers: Tensor) -> None:
        """Nobody to follow."""

    def hold(self, shards: Shards | None) -> None:
        """Nobody to hold it with."""


class Group:
    """A crew over torch.distributed's default process group, which must be there."""

    def __init__(self) -> None:
        import torch.distributed as distributed

        self._distributed = distributed
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.sent = 0
        self._shards: Shards | None = None
        machines = torch.zeros(self.size, dtype=torch.int64)
        machines[self.rank] = machine.number()
        distributed.all_reduce(machines)
        self.beside = int((machines == machines[self.rank]).sum())

    def hold(self, shards: Shards | None) -> None:
        """See `Crew`."""
        self._shards = shards

    @property
    def gathered(self) -> int:
        """See `Crew`."""
        return 0 if self._shards is None else self._shards.gathered

    def add(self, numbers: Tensor) -> None:
        """See `Crew`."""
        self._meet(numbers)
        self._distributed.all_reduce(numbers)

    def follow(self, numbers: Tensor) -> None:
        """See `Crew`."""
        self._meet(numbers)
        self._distributed.broadcast(numbers, src=0)

    def _meet(self, numbers: Tensor) -> None:
        self.sent += numbers.numel() * numbers.itemsize
        if self._shards is not None:
            self._shards.attend()


def share(lengths: Sequence[int], crew: Crew) -> list[int]:
    """The places of this worker's rows among a step's, in order.

    The longest go first, each to whoever has the fewest tokens so far, so that nobody waits long.
    """
    if crew.size == 1:
        return list(range(len(lengths)))
    tokens = [0] * crew.size
    mine = []
    for place in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        who = min(range(crew.size), key=lambda each: tokens[each])
        tokens[who] += lengths[place]
        if who == crew.rank:
            mine.append(place)
    return sorted(mine)


def add_step(crew: Crew, gradient: Tensor, loss: Tensor, worst_B: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of everybody's gradient, in place; the loss and each row's worst, of all rows."""
    if crew.size == 1:
        return loss, worst_B
    whole = torch.cat([gradient.flatten(), loss.view(1).to(gradient), worst_B.to(gradient)])
    crew.add(whole)
    gradient.copy_(whole[: gradient.numel()].view_as(gradient))
    rest = whole[gradient.numel() :].cpu()
    return rest[0], rest[1:]


class Stopwatch:
    """Seconds of training over all sittings; in a crew as worker 0 last said, for all alike."""

    def __init__(self, crew: Crew) -> None:
        self._crew, self._began, self._agreed = crew, time.perf_counter(), 0.0
        self.before = 0.0
        """Of earlier sittings."""

    def _now(self) -> float:
        return self.before + time.perf_counter() - self._began

    def elapsed(self) -> float:
        """Seconds."""
        return self._now() if self._crew.size == 1 else max(self.before, self._agreed)

    def agree(self, stop: bool) -> bool:
        """Agree on the time; whether anybody was asked to stop."""
        if self._crew.size == 1:
            return stop
        numbers = torch.tensor([0.0 if self._crew.rank else self._now(), stop], dtype=torch.float64)
        self._crew.add(numbers)
        self._agreed = float(numbers[0])
        return bool(numbers[1])
