"""`lamina advise`: a recipe for some rows, from short trainings, each choice with its reason.

Candidates are trained for a few steps, the better third for three times as many, and so on
(successive halving, Jamieson and Talwalkar, arXiv:1502.07943), each with a whole schedule of its
own, over one loaded stack. They are judged on rows that are kept from the training rows: the rows
of the coming layer's exam are not looked at. Probes go without rehearsal.
"""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lamina.bases import families
from lamina.core.errors import DataError, UsageError
from lamina.core.recipe import ALL_LINEAR, Recipe
from lamina.core.report import Reporter
from lamina.core.scores import ItemScore
from lamina.core.seeds import derive
from lamina.data.read import read
from lamina.data.split import split
from lamina.exams import statistics
from lamina.flows.suiting import check_rows, check_talks
from lamina.lowrank.attach import attached
from lamina.lowrank.maths import LayerFactors
from lamina.stack.compile import DTYPES, Compiled, compile_stack, device_at_hand
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from lamina.tokens.batch import collate
from lamina.tokens.mask import Encoded, encode_all
from lamina.tokens.pack import plan_batches
from lamina.train.events import EventLog
from lamina.train.fused import fuse
from lamina.train.job import Job
from lamina.train.loop import train
from lamina.train.objective import token_losses

KEPT = 3
"""One candidate in so many goes on to the next rung, for so many times the steps."""
LEAST_STEPS = 3
"""Of the first rung: fewer tell nothing."""
PROBE_TOKENS = 512
"""Tokens in a probe's step, at most: more steps in the time."""
JUDGES, JUDGE_SHARE, LEAST_ROWS = 64, 0.1, 24
"""Rows that candidates are judged on, at most, and as a share; and rows below which none are
probed."""
MOST_EPOCHS = 4.0
"""Rows repeated so often still teach nearly as much as new ones (Muennighoff et al.,
arXiv:2305.16264, figure 5)."""
SURE = 0.05
"""One-sided p-value up to which one candidate counts as better than another."""
RANKS, RATES = (4, 16, 64), (2e-4, 5e-4, 1.5e-3)
QUERIES_AND_VALUES = ("q_proj", "v_proj")


class Candidate(NamedTuple):
    """What is tried."""

    rank: int
    targets: tuple[str, ...]
    lr: float

    def __str__(self) -> str:
        return f"rank {self.rank}, {'+'.join(self.targets)}, rate {self.lr:g}"


@dataclass(frozen=True)
class Tried:
    """One candidate after some steps."""

    candidate: Candidate
    steps: int
    seconds: float
    tokens: int
    parameters: int
    losses: tuple[ItemScore, ...]
    """Of each judge: nats, and tokens."""

    @property
    def loss(self) -> float:
        """Nats a token; infinite where it diverged."""
        value = _mean(self.losses)
        return value if math.isfinite(value) else math.inf

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            **self.candidate._asdict(),
            "steps": self.steps,
            "loss": self.loss if math.isfinite(self.loss) else None,
            "parameters": self.parameters,
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True)
class Advice:
    """A recipe, and why it is this one."""

    recipe: Recipe
    """Changes to the defaults."""
    reasons: tuple[tuple[str, str], ...]
    """(key of the recipe, why)."""
    before: float
    """Loss of the judges as the stack stands."""
    rungs: tuple[tuple[Tried, ...], ...]
    """Best first."""
    minutes: float
    """What training by it is expected to take."""

    @property
    def chosen(self) -> dict[str, Any]:
        """The recipe's keys that were decided."""
        found = self.recipe.model_dump(mode="json")
        return {key: found[key] for key, _ in self.reasons}

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "recipe": self.chosen,
            "reasons": dict(self.reasons),
            "loss_before": self.before,
            "minutes": self.minutes,
            "rungs": [[tried.to_json() for tried in rung] for rung in self.rungs],
        }

    def render(self) -> str:
        """For people."""
        lines = [f"{key} = {_toml(self.chosen[key])}    {why}" for key, why in self.reasons]
        last = self.rungs[-1][0]
        lines.append(
            f"held-out loss {self.before:.3f} before, {last.loss:.3f} after {last.steps} steps of "
            f"{last.tokens // last.steps} tokens; training by it takes about "
            f"{self.minutes:.1f} minutes"
        )
        return "\n".join(lines)

    def toml(self) -> str:
        """A recipe file, reasons as comments."""
        lines = []
        for key, why in self.reasons:
            lines += [f"# {why}", f"{key} = {_toml(self.chosen[key])}"]
        return "\n".join(lines) + "\n"


