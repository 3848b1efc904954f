"""Methods of training a layer beside plain LoRA, at equal time: same rows, parameters and loop.

Each method is tuned on its own: plain LoRA's peak rate over three values, every other method's over
two around plain's best, and one more past the best where that is at an edge and clearly better; a
rate that is still at an edge then (`tried`) is not tuned to an end. All take the same steps, which
cost the same; where a method is better by that, the time that its start takes is paid for in steps,
and it is judged by what is left. Held-out loss a token on the same questions, which the rates were
picked by too; the interval is of the paired difference to plain LoRA, each row's mean over the
seeds. A method that is clearly worse with the first seed gets no second.

`dora` is measured with PEFT's layers on both sides, as lamina has none: the same bare loop, DoRA
with as many fewer steps as its steps are slower, and once with as many.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import starts
from benchmarks.common import BASE, Log, emit, home, parser, say
from benchmarks.dora import Loop
from lamina.bases import families
from lamina.bases.load import load
from lamina.core.recipe import Recipe
from lamina.core.scores import ItemScore
from lamina.data.read import read
from lamina.exams.statistics import compare
from lamina.flows.bases import ensure
from lamina.lowrank.attach import attached
from lamina.lowrank.maths import Factors, LayerFactors
from lamina.lowrank.squash import discarded_share, squash_layers
from lamina.stack.compile import base_directory
from lamina.store.layout import Store
from lamina.tokens.batch import Batch, collate
from lamina.tokens.mask import Encoded, encode_all
from lamina.tokens.pack import plan_batches
from lamina.tokens.template import ChatFormat
from lamina.train.events import EventLog
from lamina.train.fused import fuse
from lamina.train.job import Job
from lamina.train.loop import train
from lamina.train.objective import token_losses

FILES = {"gsm8k": "train_gsm8k.jsonl", "dolly": "train_dolly_small.jsonl"}
RANK, MAX_LENGTH, BATCH_TOKENS = 16, 768, 512
RATES = (5e-4, 1e-3, 2e-3)
"""Plain LoRA's."""
LOOKED_AT = 2
"""Batches that a start may look at."""
EDGE = 0.002
"""Nats by which a rate must be better for another one past it to be tried."""


@dataclass(frozen=True)
class Method:
    """One way to train."""

    rates: tuple[float, float]
    """Tried first, as multiples of plain's best rate."""
    start: Callable[[starts.Given], starts.Start] = starts.plain
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Of the recipe."""


METHODS = {
    "plus4": Method((0.5, 1.0), changes={"lr_ratio": 4.0}),
    "plus16": Method((0.25, 0.5), changes={"lr_ratio": 16.0}),
    "inputs": Method((0.5, 1.0), starts.inputs),
    "gradient": Method((0.5, 1.0), starts.gradient),
    "pissa": Method((0.25, 0.5), starts.pissa),
    "olora": Method((0.25, 0.5), starts.olora),
    "mlp_ranks": Method((0.5, 1.0), starts.mlp_ranks),
    "gradient_ranks": Method((0.5, 1.0), starts.gradient_ranks),
}


@dataclass(frozen=True, eq=False)
class Bench:
    """A base in memory, the rows of one data set, and where finished runs are noted."""

    model: nn.Module
    linears: dict[str, nn.Linear]
    originals: dict[str, Tensor]
    data: str
    rows: list[Encoded]
    held: list[Encoded]
    pad_id: int
    steps: int
    work: Path

    def run(self, name: str, rate: float, seed: int, less: int = 0) -> dict[str, Any]:
        """A method's held-out losses, row by row, and seconds; from the notes if it is there.

        `less`: steps not taken, for the time that the start took.
        """
        steps = max(1, self.steps - less)
        key = [self.data, name, rate, seed, steps, len(self.rows), len(self.held)]
        return noted(self.work, key, lambda: self._run(name, rate, seed, steps))

    def _run(self, name: str, rate: float, seed: int, steps: int) -> dict[str, Any]:
        method = METHODS.get(name, Method((1.0, 1.0)))
        recipe = Recipe(
            rank=RANK, lr=rate, steps=steps, batch_tokens=BATCH_TOKENS, seed=seed,
            patience=None, max_length=MAX_LENGTH, **method.changes,
        )  # fmt: skip
        self._weights(self.originals)
        began = time.process_time()  # the machine may have other work
        start = method.start(
            starts.Given(self.model, self.linears, recipe, self._batches(recipe)[:LOOKED_AT])
        )
        spent = time.process_time() - began
        self._weights(self.originals | (start.weights or {}))
        began = time.process_time()
        outcome = train(self._job(recipe, start.factors), EventLog(None))
        seconds = time.process_time() - began
        self._weights(self.originals)
        layer = start.layer(outcome.factors)
        return {
            "items": self.losses(layer),
            "squashed": _cut(layer) if start.weights else 0.0,
            "steps": outcome.progress.step,
            "tokens": outcome.progress.tokens,
            "seconds": seconds,
            "start_seconds": 0.0 if method.start is starts.plain else spent,
            "parameters": sum(part.parameters for part in layer.values()),
        }

    def _weights(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in weights.items():
            self.linears[name].weight.data = weight

    def _batches(self, recipe: Recipe) -> list[Batch]:
        plan = plan_batches([len(r) for r in self.rows], BATCH_TOKENS, recipe.seed, 0)
        return [collate([self.rows[i] for i in some], self.pad_id) for some in plan]

    def _job(self, recipe: Recipe, factors: dict[str, Factors]) -> Job:
        (self.work / "state.safetensors").unlink(missing_ok=True)
        return Job(
            model=self.model, linears=self.linears, rows=self.rows, eval_rows=(), recipe=recipe,
            pad_id=self.pad_id, directory=self.work, resume_with="", start=factors,
        )  # fmt: skip

    @torch.inference_mode()
    def losses(self, factors: dict[str, Factors] | None) -> list[tuple[float, float]]:
        """(nats, tokens) of each held-out row, through the weights as they are."""
        if factors is None:
            return self._losses()
        with attached(self.model, factors, self.linears):
            return self._losses()

    def _losses(self) -> list[tuple[float, float]]:
        decoder = fuse(self.model)[0] or self.model
        items: dict[int, tuple[float, float]] = {}
        for some in plan_batches([len(row) for row in self.held], 2048, 0, 0):
            batch = collate([self.held[i] for i in some], self.pad_id)
            losses = token_losses(decoder, batch).double()
            for place, index in enumerate(some):
                mine = losses[batch.row_of_target == place]
                items[index] = float(mine.sum()), float(len(mine))
        return [items[index] for index in range(len(self.held))]


def _cut(layer: LayerFactors) -> float:
    """The share of a layer, relative Frobenius norm, that a squash to the plain rank leaves out."""
    return discarded_share(squash_layers([layer], rank=RANK, tolerance=None))


def noted(work: Path, key: list[Any], run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A run's result, from the notes if it is there: a benchmark that was stopped goes on."""
    note = work / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]}.json"
    if not note.exists():
        note.write_text(json.dumps(run()))
    found: dict[str, Any] = json.loads(note.read_text())
    if "items" in found:
        say(f"{key}: {loss_of(found):.4f} ({found['steps']} steps, {found['seconds']:.0f} s)")
    return found


