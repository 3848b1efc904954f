"""`lamina quickstart`: base, a tool-use layer, a reasoning layer over it, and the exam matrix."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lamina.core.evidence import COST_TYPE, CostEvidence
from lamina.core.recipe import Recipe
from lamina.core.report import Reporter
from lamina.exams.report import Matrix, render_matrix
from lamina.flows import learn, runs
from lamina.flows.bases import ensure
from lamina.flows.examine import matrix_of
from lamina.flows.quickstart_data import reasoning_rows, tool_use_rows
from lamina.stack.resolve import ResolvedStack, resolve
from lamina.store.layout import Store

BASE = "smollm2-135m"
TOOLS, REASONING = "quickstart-tools", "quickstart-reasoning"
LICENCE = "Apache-2.0"

TOOLS_RECIPE = Recipe(
    lr=1.5e-3,
    epochs=4,
    max_minutes=3.1,
    batch_tokens=1024,
    held_out=0.18,
    held_out_max=80,
    eval_rows=12,
    exams=("tool_call",),
)
REASONING_RECIPE = Recipe(
    lr=5e-4,
    rehearsal=0.4,
    rehearse="labels",  # two minutes leave much unlearned beneath: its rows still teach
    protect=0.0,
    epochs=2,
    max_minutes=1.8,
    batch_tokens=1024,
    held_out=0.08,
    held_out_max=100,
    eval_rows=24,
    exams=("exact",),
)


@dataclass(frozen=True)
class Report:
    """What the quickstart shows at its end."""

    matrix: Matrix
    layers: tuple[dict[str, Any], ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            **self.matrix,
            "layers": list(self.layers),
            "seconds": round(self.seconds, 1),
        }

    def render(self) -> str:
        """For people."""
        lines = [render_matrix(self.matrix), ""]
        for layer in self.layers:
            lines.append(
                f"{layer['name']}: {layer['seconds'] / 60:.1f} minutes of training, "
                f"{layer['parameters']:,} parameters, {layer['bytes'] / 1e6:.1f} MB, "
                f"{layer['reduction']:.0f} times smaller than the base"
            )
        lines += [
            "",
            f"Done in {self.seconds / 60:.1f} minutes. What to type next:",
            f'  lamina chat {REASONING} --once "Who are you?"',
            f"  lamina show {REASONING}          # recipe, data, exams and cost of every layer",
            f"  lamina diff {TOOLS} {REASONING}  # answers side by side",
            f"  lamina train --on {REASONING} --data yours.jsonl --as mine",
        ]
        return "\n".join(lines)


def quickstart(store: Store, reporter: Reporter, should_stop: Callable[[], bool]) -> Report:
    """Run the main job; what an earlier call has done is not done again.

    Raises TrainInterrupted, BaseError, MissingPartError, GateError.
    """
    began = time.perf_counter()
    reporter.say(f"1/4  base {BASE}")
    ensure(store, BASE, reporter)
    data = store.cache_dir / "quickstart"
    reporter.say("2/4  a tool-use layer: function calling, from bfcl-eval")
    _layer(
        store,
        BASE,
        TOOLS,
        lambda: tool_use_rows(data, reporter),
        TOOLS_RECIPE,
        reporter,
        should_stop,
    )
    reporter.say("3/4  a reasoning layer on top of it: puzzles, from reasoning-gym")
    _layer(
        store,
        TOOLS,
        REASONING,
        lambda: reasoning_rows(data, reporter),
        REASONING_RECIPE,
        reporter,
        should_stop,
    )
    reporter.say("4/4  every exam on every stack")
    stacks = [resolve(store, name) for name in (BASE, TOOLS, REASONING)]
    matrix = matrix_of(store, stacks, reporter)
    layers = tuple(_layer_facts(store, stack) for stack in stacks[1:])
    return Report(matrix, layers, time.perf_counter() - began)


def _layer(
    store: Store,
    on: str,
    name: str,
    data: Callable[[], Any],
    recipe: Recipe,
    reporter: Reporter,
    should_stop: Callable[[], bool],
) -> None:
    """Train the layer, or go on with its unfinished run, or find it done."""
    if name in store.names():
        return
    waiting = [r for r in runs.all_runs(store) if r.spec.name == name and _unfinished(r)]
    if waiting:
        run = waiting[-1]
    else:
        request = learn.Request(
            on=on, data=[str(data())], name=name, recipe=recipe, licence=LICENCE
        )
        run = learn.prepare(store, request, reporter)
    learn.execute(store, run, reporter, should_stop)


def _unfinished(run: runs.Run) -> bool:
    result = run.result
    return result is None or result.name is None


def _layer_facts(store: Store, stack: ResolvedStack) -> dict[str, Any]:
    layer = stack.layers[-1]
    cost = store.evidence(layer.digest, COST_TYPE, CostEvidence)[-1]
    return {
        "name": layer.config.name,
        "seconds": cost.seconds,
        "parameters": layer.config.parameters,
        "bytes": cost.layer_bytes,
        "reduction": round(cost.base_bytes / cost.layer_bytes, 2),
        "parameter_reduction": round(stack.base_config.parameters / layer.config.parameters, 1),
    }