def advise(
    store: Store,
    data: Sequence[str],
    on: str,
    reporter: Reporter,
    *,
    minutes: float,
    probe_minutes: float,
    format: str | None = None,
    skip_bad: bool = False,
    seed: int = 0,
) -> Advice:
    """Try recipes for about `probe_minutes`; the one to train with when there are `minutes`.

    Interrupted after the first rung, it goes by what it has. Raises DataError for too few rows or
    bad ones, UsageError, KeyboardInterrupt before the first rung is through.
    """
    stack = resolve(store, on)
    check_talks(stack, "advice from probes", "try some yourself: lamina sweep RECIPE.toml")
    default = Recipe(seed=seed)
    dataset = read(data, format=format, skip_bad=skip_bad)
    check_rows(stack, dataset.examples)
    rows = split(dataset.examples, default.held_out, default.held_out_max).train
    if len(rows) < LEAST_ROWS:
        raise DataError(
            f"{len(rows)} rows to train on are too few to try recipes with",
            hint=f"give {LEAST_ROWS} at least; with fewer, train with the defaults",
        )
    reporter.say(f"loading {stack.label}")
    compiled = compile_stack(store, stack, dtype=DTYPES[default.dtype], device=device_at_hand())
    encoded = encode_all(
        rows, compiled.format, max_length=default.max_length, overlong=default.overlong
    ).rows
    bench = _Bench(compiled, encoded, default, reporter)
    rungs = _halving(bench, _candidates(compiled), 60 * probe_minutes, reporter)
    return _advice(bench, rungs, default, minutes)


# -- trying ----------------------------------------------------------------------------------------


def _candidates(compiled: Compiled) -> list[Candidate]:
    """Three rates for each of three ranks on all linears, and for queries and values alone."""
    leaves = {name.rpartition(".")[2] for name in compiled.linears}
    shapes: list[tuple[int, tuple[str, ...]]] = [(rank, (ALL_LINEAR,)) for rank in RANKS]
    if leaves >= set(QUERIES_AND_VALUES):
        shapes.append((16, QUERIES_AND_VALUES))
    return [Candidate(rank, targets, lr) for rank, targets in shapes for lr in RATES]