def loss_of(found: Mapping[str, Any]) -> float:
    """Nats a token."""
    items = found["items"]
    return float(sum(v for v, _ in items) / sum(w for _, w in items))


def versus(plain: list[Any], other: list[Any]) -> dict[str, Any]:
    """The paired difference of two lists of runs of the same seeds, each row's mean over them."""
    paired = compare(_mean(plain), _mean(other), higher_is_better=False)
    return {"delta": round(paired.delta, 4), "ci": [round(x, 4) for x in paired.ci]}


def _mean(runs: list[Any]) -> list[ItemScore]:
    rows = zip(*(run["items"] for run in runs), strict=True)
    return [ItemScore(value=sum(v for v, _ in row) / len(runs), weight=row[0][1]) for row in rows]


def tuned(bench: Bench, name: str, rates: list[float]) -> tuple[float, dict[float, Any]]:
    """The best of the rates with the first seed, and all runs; one more rate past an edge."""
    found = {rate: bench.run(name, rate, 0) for rate in rates}
    ordered = sorted(found)
    best = min(found, key=lambda rate: loss_of(found[rate]))
    second = sorted(loss_of(run) for run in found.values())[1]
    if best in (ordered[0], ordered[-1]) and second - loss_of(found[best]) > EDGE:
        further = best / 2 if best == ordered[0] else best * 2
        found[further] = bench.run(name, further, 0)
        best = min(found, key=lambda rate: loss_of(found[rate]))
    return best, found


def compared(bench: Bench, names: list[str], seeds: int) -> dict[str, Any]:
    """Every method on one data set."""
    rate, runs = tuned(bench, "plain", list(RATES))
    plain = [bench.run("plain", rate, seed) for seed in range(seeds)]
    speed = median(run["tokens"] / run["seconds"] for run in plain)
    rows = {"plain": _line(rate, runs, plain, plain)}
    for name in names:
        best, tried = tuned(bench, name, [rate * times for times in METHODS[name].rates])
        own = [tried[best]]
        if versus(plain[:1], own)["ci"][0] <= 0:  # not clearly worse
            own += [bench.run(name, best, seed) for seed in range(1, seeds)]
        rows[name] = _line(best, tried, plain, own)
        less = round(own[0]["start_seconds"] * bench.steps / own[0]["seconds"])
        if less and rows[name]["ci"][1] < 0:  # better by steps: is it by time?
            own = [bench.run(name, best, seed, less) for seed in range(seeds)]
            rows[name] |= {"by_steps": rows[name]["delta"], **versus(plain, own), "less": less}
    key = [bench.data, "before", len(bench.rows), len(bench.held)]
    before = noted(bench.work, key, lambda: {"loss": loss_of({"items": bench.losses(None)})})
    return {
        "before": round(before["loss"], 4),
        "tokens_per_second": round(speed, 1),
        "methods": rows,
    }


