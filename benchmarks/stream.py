"""A stream of facts that change: update period by period, against retraining and naive training.

Software releases in eleven periods (`stream_eol`). After each period three stacks are asked the
period's questions, in a wording that no training row has:

- `update`: `lamina update` with the period's rows;
- `retrain`: a layer trained from scratch on every fact as it is now, at the periods measured, for
  as many epochs as the first layer of all arms (`--epochs`: enough to learn the facts);
- `naive`: the same update without any old rows (continued training).

`new`: share right of facts that are new or changed. `kept`: share right of 150 facts that did not
change (of the products chosen). `stale`: share of changed facts answered as before the change.
Cost: processor seconds of training, period 0 included; `wall_ratio` by the clock on the wall,
`token_ratio` by tokens learned from (what is looked at without learning is in the seconds alone).
Forgetting: of the facts that a stack once answered right and that are still true at the end, the
share that it answers wrong at the end.
"""

import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common import BASE, Log, emit, home, parser, say
from lamina.core.recipe import Recipe
from lamina.data.example import Message
from lamina.exams.examinee import Prompt
from lamina.flows import learn, update
from lamina.flows.bases import ensure
from lamina.flows.examinee import StackExaminee
from lamina.flows.tag import tag
from lamina.stack.compile import compile_stack
from lamina.stack.resolve import resolve
from lamina.store.layout import Store

TRAIN, ASKED = "train_stream_eol.jsonl", "eval_stream_eol.jsonl"
ANSWER_TOKENS = 32
Row = dict[str, Any]


@dataclass
class Arm:
    """One way to keep up, with what it took and how it did."""

    name: str
    seconds: dict[int, float] = field(default_factory=dict)
    """Of the processor, in training."""
    wall: dict[int, float] = field(default_factory=dict)
    """The same on the wall: what the layer's cost says."""
    tokens: dict[int, int] = field(default_factory=dict)
    new: dict[int, float] = field(default_factory=dict)
    kept: dict[int, float] = field(default_factory=dict)
    stale: dict[int, float] = field(default_factory=dict)
    once_right: set[str] = field(default_factory=set)
    forgot: float = 0.0


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, data=True)
    arguments.add_argument("--quick", action="store_true", help="few products, two periods")
    arguments.add_argument("--products", type=int, default=4)
    arguments.add_argument("--periods", type=int, default=11)
    arguments.add_argument("--retrain-at", default="5,10", help="periods, or 'all'")
    arguments.add_argument("--epochs", type=float, default=10.0)
    arguments.add_argument("--update-epochs", type=float, default=4.0)
    arguments.add_argument("--lr", type=float, default=1e-3)
    arguments.add_argument("--batch-tokens", type=int, default=192)
    arguments.add_argument("--update-lr", type=float, default=1.5e-3)
    arguments.add_argument("--above", type=float, default=0.8)
    arguments.add_argument("--rehearsal", type=float, default=0.5)
    arguments.add_argument("--drift", type=float, default=0.0)
    arguments.add_argument("--known", type=float, default=0.0)
    arguments.add_argument("--retrain-known", type=float, default=0.0)
    arguments.add_argument("--arms", default="update,naive,retrain")
    given = arguments.parse_args()
    if given.quick:
        given.products, given.periods, given.retrain_at = 2, 2, "1"
        given.epochs = given.update_epochs = 1.0
    with home(given.home) as directory:
        store = Store.open(directory)
        ensure(store, BASE, Log())
        row = Stream(store, directory / "bench-data", given).run()
    emit("stream", row, keep=given.keep)


class Clock(Log):
    """Measures the processor seconds of the training between a run's last sentence before its
    first event and its last event; on a busy machine they tell more than the clock on the wall."""

    def __init__(self) -> None:
        self.cpu_seconds = 0.0
        self._said = time.process_time()
        self._trains = False

    def say(self, text: str) -> None:
        """Training starts after a sentence."""
        super().say(text)
        if not self._trains:
            self._said = time.process_time()

    def event(self, event: Any) -> None:
        """Training has started, or is done."""
        super().event(event)
        self._trains = True
        if event["event"] == "done":
            self.cpu_seconds = time.process_time() - self._said


