"""A real layer on real data: GSM8K, then dolly above it.

1,000 rows of GSM8K's training set become a layer over the embedded base (a tenth held out by
hash, which is its exam); the official test set's first rows are a second exam. Then a second layer
is trained above on the dolly rows (0.3 of an epoch), and both exams are sat again.
"""

import json
import re
import resource
import shutil
from pathlib import Path

from benchmarks.common import BASE, Log, emit, home, parser, say
from lamina.core.recipe import Recipe
from lamina.flows import learn
from lamina.flows.bases import ensure
from lamina.store.layout import Store

ROWS = 1000
TEST_ROWS = 100


def first_rows(source: Path, target: Path, count: int) -> Path:
    """The first rows of a JSONL file."""
    lines = source.read_text(encoding="utf-8").splitlines()[:count]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target


def official_rows(source: Path, target: Path, count: int) -> Path:
    """GSM8K's official test questions as prompt and completion, worded as in training."""
    rows = [json.loads(line) for line in source.read_text().splitlines()[:count]]
    clean = [
        {"prompt": r["question"], "completion": re.sub(r"<<.*?>>", "", r["answer"])} for r in rows
    ]
    target.write_text("".join(json.dumps(r) + "\n" for r in clean), encoding="utf-8")
    return target


def learn_layer(store: Store, on: str, name: str, data: Path, recipe: Recipe, exams: list[str]):  # noqa: ANN201
    """Train, examine and name one layer."""
    request = learn.Request(
        on=on, data=[str(data)], name=name, recipe=recipe, exam_files=exams,
        accept_regression="benchmark",
    )  # fmt: skip
    run = learn.prepare(store, request, Log())
    return learn.execute(store, run, Log())


def comparison(learned, exam: str) -> dict:  # noqa: ANN001
    """The paired comparison of one exam."""
    return next(c for c in learned.examination.comparisons if c.exam == exam).model_dump()


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, data=True)
    arguments.add_argument("--rows", type=int, default=ROWS)
    arguments.add_argument("--epochs", type=float, default=1.0)
    given = arguments.parse_args()
    with home(given.home) as directory:
        store = Store.open(directory)
        ensure(store, BASE, Log())
        work = directory / "bench-data"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        rows = first_rows(given.data / "train_gsm8k.jsonl", work / "gsm8k.jsonl", given.rows)
        test = official_rows(given.data / "eval_gsm8k_test.jsonl", work / "test.jsonl", TEST_ROWS)
        recipe = Recipe(epochs=given.epochs, held_out=0.1, exams=("loss",))
        first = learn_layer(store, BASE, "bench-gsm8k", rows, recipe, [str(test)])
        say(first.examination.render())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        dolly = given.data / "train_dolly_small.jsonl"
        above = Recipe(epochs=given.epochs * 0.3, held_out=0.1, exams=("loss",))
        second = learn_layer(store, "bench-gsm8k", "bench-dolly", dolly, above, [])
        say(second.examination.render())
    own = comparison(first, "bench-gsm8k/loss")
    official = comparison(first, "bench-gsm8k.test/loss")
    row = {
        "rows": given.rows,
        "base_loss": round(own["before"], 4),
        "stack_loss": round(own["after"], 4),
        "ci_delta": [round(v, 4) for v in own["ci"]],
        "minutes": round(first.cost.seconds / 60, 2),
        "peak_gb": round(peak / 1e9, 2),
        "tokens_per_second": first.cost.tokens_per_second,
        "test": {k: official[k] for k in ("before", "after", "ci", "n")},
        "above_dolly": {
            c.exam: {"before": c.before, "after": c.after, "ci": c.ci, "p_worse": c.p_worse}
            for c in second.examination.comparisons
        },
        "dolly_minutes": round(second.cost.seconds / 60, 2),
        "gate_passed": second.examination.verdict.passed,
    }
    emit("gsm8k", row, keep=given.keep)


if __name__ == "__main__":
    main()
