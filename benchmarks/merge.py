"""Two parallel layers merged by every method: what each keeps of what the layers had learned.

One layer learns short tasks told by an instruction (`instruction_induction`), the other tool calls
in a dialogue (`sgd_toolstep`), both over the bare base; some rows of each are held out and become
its exam (loss). Stacks that the store already has under the benchmark's names are reused.

`values`: loss on each exam. `kept`: share of each layer's own gain over the base that the merged
stack has, 1 = as good as the layer alone. `lost`: what the return to a low rank left out of the
method's result. `seconds`: merging, examining and certifying, when it was first done;
`method_seconds`: the arithmetic alone.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import BASE, Log, emit, home, parser, say
from benchmarks.gsm8k import first_rows, learn_layer
from lamina.core.recipe import Recipe
from lamina.flows.bases import ensure
from lamina.flows.merge import merge
from lamina.stack.combine.registry import METHODS
from lamina.stack.compile import stored_factors
from lamina.stack.interference import interference
from lamina.stack.resolve import resolve
from lamina.store.layout import Store


class Source(NamedTuple):
    """What one layer learns."""

    file: str
    rows: int
    """The first rows of the file; a dialogue with its tools is ten times as long as a task."""


SOURCES = {
    "bench-merge-tasks": Source("train_instruction_induction.jsonl", 1000),
    "bench-merge-tools": Source("train_sgd_toolstep.jsonl", 120),
}
MOST_QUICK = 24
QUICK = {"rank": 2, "steps": 4, "batch_tokens": 512, "max_length": 256}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser(__doc__, data=True)
    options.add_argument("--quick", action="store_true", help="few rows, a few steps")
    options.add_argument("--base", default=BASE, help="base to train over")
    options.add_argument("--share", type=float, default=1.0, help="share of the rows")
    options.add_argument("--epochs", type=float, default=1.0)
    options.add_argument("--methods", default=",".join(METHODS))
    given = options.parse_args(arguments)
    changes: dict[str, Any] = {"epochs": given.epochs}
    rows = {name: round(source.rows * given.share) for name, source in SOURCES.items()}
    if given.quick:
        rows, changes = {name: min(count, MOST_QUICK) for name, count in rows.items()}, QUICK
    recipe = Recipe(**{"held_out": 0.15, "held_out_max": 100, "exams": ("loss",), **changes})
    with home(given.home) as directory:
        store = Store.open(directory)
        ensure(store, given.base, Log())
        for name, source in SOURCES.items():
            _ready(store, given.base, name, given.data / source.file, rows[name], recipe)
        methods = {name: _measured(store, name) for name in given.methods.split(",")}
        alone = [found.pop("alone") for found in methods.values()]
        row = {
            "base": given.base,
            "rows": rows,
            "quick": given.quick,
            "recipe": {key: getattr(recipe, key) for key in ("rank", "lr", "epochs", "steps")},
            "alone": alone[0],
            "interference": _interference(store),
            "methods": methods,
        }
    emit("merge", row, keep=given.keep)


def _ready(store: Store, base: str, name: str, source: Path, rows: int, recipe: Recipe) -> None:
    """Train a layer over the base, unless the store has it."""
    if name in store.names():
        say(f"{name} is in the store already")
        return
    work = store.root / "bench-data"
    work.mkdir(exist_ok=True)
    learn_layer(store, base, name, first_rows(source, work / f"{name}.jsonl", rows), recipe, [])


def _measured(store: Store, method: str) -> dict[str, Any]:
    """One method: merged, examined, certified."""
    say(f"merging by {method}")
    found = merge(
        store, list(SOURCES), name=f"bench-merge-{method}", method=method, reporter=Log(),
        override="benchmark",
    )  # fmt: skip
    values: dict[str, dict[str, float]] = {}
    for cell in found["matrix"]["cells"]:
        values.setdefault(cell["stack"], {})[cell["exam"]] = round(cell["value"], 4)
    merged = values.pop(f"bench-merge-{method} (merged)")
    certificate = found["certificate"]
    kept = {each["exam"]: each["retained"] for each in certificate["exams"]}
    return {
        "values": merged,
        "kept": {exam: None if x is None else round(x, 3) for exam, x in kept.items()},
        "weights": [round(each["weight"], 4) for each in found["merged"]],
        "lost": round(certificate["discarded"], 4),
        "seconds": certificate["seconds"],
        "method_seconds": _arithmetic(store, method),
        "gate_passed": found["metrics"]["gate"]["passed"],
        "alone": values,
    }


def _arithmetic(store: Store, method: str) -> float | None:
    """Seconds of the method by itself; None for one that asks the model."""
    chosen = METHODS[method]
    if chosen.needs_examples:
        return None
    layers = [stored_factors(store, resolve(store, name).layers[-1].digest) for name in SOURCES]
    began = time.perf_counter()
    chosen.function(layers, [1.0] * len(layers))
    return round(time.perf_counter() - began, 2)


def _interference(store: Store) -> dict[str, float]:
    a, b = (stored_factors(store, resolve(store, name).layers[-1].digest) for name in SOURCES)
    found = interference(a, b)
    keys = ("cosine", "overlap_a", "overlap_b", "norm_a", "norm_b")
    return {key: round(getattr(found, key), 4) for key in keys}


if __name__ == "__main__":
    main()
