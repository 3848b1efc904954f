"""Four layers by four contributors, one over the other: what each gains, what the others lose.

instruction (dolly + instruction_induction), dialogue (roleplay), reasoning (GSM8K), tool use
(sgd_toolstep). Three arms: stacked with rehearsal (and `protect`, as by default), stacked without
both, and each layer alone on the base. `inherited_worse`: exams of lower layers that got
significantly worse (the gate's test) when a layer was stacked with rehearsal, over all stages.
`min_gain_ratio`: the smallest, over layers, of (base's loss - loss of the stack with this layer on
top) / (base's loss - loss of the layer alone on the base), each on the layer's own exam.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.common import BASE, Log, emit, home, parser, say
from lamina.core.errors import UnknownNameError
from lamina.core.evidence import COST_TYPE, CostEvidence
from lamina.core.names import Name
from lamina.core.recipe import Recipe
from lamina.exams.report import score_of
from lamina.flows import learn
from lamina.flows.bases import ensure
from lamina.flows.examine import Examination, examine_stack, matrix_of, sit
from lamina.flows.questions import carried
from lamina.stack.resolve import resolve
from lamina.store.layout import Store

LAYERS: dict[str, dict[str, int]] = {
    "instruction": {"train_dolly_small.jsonl": 120, "train_instruction_induction.jsonl": 400},
    "dialogue": {"train_gpteacher_roleplay.jsonl": 200},
    "reasoning": {"train_gsm8k.jsonl": 250},
    "tools": {"train_sgd_toolstep.jsonl": 90},
}
"""Data files and how many of their first rows, for each layer."""


def rows_file(data: Path, work: Path, layer: str, share: float, skip: int = 0) -> str:
    """The layer's rows in one file."""
    path = work / f"{layer}-{share:g}-{skip}.jsonl"
    lines: list[str] = []
    for file, count in LAYERS[layer].items():
        wanted = max(12, round(count * share))
        found = (data / file).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in found[skip * wanted : (skip + 1) * wanted]]
        keys = ("messages", "tools")
        lines += [json.dumps({k: row[k] for k in keys if k in row}) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def recipe(given: Any, **changes: Any) -> Recipe:
    """One recipe for all."""
    values = {"epochs": 1.0, "held_out": 0.2, "exams": ("loss",), "batch_tokens": 1024, "lr": 3e-4}
    return Recipe(**(values | {"steps": 2 if given.quick else None} | changes))


def layer(store: Store, on: str, name: str, data: str, how: Recipe) -> learn.Learned | None:
    """Train and name a layer; None where the store has one of this name."""
    try:
        store.resolve(Name(name))
    except UnknownNameError:
        request = learn.Request(
            on=on, data=[data], name=name, recipe=how, accept_regression="benchmark"
        )
        run = learn.prepare(store, request, Log())
        return learn.execute(store, run, Log())
    return None


def stacked(store: Store, given: Any, work: Path, arm: str, **changes: Any) -> None:
    """The four layers, one over the other; those that the store has are taken as they are."""
    on = BASE
    for kind in LAYERS:
        arm_of = "on" if kind == next(iter(LAYERS)) else arm  # nothing to rehearse beneath it
        name = f"four-{arm_of}-{kind}"
        data = rows_file(given.data, work, kind, given.share)
        layer(store, on, name, data, recipe(given, **changes))
        on = name


def loss(store: Store, stack: str, exams_of: str) -> float:
    """Loss of a stack on the exam of the top layer of another."""
    (result,) = sit(
        store, resolve(store, stack), carried(store, resolve(store, exams_of).layers[-1:]), Log()
    )
    return score_of(result).value


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, data=True)
    arguments.add_argument("--quick", action="store_true", help="few rows, two steps a layer")
    arguments.add_argument("--share", type=float, default=1.0, help="share of the rows")
    arguments.add_argument("--rehearsal", type=float, help="share of old rows (the default)")
    given = arguments.parse_args()
    given.share = 0.05 if given.quick else given.share
    with home(given.home) as directory:
        store = Store.open(directory)
        ensure(store, BASE, Log())
        work = directory / "bench-data"
        work.mkdir(exist_ok=True)
        emit("contributors", measure(store, given, work), keep=given.keep)


def measure(store: Store, given: Any, work: Path) -> dict[str, Any]:
    """All arms, then the row."""
    changes = {} if given.rehearsal is None else {"rehearsal": given.rehearsal}
    stacked(store, given, work, "on", **changes)
    stacked(store, given, work, "off", rehearsal=0.0, protect=0.0)
    on, off = examined(store, "on"), examined(store, "off")
    ratios, seconds = {}, {}
    for kind in LAYERS:
        alone = f"four-alone-{kind}"
        first = kind == next(iter(LAYERS))
        if first:
            alone = f"four-on-{kind}"
        else:
            data = rows_file(given.data, work, kind, given.share)
            layer(store, BASE, alone, data, recipe(given))
        top = f"four-on-{kind}"
        base = loss(store, BASE, top)
        ratios[kind] = (base - loss(store, top, top)) / (base - loss(store, alone, top))
        (cost,) = store.evidence(resolve(store, top).layers[-1].digest, COST_TYPE, CostEvidence)
        seconds[kind] = cost.seconds
        say(f"{kind}: gain ratio {ratios[kind]:.3f}")
    stacks = [resolve(store, name) for name in (BASE, *(f"four-on-{kind}" for kind in LAYERS))]
    grid = matrix_of(store, stacks, Log())
    return {
        "inherited_worse": _worse(on),
        "inherited_worse_without_rehearsal": _worse(off),
        "min_gain_ratio": round(min(ratios.values()), 4),
        "gain_ratios": {kind: round(value, 4) for kind, value in ratios.items()},
        "rehearsal": recipe(given, **changes).rehearsal,
        "worse": _changes(on),
        "worse_without_rehearsal": _changes(off),
        "matrix": [
            {"stack": c["stack"], "exam": c["exam"], "value": round(c["value"], 4), "n": c["n"]}
            for c in grid["cells"]
        ],
        "seconds": seconds,
        "share": given.share,
    }


def examined(store: Store, arm: str) -> dict[str, Examination]:
    """Every stacked layer against its parent; what was recorded when it was named is reused."""
    return {kind: examine_stack(store, f"four-{arm}-{kind}", Log()) for kind in list(LAYERS)[1:]}


def _worse(arm: dict[str, Examination]) -> int:
    """How many inherited exams got significantly worse."""
    return sum(len(found.verdict.worse) for found in arm.values())


def _changes(arm: dict[str, Examination]) -> dict[str, dict[str, list[float]]]:
    """stage -> inherited exam -> [before, after]."""
    return {
        kind: {
            c.exam: [round(c.before, 4), round(c.after, 4)]
            for c in found.comparisons
            if not c.exam.endswith(f"{kind}/loss")
        }
        for kind, found in arm.items()
    }


if __name__ == "__main__":
    main()
