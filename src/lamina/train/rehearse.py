"""Which old rows go into an epoch: a pure function of data, shares, seed and epoch."""

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from lamina.core.seeds import derive
from lamina.train.lesson import Row

Taught = Literal["labels", "stack", "parents"]
"""What an old row teaches: its own labels, what the stack says of it before training, or what the
stack says without the factors that training starts from."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Old rows that take turns."""

    rows: Sequence[Row]
    share: float
    """Of an epoch's tokens: these rows', the new rows' and those of the pools before."""
    taught: Taught = "stack"


def turns(pools: Sequence[Pool], own_tokens: int, seed: int, epoch: int) -> list[int]:
    """Which rows of the pools, counted through from the first pool's first, an epoch takes.

    Each pool takes turns of its own, beside `own_tokens` new ones (see `rehearsed`).
    """
    chosen: list[int] = []
    start, beside = 0, own_tokens
    for pool in pools:
        lengths = [len(row) for row in pool.rows]
        answers = [row.answer for row in pool.rows]
        chosen += (start + i for i in rehearsed(lengths, beside, pool.share, seed, epoch, answers))
        start += len(lengths)
        beside = round(beside / (1 - pool.share)) if lengths else beside
    return chosen


def spread(order: Sequence[int], kinds: Sequence[Hashable]) -> list[int]:
    """`order` so that any stretch of it holds about its share of each kind: a kind's n rows come at
    even distances, in the order given; `kinds` is asked by what `order` holds.
    """
    of_kind: dict[Hashable, list[int]] = {}
    for index in order:
        of_kind.setdefault(kinds[index], []).append(index)
    placed = [
        ((turn + (begin + 0.5) / len(of_kind)) / len(rows), index)
        for begin, rows in enumerate(of_kind.values())
        for turn, index in enumerate(rows)
    ]
    return [index for _, index in sorted(placed)]


def rehearsed(
    lengths: Sequence[int],
    own_tokens: int,
    share: float,
    seed: int,
    epoch: int,
    kinds: Sequence[Hashable] | None = None,
) -> list[int]:
    """Indices of old rows that make up `share` of the epoch's tokens, beside `own_tokens` new ones.

    Old rows take turns in one shuffled order that goes on from epoch to epoch, so that all are
    seen as often as each other; where they are few they repeat. Rows of a kind (one answer to
    several questions, say) are spread over the order: by chance a run that takes a quarter of
    them would leave out a quarter of the answers that five rows teach.
    Empty when there are no old rows or the share is 0. Raises ValueError unless 0 <= share < 1.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share must be in [0, 1), not {share}")
    total = sum(lengths)
    if not total or not share:
        return []
    wanted = share / (1 - share) * own_tokens
    order = list(range(len(lengths)))
    random.Random(derive(seed, "rehearsal")).shuffle(order)
    if kinds is not None:
        order = spread(order, kinds)
    # whole rounds leave the order where it was; the place to go on from follows from the rest
    position = _position([lengths[i] for i in order], epoch * wanted % total)
    chosen: list[int] = []
    taken = 0
    while taken < wanted:
        row = order[position % len(order)]
        chosen.append(row)
        taken += lengths[row]
        position += 1
    return chosen


def _position(lengths: Sequence[int], tokens: float) -> int:
    """How many of the rows are over once `tokens` have passed."""
    passed = 0
    for index, length in enumerate(lengths):
        if passed >= tokens:
            return index
        passed += length
    return len(lengths)
