"""What a training run is given and what it comes to, and the factors that it starts from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from lamina.bases.families import module_ranks
from lamina.core.recipe import Recipe
from lamina.core.seeds import derive
from lamina.lowrank.maths import Factors, LayerFactors, init_factors
from lamina.train import prefix
from lamina.train.checkpoint import Progress
from lamina.train.lesson import Lesson, Row
from lamina.train.objective import SoftTargets
from lamina.train.rehearse import Pool


class Shared(NamedTuple):
    """Where rows' activations are left to later runs."""

    folder: Path
    key: str
    """Digest of all that decides them but the rows, the factors of a warm start and the machine."""


@dataclass(frozen=True, eq=False)
class Job:
    """What a run works on. Rows are encoded; `directory` holds its checkpoint and events."""

    model: nn.Module
    linears: Mapping[str, nn.Linear]
    """The linears to train on, by full name."""
    rows: Sequence[Row]
    eval_rows: Sequence[Row]
    recipe: Recipe
    pad_id: int
    directory: Path
    resume_with: str
    """What a person types to go on after an interruption."""
    start: LayerFactors | None = None
    """Factors to start from (warm start); None starts fresh."""
    said: Sequence[SoftTargets] | None = None
    """What the rows teach, one for each; None: their labels."""
    rehearsal: Sequence[Pool] = ()
    """Old rows, of which each epoch takes as many as make up each pool's share."""

    shared: Shared | None = None
    """Where activations below the first trained layer outlast the run; None: they don't."""
    prefix_memory: int = prefix.MEMORY
    """Bytes of activations below the first trained layer that are kept in memory."""
    lesson: "Teacher | None" = None
    """How rows are learned; None: as text is."""

    @property
    def old_rows(self) -> list[Row]:
        """The rows of all pools."""
        return [row for pool in self.rehearsal for row in pool.rows]


Teacher = Callable[[Job, Sequence[Sequence[int]]], Lesson]
"""Makes a run's lesson. The groups: see `Plan.old_rows`."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """A finished run: the best factors seen, and what it took."""

    factors: dict[str, Factors]
    recipe: Recipe
    """Resolved: `steps` (and `warmup_steps`, `stop_after` after a time limit) filled in."""
    progress: Progress
    kernels: str
    """What the steps ran on: `native`, `accelerated` or `reference` kernels; `none`: the
    model's own forward."""
    workers: int = 1
    """Those who took the steps together, in the last sitting."""


def gpu_of(model: nn.Module) -> str | None:
    """UUID of the GPU that a model is on, None on a processor."""
    some = next(model.parameters(), None)
    if some is None or some.device.type != "cuda":
        return None
    return f"GPU-{torch.cuda.get_device_properties(some.device).uuid}"


def fresh_factors(linears: Mapping[str, nn.Linear], recipe: Recipe) -> dict[str, Factors]:
    """Starting factors; each module's from its own stream, so that targets don't disturb others.

    Raises UsageError for `ranks` that name none of the linears.
    """
    result = {}
    ranks = module_ranks(linears, recipe.rank, recipe.ranks or {})
    for name, linear in linears.items():
        generator = torch.Generator().manual_seed(derive(recipe.seed, "init", name))
        result[name] = init_factors(
            linear.in_features, linear.out_features, ranks[name], recipe.scale, generator
        )
    return result
