"""How long a run takes: what it is made of, times what each part takes on this machine.

A run is a list of amounts (tokens through a layer, supervised positions at the head, parameters in
the optimiser, weights folded, …), each of which has a rate in seconds. Amounts follow from shapes,
rows and recipe, exactly as the training loop plans them; rates are measured once (`flows.probe`).
Where nothing was measured there is only a peak rate and a published share of it: an interval.

Pure: no clock, no torch.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from lamina.core.values import Value

CHECKPOINT_SECONDS = 30.0
"""Between two checkpoints (train.loop.CHECKPOINT_SECONDS; a test compares them)."""
LAYER_REACHED = (0.15, 0.65)
"""Share of the peak that a layer's useful arithmetic reaches: from 135 million parameters to 8
billion (benchmarks/results/gpu.jsonl, train.jsonl)."""
FULL_REACHED = (0.21, 0.46)
"""The same of full training, from GPT-3 to PaLM (Chowdhery et al., arXiv:2204.02311, table 3)."""
SETTLING = 0.4
"""What a run takes beside its parts (rows read and hashed, things recorded, the gate, its end), as
a share of what it takes to begin: both are Python's work. Calibrated: without it eleven
configurations on smollm2-135m were 9% too low at the median (docs/log.md)."""


class Interval(NamedTuple):
    """Between which two numbers something lies; the same twice where it is measured."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """Geometric, as both ends come from shares of a rate."""
        return math.sqrt(self.low * self.high) if self.low > 0 else (self.low + self.high) / 2

    def times(self, factor: float) -> "Interval":
        """Both ends."""
        return Interval(self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Tokens:
    """What goes through a model, summed over passes."""

    passes: int = 0
    tokens: int = 0
    squares: int = 0
    """Sum of the squares of the sequences' lengths."""
    supervised: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(
            self.passes + other.passes,
            self.tokens + other.tokens,
            self.squares + other.squares,
            self.supervised + other.supervised,
        )

    def times(self, count: float) -> "Tokens":
        """As often."""
        return Tokens(*(round(count * n) for n in (
            self.passes, self.tokens, self.squares, self.supervised,
        )))  # fmt: skip


def of_passes(passes: Iterable[Sequence[tuple[int, int]]]) -> Tokens:
    """Each pass is a list of (length, supervised positions) of its rows."""
    found = Tokens()
    for rows in passes:
        found += Tokens(
            1, sum(n for n, _ in rows), sum(n * n for n, _ in rows), sum(s for _, s in rows)
        )
    return found


def pass_amounts(at: Tokens, layers: int, factors: int) -> dict[str, float]:
    """Amounts of passes through so many layers that hold `factors` trained parameters."""
    return {
        "layer pass": layers * at.passes,
        "layer token": layers * at.tokens,
        "attention": layers * at.squares,
        "factors": factors * at.tokens,
        "head": at.supervised,
    }


@dataclass(frozen=True)
class Run:
    """Everything that a training does, in amounts. The loop's own plan says how much of each."""

    layers: int
    trained_layers: int
    factors: int
    """Trained parameters."""
    weights: int
    """All weights of the base's linears."""
    steps: int
    learned: Tokens
    looked: Tokens = Tokens()
    """Held-out rows, over all evaluations."""
    below: Tokens = Tokens()
    """Rows through the layers below the first trained one, each once, a row a pass."""
    sizes: int = 0
    """Different numbers of tokens in a pass: products prepare themselves for each anew."""
    encoded: int = 0
    """Tokens of all rows that are tokenised."""
    checkpointing: bool = False
    folds: int = 0
    """Loads before training over which layers are folded in: one, or none over a bare base."""
    said: Tokens = Tokens()
    """Old rows through the model as it is, before the first step."""
    protect: bool = False
    """Whether the update keeps off the inputs of old rows."""
    guarded: Tokens = Tokens()
    """Old rows whose inputs are looked at for that."""
    exam_loads: int = 0
    """Stacks that are loaded for the exam and the gate."""
    exam_folds: int = 0
    """Those among them that have layers."""
    exam: Tokens = Tokens()
    """Over all stacks that sit it."""
    written: int = 0
    """Tokens that are generated in exams, over all stacks."""