class Stream:
    """The stream, cut to some products, and the arms that follow it."""

    def __init__(self, store: Store, work: Path, given: Any) -> None:
        self.store, self.work, self.given = store, work, given
        work.mkdir(exist_ok=True)
        self.started: tuple[str, Arm] | None = None
        learned, asked = _lines(given.data / TRAIN), _lines(given.data / ASKED)
        chosen = set(list(dict.fromkeys(_product(row) for row in learned))[: given.products])
        self.learned = [r for r in learned if _product(r) in chosen and r["period"] < given.periods]
        self.asked = [r for r in asked if _product(r) in chosen and r["period"] < given.periods]
        last = given.periods
        self.retrain_at = (
            set(range(last))
            if given.retrain_at == "all"
            else set(map(int, given.retrain_at.split(",")))
        )

    def run(self) -> dict[str, Any]:
        """Every arm through every period."""
        given = self.given
        wanted = given.arms.split(",")
        arms = {name: Arm(name) for name in wanted}
        for period in range(given.periods):
            for name, arm in arms.items():
                if name == "retrain":
                    if period in self.retrain_at:
                        self._retrain(arm, period)
                        self._ask(arm, f"stream-retrain-{period}", period)
                else:
                    self._update(arm, period)
                    self._ask(arm, f"stream-{name}", period)
                say(f"period {period} {name}: {_last(arm, period)}")
        for name, arm in arms.items():
            stack = f"stream-retrain-{max(arm.seconds)}" if name == "retrain" else f"stream-{name}"
            self._forgetting(arm, stack)
        return self._row(arms)

    # -- training --------------------------------------------------------------------------------

    def _recipe(self) -> Recipe:
        return Recipe(
            epochs=self.given.epochs, lr=self.given.lr, batch_tokens=self.given.batch_tokens,
            held_out=0.02, eval_rows=16, known=self.given.retrain_known,
            exams=("loss",), patience=None,
        )  # fmt: skip

    def _first(self, arm: Arm, name: str, rows: list[Row], period: int) -> None:
        request = learn.Request(
            on=BASE, data=[self._file(f"{name}.jsonl", rows)], name=name, recipe=self._recipe(),
            accept_regression="benchmark", again=True,
        )  # fmt: skip
        self._trained(arm, learn.prepare(self.store, request, Log()), period)

    def _retrain(self, arm: Arm, period: int) -> None:
        """From scratch, on the newest rows of every fact."""
        newest: dict[str, list[Row]] = {}
        for row in self._upto(self.learned, period):
            rows = newest.setdefault(row["fact"], [])
            if rows and rows[0]["period"] < row["period"]:
                rows.clear()
            rows.append(row)
        self._first(
            arm, f"stream-retrain-{period}", [r for rs in newest.values() for r in rs], period
        )

    def _update(self, arm: Arm, period: int) -> None:
        rows = [row for row in self.learned if row["period"] == period]
        name = f"stream-{arm.name}"
        if period == 0:
            self._start(arm, name, rows)
            return
        given = self.given
        changes = {
            "epochs": given.update_epochs,
            "lr": given.update_lr,
            "above": given.above,
            "rehearsal": 0.0 if arm.name == "naive" else given.rehearsal,
            "drift": 0.0 if arm.name == "naive" else given.drift,
            "known": 0.0 if arm.name == "naive" else given.known,
        }
        request = update.Request(
            stack=name, data=[self._file(f"{name}-{period}.jsonl", rows)],
            overrides=tuple(changes.items()), accept_regression="benchmark",
        )  # fmt: skip
        run = update.prepare(self.store, request, Log())
        if run is not None:
            self._trained(arm, run, period)

    def _start(self, arm: Arm, name: str, rows: list[Row]) -> None:
        """The first period is one training for all that are updated later."""
        if self.started is None:
            self._first(arm, name, rows, 0)
            self.started = name, arm
        else:
            first, other = self.started
            tag(self.store, f"{first}:v1", name, Log(), override="benchmark", author=None)
            for kind in ("seconds", "wall", "tokens"):
                getattr(arm, kind)[0] = getattr(other, kind)[0]

    def _trained(self, arm: Arm, run: Any, period: int) -> None:
        clock = Clock()
        cost = learn.execute(self.store, run, clock).cost
        arm.wall[period], arm.tokens[period] = cost.seconds, cost.tokens
        arm.seconds[period] = clock.cpu_seconds

    def _file(self, name: str, rows: list[Row]) -> str:
        path = self.work / name
        path.write_text("".join(json.dumps({"messages": r["messages"]}) + "\n" for r in rows))
        return str(path)

    # -- asking ----------------------------------------------------------------------------------

    def _ask(self, arm: Arm, name: str, period: int) -> None:
        rows = [row for row in self.asked if row["period"] == period]
        right, stale = self._right(name, rows)
        fresh = [i for i, row in enumerate(rows) if row["status"] != "unchanged"]
        same = [i for i, row in enumerate(rows) if row["status"] == "unchanged"]
        changed = [i for i, row in enumerate(rows) if row["status"] == "changed"]
        arm.new[period] = mean(right[i] for i in fresh) if fresh else 1.0
        if same:
            arm.kept[period] = mean(right[i] for i in same)
        if changed:
            arm.stale[period] = mean(stale[i] for i in changed)
        arm.once_right |= {rows[i]["fact"] + rows[i]["value"] for i in fresh if right[i]}

    def _forgetting(self, arm: Arm, name: str) -> None:
        """Of what was once answered right and is still true, the share now answered wrong."""
        newest = {row["fact"]: row for row in self.asked if row["status"] != "unchanged"}
        rows = [r for r in newest.values() if r["fact"] + r["value"] in arm.once_right]
        right, _ = self._right(name, rows)
        arm.forgot = 1 - mean(right) if right else 0.0

    def _right(self, name: str, rows: list[Row]) -> tuple[list[bool], list[bool]]:
        """Whether each question is answered right, and whether as before it changed."""
        compiled = compile_stack(self.store, resolve(self.store, name))
        prompts = [Prompt((Message(role="user", content=row["question"]),)) for row in rows]
        answers = StackExaminee(compiled).answer(prompts, ANSWER_TOKENS, lambda done, total: None)
        right = [
            any(_says(a, t) for t in row["accept"]) for a, row in zip(answers, rows, strict=True)
        ]
        stale = [
            bool(row.get("previous")) and not ok and _says(answer, row["previous"])
            for answer, row, ok in zip(answers, rows, right, strict=True)
        ]
        return right, stale

    # -- the row ---------------------------------------------------------------------------------

    def _row(self, arms: dict[str, Arm]) -> dict[str, Any]:
        given = self.given
        row: dict[str, Any] = {
            "products": given.products,
            "periods": given.periods,
            "facts": len({r["fact"] for r in self.learned}),
            "rows": len(self.learned),
            "epochs": given.epochs,
            "update_epochs": given.update_epochs,
            "lr": given.lr,
            "update_lr": given.update_lr,
            "above": given.above,
            "batch_tokens": given.batch_tokens,
            "rehearsal": given.rehearsal,
            "drift": given.drift,
            "known": given.known,
            "retrain_known": given.retrain_known,
            "retrained_at": sorted(self.retrain_at),
        }
        main_arm, retrain, naive = (arms.get(n) for n in ("update", "retrain", "naive"))
        if main_arm and retrain:
            compared = sorted(set(retrain.new) & set(main_arm.new) - {0})
            row["new_vs_retrain"] = _ratio(main_arm.new, retrain.new, compared)
            row["kept_vs_retrain"] = _ratio(main_arm.kept, retrain.kept, compared)
            for name, kind in (("cost_ratio", "seconds"), ("wall_ratio", "wall"),
                               ("token_ratio", "tokens")):  # fmt: skip
                ours, theirs = getattr(main_arm, kind), getattr(retrain, kind)
                row[name] = round(sum(ours.values()) / self._retraining(theirs), 4)
            row["retrain_seconds_estimated"] = sorted(set(range(given.periods)) - self.retrain_at)
        if main_arm and naive:
            row["forgetting_vs_naive"] = (
                round(main_arm.forgot / naive.forgot, 3) if naive.forgot else None
            )
        row["arms"] = {
            name: {
                "new": _rounded(arm.new),
                "kept": _rounded(arm.kept),
                "stale": _rounded(arm.stale),
                "forgot": round(arm.forgot, 4),
                "seconds": _rounded(arm.seconds, 1),
                "wall": _rounded(arm.wall, 1),
                "tokens": arm.tokens,
            }
            for name, arm in arms.items()
        }
        return row

    def _retraining(self, measured: dict[int, float]) -> float:
        """Cost of retraining at every period; where not measured, from the number of rows."""
        facts: dict[int, int] = {}
        for period in range(self.given.periods):
            facts[period] = len({r["fact"] for r in self._upto(self.learned, period)})
        a_fact = sum(measured.values()) / sum(facts[p] for p in measured)
        return sum(measured.get(p, a_fact * facts[p]) for p in range(self.given.periods))

    @staticmethod
    def _upto(rows: list[Row], period: int) -> list[Row]:
        return [row for row in rows if row["period"] <= period]


def _lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _product(row: Row) -> str:
    return str(row["fact"].partition("|")[0])


def _says(answer: str, wanted: str) -> bool:
    """Whether an answer holds a value, and not as a part of a longer one."""
    return re.search(rf"(?<![\w.]){re.escape(wanted)}(?!\w|\.\d)", answer) is not None


def _ratio(ours: dict[int, float], theirs: dict[int, float], periods: list[int]) -> float | None:
    both = [p for p in periods if p in ours and p in theirs]
    below = sum(theirs[p] for p in both)
    return round(sum(ours[p] for p in both) / below, 4) if below else None


def _rounded(values: dict[int, float], digits: int = 4) -> dict[int, float]:
    return {key: round(value, digits) for key, value in values.items()}


def _last(arm: Arm, period: int) -> str:
    parts = {k: getattr(arm, k).get(period) for k in ("new", "kept", "stale", "seconds")}
    return ", ".join(f"{k} {v:.3f}" for k, v in parts.items() if v is not None)


if __name__ == "__main__":
    main()
