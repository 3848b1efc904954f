"""Which rows each step takes: all of them in every pass, or only those that are not known yet.

Rows that the model already answers teach nothing and cost as much as others (selective backprop,
arXiv:1910.00762). With `known` in the recipe, what a row's tokens cost at its last visit decides
whether it comes again; that falls out of training. Rows that learning erases are found by looking
at what is left out, without learning, one row for each answer: ahead of the third pass and of every
later one, and before the run ends. Those lost are learned again beside what is still new.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lamina.core.recipe import Recipe
from lamina.core.seeds import derive
from lamina.tokens.pack import plan_batches
from lamina.train.lesson import Row
from lamina.train.rehearse import Pool, turns

BLIND_PASSES = 2
"""Passes before rows are looked at: until then they are erased anew faster than mended."""
MOST_LOOKED_AT = 4.0
"""Tokens looked at ahead of a pass, at most, as a multiple of the new rows' tokens."""

STRETCH = 16
"""Steps whose old rows go through the model together before training (see `Plan.old_rows`)."""

Look = Callable[[Sequence[int]], Tensor]
"""The largest loss of any supervised token of each of these rows (R,), without learning."""


class Plan:
    """The batches of a run. Without `known` a pure function of rows, recipe and pools.

    With it, of what rows cost when they were last visited too: `worst` (R,) float32 holds, in
    nats above the least possible, the largest loss of any token of a row, nan before its first
    visit; `began` is what it was when the pass began, from which the pass can be planned again.
    """

    def __init__(
        self, recipe: Recipe, rows: Sequence[Row], own: int, pools: Sequence[Pool]
    ) -> None:
        self._recipe, self._rows, self._own, self._pools = recipe, rows, own, pools
        self._lengths = [len(row) for row in rows]
        self._passes: dict[int, list[list[int]]] = {}
        self._sizes: dict[int, int] = {}
        self.selects = recipe.known > 0
        self.limit = -math.log(recipe.known) if self.selects else math.inf
        self.number = 0
        """The pass that runs, and the step that it began with; moved only where rows are chosen."""
        self.first_step = 0
        self.worst = torch.full((len(rows),), torch.nan)
        self.began = self.worst.clone()

    @property
    def first_pass(self) -> int:
        """Batches of the first pass: what a pass is where a schedule counts in steps."""
        return len(self._every(0))

    # -- every row in every pass ---------------------------------------------------------------

    def _every(self, number: int) -> list[list[int]]:
        if number not in self._passes:
            own = self._own
            tokens = sum(self._lengths[:own])
            old = turns(self._pools, tokens, self._recipe.seed, number)
            plan = self._batches([*range(own), *(own + index for index in old)], number)
            self._passes = {number: plan} | ({0: self._passes[0]} if 0 in self._passes else {})
        return self._passes[number]

    def _batches(self, chosen: Sequence[int], number: int) -> list[list[int]]:
        batches = plan_batches(
            [self._lengths[i] for i in chosen],
            self._recipe.batch_tokens,
            derive(self._recipe.seed, "order"),
            number,
        )
        return [[chosen[i] for i in batch] for batch in batches]

    def batch(self, step: int) -> list[int]:
        """The step's row indices; passes may differ in their number of batches."""
        if self.selects:
            return self._unknown()[step - self.first_step]
        number = 0
        while step >= self._size(number):
            step -= self._size(number)
            number += 1
        return self._every(number)[step]

    def _size(self, number: int) -> int:
        if number not in self._sizes:
            self._sizes[number] = len(self._every(number))
        return self._sizes[number]

    def old_rows(self, steps: int) -> list[list[int]]:
        """The old rows that a run of so many steps may come to, by when it first comes to them.

        Each is in one group only. Those of a whole stretch of steps are a group, whatever the
        last step is: a run that time cuts short has the groups of the run that it comes to be
        repeated as. Where rows are chosen by what they cost, any may come, and all are one group.
        """
        if self.selects:
            return [[i for pool, indices in self._old() if pool.share for i in indices]]
        last = -(-steps // STRETCH) * STRETCH
        shared = sum(len(pool.rows) for pool in self._pools if pool.share)
        first: dict[int, int] = {}
        number = step = 0
        while step < last and len(first) < shared:
            for batch in self._every(number)[: last - step]:
                for index in batch:
                    if index >= self._own:
                        first.setdefault(index, step // STRETCH)
                step += 1
            number += 1
        return [[i for i in first if first[i] == n] for n in sorted(set(first.values()))]

    # -- only what is not known ----------------------------------------------------------------

    def restore(self, number: int, first_step: int, worst: Tensor, began: Tensor) -> None:
        """Stand where a checkpoint stood."""
        self.number, self.first_step = number, first_step
        self.worst, self.began = worst, began
        self._passes.pop(-1, None)

    def position(self, step: int) -> float:
        """How far the schedule is, in steps of the first pass; a step of a shorter pass is more."""
        if not self.selects:
            return step
        done = (step - self.first_step) / len(self._unknown())
        return (self.number + done) * self.first_pass

    def visited(self, rows: Sequence[int], worst: Tensor) -> None:
        """Note what rows cost when they were learned or looked at."""
        self.worst[torch.tensor(rows, dtype=torch.int64)] = worst

    def go_on(self, step: int, look: Look) -> bool:
        """Begin the next pass where one is over; False when all is known. See `known`."""
        if not self.selects or step - self.first_step < len(self._unknown()):
            return True
        number = self.number + 1
        lost = number >= BLIND_PASSES and self._look(number, look)
        if not lost and not self._left():
            lost = number < BLIND_PASSES and self._look(number, look)
            if not lost:
                return False
        self.restore(number, step, self.worst, self.worst.clone())
        return True

    def ends_pass(self, step: int) -> bool:
        """Whether a pass is over after this many steps."""
        return self.selects and step - self.first_step == len(self._unknown())

    def _left(self) -> bool:
        """Whether anything is known not to be known."""
        return bool((self.worst > self.limit).any() | self.worst[: self._own].isnan().any())

    def _look(self, number: int, look: Look) -> bool:
        """Look at rows that are left out, one for each answer; those alike are lost together."""
        alike = self._alike()
        random.Random(derive(self._recipe.seed, "look", number)).shuffle(alike)
        left = MOST_LOOKED_AT * sum(self._lengths[: self._own])
        chosen: dict[int, list[int]] = {}
        for rows in alike:
            row = rows[number % len(rows)]
            left -= self._lengths[row]
            if left >= 0:
                chosen[row] = rows
        if not chosen:
            return False
        found = look(list(chosen))
        self.visited(list(chosen), found)
        for (row, rows), worst in zip(chosen.items(), found.tolist(), strict=True):
            if worst > self.limit:
                self.visited([each for each in rows if each != row], torch.tensor(worst))
        return bool((found > self.limit).any())

    def _alike(self) -> list[list[int]]:
        """Rows not known to be lost, those with the same supervised tokens together.

        Of old rows, those that are rehearsed at all.
        """
        found: dict[tuple[int, bytes], list[int]] = {}
        new = range(self._own)
        kinds = [new, *(indices for pool, indices in self._old() if pool.share)]
        for kind, indices in enumerate(kinds):
            for index in indices:
                worst = float(self.worst[index])
                if worst <= self.limit or (kind and math.isnan(worst)):
                    found.setdefault((kind, self._answer(index)), []).append(index)
        return list(found.values())

    def _old(self) -> list[tuple[Pool, range]]:
        """Each pool and where its rows are."""
        found, start = [], self._own
        for pool in self._pools:
            found.append((pool, range(start, start + len(pool.rows))))
            start += len(pool.rows)
        return found

    def _unknown(self) -> list[list[int]]:
        """The pass's batches: new rows not known when it began, and old rows.

        Those lost, up to as many as all new rows would have beside them: no pass costs more than
        the first, whatever is in the rows. Then others, up to their share.
        """
        if self.number == 0:
            return self._every(0)
        if -1 not in self._passes:
            worst = self.began.tolist()
            chosen = [i for i in range(self._own) if not worst[i] <= self.limit]
            beside, most = self._tokens(chosen), self._tokens(range(self._own))
            for pool, indices in self._old():
                ratio = pool.share / (1 - pool.share)
                order = self._by_turns(indices)
                lost = [i for i in order if worst[i] > self.limit]
                mended = self._upto(ratio * most, lost)
                others = [i for i in order if not worst[i] > self.limit]
                others.sort(key=lambda i: not math.isnan(worst[i]))  # first those not visited yet
                chosen += mended + self._upto(ratio * beside - self._tokens(mended), others)
                if pool.rows:
                    beside, most = (round(n / (1 - pool.share)) for n in (beside, most))
            self._passes = {0: self._every(0), -1: self._batches(chosen, self.number)}
        return self._passes[-1]

    def _by_turns(self, indices: range) -> list[int]:
        """Shuffled so that answers take turns: one row of each, then a second of each, ..."""
        order = list(indices)
        random.Random(derive(self._recipe.seed, "turns", self.number)).shuffle(order)
        turn, taken = {}, Counter[bytes]()
        for index in order:
            turn[index] = taken[self._answer(index)]
            taken[self._answer(index)] += 1
        return sorted(order, key=turn.__getitem__)

    def _answer(self, index: int) -> bytes:
        return self._rows[index].answer

    def _upto(self, tokens: float, rows: Sequence[int]) -> list[int]:
        """As many of the rows, in their order, as it takes to have so many tokens."""
        chosen: list[int] = []
        for row in rows:
            if tokens <= 0:
                break
            chosen.append(row)
            tokens -= self._lengths[row]
        return chosen

    def _tokens(self, rows: Sequence[int]) -> int:
        return sum(self._lengths[i] for i in rows)