def amounts(run: Run) -> dict[str, dict[str, float]]:
    """phase -> rate's name -> how much of it. Checkpoints that come with time are not in it."""
    looked = {f"look: {k}": v for k, v in _sum(
        pass_amounts(run.looked, run.trained_layers, run.factors),
        pass_amounts(Tokens(run.below.passes, run.below.tokens, run.below.squares),
                     run.layers - run.trained_layers, 0),
    ).items()}  # fmt: skip
    step = pass_amounts(run.learned, run.trained_layers, run.factors)
    training: dict[str, float] = {f"train: {key}": value for key, value in step.items()}
    training |= {"new size": run.sizes, "optimiser": run.steps * run.factors}
    if run.checkpointing:  # layers once more, without the head
        again = pass_amounts(run.learned, run.trained_layers, run.factors) | {"head": 0}
        looked = _sum(looked, {f"look: {key}": value for key, value in again.items()})
    if run.protect:
        training |= {"guard": run.steps * run.factors}
    before = {
        f"plain: {key}": value
        for key, value in pass_amounts(run.said + run.guarded, run.layers, 0).items()
    }
    if run.protect:
        before |= {"directions": run.layers, "gram": run.layers * run.guarded.tokens}
    exam = {f"exam: {key}": value for key, value in pass_amounts(run.exam, run.layers, 0).items()}
    exam |= {
        "load": run.exam_loads,
        "fold": run.exam_folds * run.weights,
        "write": run.written,
    }
    return {
        "start": {"start": 1.0, "open": 1.0, "encode": run.encoded},
        "load": {
            "load": 1.0,
            "first load": 1.0,
            "fold": run.folds * run.weights,
            "attach": run.layers,
        },
        "old rows": before,
        "steps": training,
        "held-out": looked,
        "checkpoints": {"save": 2 * run.factors},
        "landing": {"land": run.factors},
        "exam": exam,
    }


def _sum(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}


Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Calibration(Value):
    """Rates as measured on one machine for one base, dtype and version, in seconds."""

    key: str
    """What it holds for: machine, threads, base's shapes, dtype, lamina's version."""
    created: str
    seconds: Seconds
    """That the probe took."""
    rates: dict[str, Seconds]
    misfit: Seconds = 0.0
    """Median relative difference between the fit and what it was fitted to."""
    pulse: Seconds = 0.0
    """That a fixed piece of work took beside the probe: how busy the machine was."""
    resident: Annotated[int, Field(ge=0)] = 0
    """Bytes of a process with the libraries and nothing else."""


class Estimate(NamedTuple):
    """Seconds of a run by phase."""

    phases: dict[str, float]

    @property
    def seconds(self) -> float:
        """All of them."""
        return sum(self.phases.values())


def estimate(run: Run, calibration: Calibration, pulse: float | None = None) -> Estimate:
    """Seconds of each phase. A rate that was not measured counts nothing.

    `pulse`: what the fixed piece of work takes now; where the machine is busier than when it was
    probed, everything takes as much longer.
    """
    rates = calibration.rates
    found = {
        phase: sum(rates.get(name, 0.0) * amount for name, amount in some.items())
        for phase, some in amounts(run).items()
    }
    found["landing"] += SETTLING * rates.get("start", 0.0)
    if pulse and calibration.pulse:
        found = {phase: t * pulse / calibration.pulse for phase, t in found.items()}
    busy = found["steps"] + found["held-out"]
    found["checkpoints"] += busy // CHECKPOINT_SECONDS * rates.get("save", 0.0) * run.factors
    return Estimate(found)


def fit(
    points: Sequence[Mapping[str, float]], seconds: Sequence[float]
) -> tuple[dict[str, float], float]:
    """Rates, none below 0, that explain the seconds of some points best in relative terms; and the
    median relative difference that is left.

    Weighted non-negative least squares: min sum ((sum rate x amount - t) / t)^2.
    """
    from scipy.optimize import nnls  # a second that only a probe needs

    names = sorted({name for point in points for name in point})
    t = np.asarray(seconds, dtype=float)
    matrix = np.array([[point.get(name, 0.0) for name in names] for point in points]) / t[:, None]
    scale = np.maximum(np.abs(matrix).max(axis=0), 1e-300)  # columns differ by 10^9
    found, _ = nnls(matrix / scale, np.ones(len(t)))
    rates = found / scale
    left = np.abs(matrix @ rates - 1.0)
    return dict(zip(names, map(float, rates), strict=True)), float(np.median(left))


def from_peak(flops: float, peak: float, reached: tuple[float, float]) -> Interval:
    """Seconds of so many useful operations at some share of a machine's peak."""
    return Interval(flops / (peak * reached[1]), flops / (peak * reached[0]))


def from_rates(flops: float, achieved: Sequence[float]) -> Interval:
    """Seconds at rates that past runs have reached, operations a second: slowest and fastest."""
    return Interval(flops / max(achieved), flops / min(achieved))
