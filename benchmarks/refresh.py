"""Replace layer 2 of 4, then bring the stack up to date: refreshing against retraining layers 2-4.

The stack is that of `benchmarks.contributors` (reused where the store has it). Layer 2 (dialogue)
is updated with new rows and the stack refreshed; beside it, layers 2, 3 and 4 are trained anew, the
second on its old and new rows. `cost_ratio`: seconds of the update and the refresh over those of
the retraining, training and carrying alone; `cost_ratio_with_exams` adds the examinations that
refresh needs (a retrained layer's gate is not counted). `exam_ratio`: the mean over the four exams
of (base - refreshed) / (base - retrained) losses.
"""

from benchmarks.common import BASE, Log, emit, home, parser
from benchmarks.contributors import LAYERS, loss, recipe, rows_file, stacked
from lamina.flows import learn, update
from lamina.flows.bases import ensure
from lamina.flows.refresh import refresh
from lamina.stack.resolve import resolve
from lamina.store.layout import Store

CHANGED = "dialogue"


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, data=True)
    arguments.add_argument("--quick", action="store_true", help="few rows, two steps a layer")
    arguments.add_argument("--share", type=float, default=1.0, help="share of the rows")
    given = arguments.parse_args()
    given.share = 0.05 if given.quick else given.share
    with home(given.home) as directory:
        store = Store.open(directory)
        ensure(store, BASE, Log())
        work = directory / "bench-data"
        work.mkdir(exist_ok=True)
        stacked(store, given, work, "on")
        top = f"four-on-{list(LAYERS)[-1]}"

        changes = {"steps": 2} if given.quick else {}
        new = rows_file(given.data, work, CHANGED, given.share / 2, skip=2)
        request = update.Request(
            stack=top,
            layer=f"four-on-{CHANGED}",
            data=[new],
            overrides=tuple(changes.items()),
            accept_regression="benchmark",
        )
        run = update.prepare(store, request, Log())
        if run is None:
            raise SystemExit("the update was made before: give a fresh --home")
        updated = learn.execute(store, run, Log())
        done = refresh(store, top, Log(), lambda: False, override="benchmark")

        again, on, retrained = {}, f"four-on-{next(iter(LAYERS))}", 0.0
        for kind in list(LAYERS)[1:]:
            data = [rows_file(given.data, work, kind, given.share)]
            data += [new] if kind == CHANGED else []
            name = f"four-again-{kind}"
            again[kind] = _trained(store, given, on, name, data)
            retrained += again[kind].cost.seconds
            on = name

        carried = sum(c.evidence.seconds for c in done.carried)
        examined = sum(c.evidence.examine_seconds for c in done.carried)
        spent = updated.cost.seconds + carried
        ratios = {}
        for index, kind in enumerate(LAYERS):
            exam_of = resolve(store, top).layers[index].digest
            of = f"@{exam_of.removeprefix('sha256:')}"
            base = loss(store, BASE, of)
            ratios[kind] = (base - loss(store, top, of)) / (base - loss(store, on, of))
        emit(
            "refresh",
            {
                "cost_ratio": round(spent / retrained, 4),
                "cost_ratio_with_exams": round((spent + examined) / retrained, 4),
                "exam_ratio": round(sum(ratios.values()) / len(ratios), 4),
                "exam_ratios": {kind: round(value, 4) for kind, value in ratios.items()},
                "update_seconds": updated.cost.seconds,
                "carried": [c.to_json() for c in done.carried],
                "retrain_seconds": round(retrained, 1),
                "share": given.share,
            },
            keep=given.keep,
        )


def _trained(store: Store, given, on: str, name: str, data: list[str]) -> learn.Learned:  # noqa: ANN001
    request = learn.Request(
        on=on, data=data, name=name, recipe=recipe(given), accept_regression="benchmark"
    )
    return learn.execute(store, learn.prepare(store, request, Log()), Log())


if __name__ == "__main__":
    main()