class _Bench:
    """One loaded stack on which candidates are tried."""

    def __init__(
        self, compiled: Compiled, rows: Sequence[Encoded], default: Recipe, reporter: Reporter
    ) -> None:
        self.compiled, self.default, self._reporter = compiled, default, reporter
        order = sorted(rows, key=lambda row: derive(default.seed, "judges", row.example))
        count = min(JUDGES, max(LEAST_ROWS // 3, round(JUDGE_SHARE * len(rows))))
        self.judges, self.rows = order[:count], order[count:]
        self.all_tokens = sum(map(len, rows))
        self.before = self._judged(None)

    def loss_before(self) -> float:
        """Nats a token, as the stack stands."""
        return _mean(self.before)

    def try_out(self, candidate: Candidate, steps: int) -> Tried:
        """Train it for so many steps, and judge it."""
        recipe = self.default.model_copy(
            update={
                **candidate._asdict(),
                "steps": steps,
                "batch_tokens": min(PROBE_TOKENS, self.default.batch_tokens),
                "rehearsal": 0.0,
                "protect": 0.0,
                "patience": 0,
            }
        )
        events: list[dict[str, Any]] = []
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="lamina-advise-") as folder:
            job = Job(
                model=self.compiled.model,
                linears=families.select(self.compiled.linears, recipe.targets),
                rows=self.rows,
                eval_rows=(),
                recipe=recipe,
                pad_id=self.compiled.pad_id,
                directory=Path(folder),
                resume_with="lamina advise",
            )
            outcome = train(job, EventLog(None, lambda event: events.append(dict(event))))
        seconds = time.perf_counter() - began
        return Tried(
            candidate,
            steps,
            seconds,
            outcome.progress.tokens,
            sum(each.parameters for each in outcome.factors.values()),
            self._judged(outcome.factors),
        )

    def _judged(self, factors: LayerFactors | None) -> tuple[ItemScore, ...]:
        model = self.compiled.model
        if factors is None:
            return self._losses(fuse(model)[0] or model)
        chosen = {name: self.compiled.linears[name] for name in factors}
        with attached(model, factors, chosen):
            return self._losses(fuse(model)[0] or model)

    @torch.inference_mode()
    def _losses(self, model: Any) -> tuple[ItemScore, ...]:
        found = [ItemScore(value=0.0)] * len(self.judges)
        for places in plan_batches([len(row) for row in self.judges], 2048, seed=0, epoch=0):
            batch = collate([self.judges[place] for place in places], self.compiled.pad_id)
            losses_N = token_losses(model, batch).double().cpu()
            for row, place in enumerate(places):
                of_row = losses_N[batch.row_of_target == row]
                found[place] = ItemScore(value=float(of_row.sum()), weight=float(len(of_row)))
        return tuple(found)


def _halving(
    bench: _Bench, candidates: Sequence[Candidate], seconds: float, reporter: Reporter
) -> list[tuple[Tried, ...]]:
    """Rungs of fewer and fewer candidates, best first in each."""
    timed = _timed(bench)
    sizes = [len(candidates)]
    while sizes[-1] > 2:
        sizes.append(max(2, math.ceil(sizes[-1] / KEPT)))
    shares = sum(size * KEPT**rung for rung, size in enumerate(sizes))
    steps = max(LEAST_STEPS, int(seconds / (shares * timed)))
    reporter.say(
        f"{len(candidates)} candidates, {steps} steps each, the better ones up to "
        f"{steps * KEPT ** (len(sizes) - 1)}: about {shares * steps * timed / 60:.1f} minutes"
    )
    rungs: list[tuple[Tried, ...]] = []
    left = list(candidates)
    try:
        for rung, size in enumerate(sizes):
            tried = []
            for number, candidate in enumerate(left[:size], start=1):
                text = f"rung {rung + 1} of {len(sizes)}: {candidate} ({number}/{size})"
                reporter.event({"event": "examining", "text": text, "last": number == size})
                tried.append(bench.try_out(candidate, steps * KEPT**rung))
            rungs.append(tuple(sorted(tried, key=lambda each: each.loss)))
            left = [each.candidate for each in rungs[-1]]
    except KeyboardInterrupt:
        if not rungs:
            raise
        reporter.say(f"stopped; going by the rungs that are through: {len(rungs)} of {len(sizes)}")
    return rungs


def _timed(bench: _Bench) -> float:
    """Seconds of a step, a probe's own overhead spread over the steps; the first one compiles."""
    bench.try_out(Candidate(16, (ALL_LINEAR,), 5e-4), 1)
    took = bench.try_out(Candidate(16, (ALL_LINEAR,), 5e-4), LEAST_STEPS)
    return took.seconds / took.steps


def _mean(losses: Sequence[ItemScore]) -> float:
    """Nats a token."""
    return sum(item.value for item in losses) / sum(item.weight for item in losses)


# -- choosing --------------------------------------------------------------------------------------


def _advice(
    bench: _Bench, rungs: Sequence[tuple[Tried, ...]], default: Recipe, minutes: float
) -> Advice:
    best = _winner(rungs[-1])
    if not best.loss < bench.loss_before():
        raise UsageError(
            f"no candidate lowered the held-out loss ({bench.loss_before():.3f} before, "
            f"{best.loss:.3f} at best)",
            hint="give more rows or --probe-minutes; or does the stack say all this already?",
        )
    candidate = best.candidate
    reasons = [
        ("rank", _reason(rungs, best, lambda c: c.rank, "rank {}")),
        ("targets", _reason(rungs, best, lambda c: "+".join(c.targets), "{}")),
        ("lr", _reason(rungs, best, lambda c: f"{c.lr:g}", "rate {}")),
    ]
    epoch_minutes = bench.all_tokens / (best.tokens / best.seconds) / 60
    epochs, why = _epochs(minutes, epoch_minutes)
    reasons.append(("epochs", why))
    recipe = default.model_copy(update={**candidate._asdict(), "epochs": epochs})
    return Advice(recipe, tuple(reasons), bench.loss_before(), tuple(rungs), epochs * epoch_minutes)


def _winner(rung: Sequence[Tried]) -> Tried:
    """The best; a smaller one that cannot be told from it in its place."""
    best = rung[0]
    alike = [each for each in rung[1:] if not _better(best, each)]
    return min([best, *alike], key=lambda each: (each.parameters, each.loss))


def _better(one: Tried, other: Tried) -> bool:
    """Whether `one` is significantly better on the same judges."""
    if not math.isfinite(other.loss):
        return math.isfinite(one.loss)
    paired = statistics.compare(other.losses, one.losses, higher_is_better=False)
    return paired.p_better <= SURE


def _reason(
    rungs: Sequence[Sequence[Tried]],
    chosen: Tried,
    of: Callable[[Candidate], Any],
    name: str,
) -> str:
    """How the other values of one choice did, each on the last rung that it came to, beside the
    best of the chosen value there."""
    ours, told = of(chosen.candidate), []
    values = dict.fromkeys(of(each.candidate) for each in rungs[0])
    for value in values:
        if value == ours:
            continue
        rung = next(r for r in reversed(rungs) if any(of(t.candidate) == value for t in r))
        theirs = min((t for t in rung if of(t.candidate) == value), key=lambda t: t.loss)
        mine = min((t for t in rung if of(t.candidate) == ours), key=lambda t: t.loss)
        if _better(mine, theirs):
            verdict = f"{_loss_text(theirs)} to {_loss_text(mine)}"
        elif _better(theirs, mine):
            verdict = f"better at first ({_loss_text(theirs)} to {_loss_text(mine)})"
        else:
            verdict = f"not told apart ({_loss_text(theirs)} to {_loss_text(mine)})"
        told.append(f"{name.format(value)} {verdict} after {theirs.steps} steps")
    return "; ".join(told) or "the only one tried"


def _loss_text(tried: Tried) -> str:
    return f"{tried.loss:.3f}" if math.isfinite(tried.loss) else "diverged"


def _epochs(minutes: float, epoch_minutes: float) -> tuple[float, str]:
    affordable = minutes / epoch_minutes
    took = f"a pass over the rows takes {epoch_minutes:.1f} minutes, {minutes:g} are at hand"
    if affordable >= MOST_EPOCHS:
        return MOST_EPOCHS, f"{took}; more than {MOST_EPOCHS:g} passes teach little"
    return max(0.01, math.floor(100 * affordable) / 100), took


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(f'"{each}"' for each in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