def _line(
    rate: float, tried: Mapping[float, Any], plain: list[Any], own: list[Any]
) -> dict[str, Any]:
    return {
        "rate": rate,
        "tried": {f"{r:g}": round(loss_of(run), 4) for r, run in sorted(tried.items())},
        "loss": [round(loss_of(run), 4) for run in own],
        **versus(plain[: len(own)], own),
        "steps": own[0]["steps"],
        "start_seconds": round(own[0]["start_seconds"], 1),
        "squashed": round(own[0].get("squashed", 0.0), 4),
        "parameters": own[0]["parameters"],
    }


def dora(base: Path, bench: Bench, rate: float) -> dict[str, Any]:
    """DoRA and plain LoRA by PEFT: at equal time, and DoRA with as many steps as plain."""
    loop = Loop(base, bench.rows, bench.held[: max(4, len(bench.held) // 2)], RANK, BATCH_TOKENS)
    probe = noted(bench.work, [bench.data, "slower"], lambda: {"times": loop.slower()})
    slower = max(1.0, probe["times"])
    count = max(2, bench.steps // 3)
    found: dict[str, dict[float, dict[str, Any]]] = {}
    for name, kind, steps in (("plain", False, count), ("dora", True, round(count / slower))):
        found[name] = {}
        for each in (rate / 2, rate):
            key = [bench.data, f"peft-{name}", each, 0, steps, len(loop.rows), len(loop.held)]
            found[name][each] = noted(
                bench.work, key, lambda k=kind, r=each, n=steps: loop.measured(k, r, 0, max(1, n))
            )
    best = {name: min(runs, key=lambda r, o=runs: loss_of(o[r])) for name, runs in found.items()}
    plain = [found["plain"][best["plain"]]]
    rows = {n: _line(best[n], runs, plain, [runs[best[n]]]) for n, runs in found.items()}
    key = [bench.data, "peft-dora", best["dora"], 0, count, len(loop.rows), len(loop.held)]
    same = noted(bench.work, key, lambda: loop.measured(True, best["dora"], 0, count))
    return {"slower": round(slower, 2), **rows, "same_steps": versus(plain, [same])}


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, data=True)
    arguments.add_argument("--quick", action="store_true", help="a few steps each")
    arguments.add_argument("--steps", type=int, default=24, help=f"of {BATCH_TOKENS} tokens")
    arguments.add_argument("--rows", type=int, default=400)
    arguments.add_argument("--held", type=int, default=64)
    arguments.add_argument("--seeds", type=int, default=2)
    arguments.add_argument("--methods", default=",".join([*METHODS, "dora"]))
    arguments.add_argument("--sets", default=",".join(FILES))
    given = arguments.parse_args()
    if given.quick:
        given.steps, given.rows, given.held, given.seeds = 2, 24, 8, 1
    with home(given.home) as directory:
        store = Store.open(directory)
        ensure(store, BASE, Log())
        base = base_directory(store, store.bases()[BASE])
        row = measure(base, directory / "bench-methods", given)
    emit("methods", row, keep=given.keep)


def measure(base: Path, work: Path, given: Any) -> dict[str, Any]:
    """Every method on every data set."""
    work.mkdir(exist_ok=True)
    loaded = load(base, dtype=torch.bfloat16)
    linears = families.linears(loaded.model)
    originals = {name: linear.weight.data for name, linear in linears.items()}
    names, found = given.methods.split(","), {}
    for name in given.sets.split(","):
        examples = list(read([str(given.data / FILES[name])]).examples)[: given.rows]
        encoded = encode_all(
            examples, ChatFormat(loaded.tokenizer), max_length=MAX_LENGTH, overlong="truncate"
        ).rows
        bench = Bench(
            loaded.model, linears, originals, name, list(encoded[: -given.held]),
            list(encoded[-given.held :]), loaded.tokenizer.pad_token_id or 0, given.steps, work,
        )  # fmt: skip
        found[name] = compared(bench, [n for n in METHODS if n in names], given.seeds)
        if "dora" in names:
            rate = found[name]["methods"]["plain"]["rate"]
            found[name]["by_peft"] = dora(base, bench, rate)
    return {
        "rank": RANK,
        "steps": given.steps,
        "batch_tokens": BATCH_TOKENS,
        "pays": _paying(found),
        "sets": found,
        "quick": given.quick,
    }


def _paying(found: Mapping[str, Any]) -> list[str]:
    """Methods that are better than plain LoRA on every data set, each time beyond the interval."""
    columns = [each["methods"] for each in found.values()]
    return [n for n in columns[0] if all(each[n]["ci"][1] < 0 for each in columns)]


if __name__ == "__main__":
    main()
