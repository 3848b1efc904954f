"""Many trainings of one stack with other ranks, rates or data; the best by exam gets the name.

A trial is a run like any other: it is known by its work (`flows.work`), so what is done is kept,
what had begun goes on from its checkpoint, and the same command goes on after a stop or a kill.
Trials whose held-out loss lags behind are ended early (`fleet.search`); what comes to its end lands
as a layer with its exam, and only the gate and the exams say which is best.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lamina.core.errors import (
    CheckError,
    LaminaError,
    StoreBusyError,
    TrainInterrupted,
)
from lamina.core.files import atomic_write
from lamina.core.rates import Rates
from lamina.core.recipe import ScorerName
from lamina.core.report import Reporter, Silent
from lamina.core.scores import Score
from lamina.exams.report import comparisons, score_of
from lamina.exams.runner import ExamResult
from lamina.fleet.cluster import cluster
from lamina.fleet.search import Seen, Tell, search
from lamina.flows import learn, runs
from lamina.flows.elsewhere import Notes, store_of, told
from lamina.flows.examine import examine_for_gate, sit
from lamina.flows.farm import Job, request_of
from lamina.flows.naming import new_name
from lamina.flows.questions import carried
from lamina.flows.trials import Sweep, job_of, mixtures, trials_of
from lamina.stack.resolve import ResolvedStack, of_descriptor
from lamina.store.layout import Store

STOP = "stop"
TOLD_APART = 0.05
"""One-sided p-value at which the best is better than another trial."""
State = Literal["landed", "refused", "ended early", "failed", "stopped"]


@dataclass(frozen=True)
class Trial:
    """What came of one combination."""

    number: int
    values: Mapping[str, Any]
    state: State
    percent: int = 0
    """Of its training."""
    loss: float | None = None
    """On some held-out rows, when last looked at in training; the exam asks all."""
    run: str | None = None
    layer: str | None = None
    stack: str | None = None
    scores: tuple[Score, ...] = ()
    """Of its own exam."""
    fault: str | None = None

    @property
    def text(self) -> str:
        """Its values, for people."""
        return text_of(self.values)

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        scores = [score.model_dump(mode="json") for score in self.scores]
        return {**self.__dict__, "values": dict(self.values), "scores": scores}


def text_of(values: Mapping[str, Any]) -> str:
    """A combination, for people."""
    return " · ".join(f"{key} {_short(value)}" for key, value in values.items())


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(Path(str(each)).stem for each in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Swept:
    """What came of a sweep."""

    trials: tuple[Trial, ...]
    """The best first."""
    learned: learn.Learned
    """The best, under its name."""
    alike: tuple[int, ...]
    """Numbers of trials whose exam does not tell them from the best."""

    @property
    def best(self) -> Trial:
        """The one that got the name."""
        return self.trials[0]


# -- the sweep -------------------------------------------------------------------------------------


def sweep(
    store: Store,
    asked: Sweep,
    reporter: Reporter,
    should_stop: Callable[[], bool],
    *,
    address: str | None = None,
    processors: int = 1,
    rates: Rates | None = None,
) -> Swept:
    """Try every combination on a Ray cluster whose machines share the store, and name the best.

    The events of kind `job` are a line for each trial. Raises UsageError, FleetError; GateError
    where no trial passes the gate (all layers are kept); CheckError where none landed;
    TrainInterrupted, once all that ran have saved, where it was asked to stop.
    """
    new_name(store, asked.name)
    combinations = trials_of(asked)
    records = _Records(store, asked)
    notes = Notes.new(store, runs.new_id("sweep"))

    def watch() -> bool:
        if stopping := should_stop():
            notes.leave(STOP)
        return stopping

    given = told(store) | {
        "notes": str(notes.folder),
        "records": str(records.folder),
        "rates": rates.model_dump(mode="json") if rates else None,
        "beside": sorted({file for mix in mixtures(asked) for file in mix}),
    }
    jobs = [job_of(asked, values).model_dump(mode="json") for values in combinations]
    pieces = [{"job": job, "number": number} for number, job in enumerate(jobs)]
    found: dict[int, Trial] = {}
    try:
        with cluster(address):
            for seen in search(
                _work, given, pieces, notes.folder / "ray", watch, processors=processors
            ):
                trial = _trial(seen, combinations[seen.number])
                if seen.state == "ended early":
                    records.leave(notes.read(_ticket(seen.number)), seen)
                if seen.state != "running":
                    found[seen.number] = trial
                _tell(reporter, trial, seen)
    finally:
        shutil.rmtree(notes.folder, ignore_errors=True)
    if len(found) < len(combinations) or any(t.state == "stopped" for t in found.values()):
        over = sum(trial.state != "stopped" for trial in found.values())
        raise TrainInterrupted(
            f"stopped with {over} of {len(combinations)} trials over; nothing is lost",
            hint="the same command goes on",
        )
    return _named(store, asked, list(found.values()), reporter)


def _ticket(number: int) -> str:
    """Under what name a trial says which run it trains."""
    return f"trial-{number}"


def _trial(seen: Seen, values: Mapping[str, Any]) -> Trial:
    """A trial as it was last heard of."""
    if seen.state == "over":
        said = dict(seen.value)
        scores = tuple(Score.model_validate(each) for each in said.pop("scores", ()))
        return Trial(seen.number, values, scores=scores, **said)
    state: State = "failed" if seen.state == "failed" else "ended early"
    return Trial(seen.number, values, state, seen.percent, seen.measure, fault=seen.fault)


def _tell(reporter: Reporter, trial: Trial, seen: Seen) -> None:
    over = seen.state != "running"
    said = [] if trial.loss is None else [f"held-out loss {trial.loss:.4f}"]
    if not over:
        said.insert(0, f"{seen.percent}%")
    elif trial.scores:
        said = [f"{score.exam} {score.value:.4g}" for score in trial.scores]
    if over:
        at = f" at {trial.percent}%" if trial.state == "ended early" else ""
        said.insert(0, f"{trial.state}{at}" + (f": {trial.fault}" if trial.fault else ""))
    name = f"trial {trial.number} ({trial.text})"
    reporter.event({"event": "job", "name": name, "text": " · ".join(said), "done": over})


class _Records:
    """Trials that were ended early, so that the same sweep does not go on with them."""

    def __init__(self, store: Store, asked: Sweep) -> None:
        self._store = store
        self.folder = store.cache_dir / "sweeps" / asked.content_digest().removeprefix("sha256:")

    def leave(self, run: str | None, seen: Seen) -> None:
        """Record that the run of this id was ended early."""
        if run is None or (key := runs.Run(self._store.runs_dir / run).spec.key) is None:
            return
        said = {"percent": seen.percent, "run": run}
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_write(_record(self.folder, key), json.dumps(said).encode())


def _record(folder: Path, key: str) -> Path:
    return folder / f"{key.removeprefix('sha256:')}.json"


# -- one trial, in a process that Ray has begun ----------------------------------------------------


def _work(given: dict[str, Any], piece: dict[str, Any], tell: Tell) -> dict[str, Any]:
    notes = Notes(Path(given["notes"]))
    if notes.read(STOP) is not None:
        return {"state": "stopped"}
    job, run = Job.parse(piece["job"], "the trial"), None
    try:
        store = store_of(given, notes.folder)
        run = learn.prepare(
            store, request_of(job, given["rates"], given["beside"]), Silent(), go_on=True
        )
        notes.leave(_ticket(piece["number"]), run.id)
        teller = _Teller(tell, run)
        if run.spec.key is not None and _record(Path(given["records"]), run.spec.key).exists():
            said = {"percent": teller.percent, "loss": teller.loss}
            return {"state": "ended early", "run": run.id, **said}
        layer, stack = learn.landed(store, run, teller, (notes.folder / STOP).exists)
        made = {"layer": layer.digest, "stack": stack.digest}
        said = {"percent": 100, "loss": teller.loss}
        return {"run": run.id, **made, **said, **_examined(store, stack, job)}
    except TrainInterrupted:
        return {"state": "stopped", "run": run.id if run else None}
    except StoreBusyError:
        raise  # whoever held it may be dead by the next try
    except LaminaError as error:
        return {"state": "failed", "run": run.id if run else None, "fault": error.render()}


class _Teller(Silent):
    """Tells the held-out losses of a run, and how far it has come.

    What was said before the run went on is known and not told again: who was let go on once is not
    judged again beside others, in whatever order they come now.
    """

    def __init__(self, tell: Tell, run: runs.Run) -> None:
        self._tell: Tell | None = None
        self._told, self._steps = -1, None
        self.percent = 0
        self.loss: float | None = None
        for event in run.events():
            self.event(event)
        self._tell = tell

    def event(self, event: Mapping[str, Any]) -> None:
        """Of the run's events."""
        if event["event"] in ("step", "planned"):
            self._steps = event["steps"]
        if event["event"] != "eval" or event["step"] <= self._told:
            return
        self._told, self.loss = event["step"], event["loss"]
        if self._steps:  # unknown at first where minutes are given
            self.percent = min(100 * event["step"] // self._steps, 100)
        if self._tell is not None:
            self._tell(self.percent, math.inf if self.loss is None else self.loss)


def _examined(store: Store, stack: ResolvedStack, job: Job) -> dict[str, Any]:
    """What the gate would say of a trial, and the scores of its own exam."""
    found = examine_for_gate(store, stack, None, job.name, Silent())
    own = {exam.key for exam in carried(store, stack.layers[-1:])}
    scores = [score_of(result) for result in found.results if result.exam.key in own]
    refused = not found.verdict.passed
    return {
        "state": "refused" if refused else "landed",
        "fault": "; ".join(found.verdict.reasons) if refused else None,
        "scores": [score.model_dump(mode="json") for score in scores],
    }


# -- the best --------------------------------------------------------------------------------------


def _named(store: Store, asked: Sweep, trials: list[Trial], reporter: Reporter) -> Swept:
    """The trials in order, the best of them under the sweep's name."""
    ordered = in_order(trials, asked.choose_by)
    best = ordered[0]
    if not best.scores:
        raise CheckError(
            f"no trial of {asked.name} came to a layer with an exam",
            faults=[f"trial {t.number} ({t.text}) {t.state}: {t.fault}" for t in ordered[:20]],
            hint="see: lamina runs; an exam needs held-out rows, or --exam files",
        )
    assert best.run is not None
    reporter.say(f"the best is trial {best.number}: {best.text}")
    learned = learn.execute(store, runs.find(store, best.run), reporter)
    return Swept(tuple(ordered), learned, _alike(store, ordered, asked.choose_by))


def in_order(trials: list[Trial], choose_by: ScorerName | None = None) -> list[Trial]:
    """The best first: what passed the gate, then by exam; what has no exam comes last."""

    def place(trial: Trial) -> tuple[Any, ...]:
        if not trial.scores:
            lost = math.inf if trial.loss is None else trial.loss
            return (2, 0, -trial.percent, lost, trial.number)
        values = [-s.value if s.higher_is_better else s.value for s in _judges(trial, choose_by)]
        return (0 if trial.state == "landed" else 1, *values, trial.number)

    return sorted(trials, key=place)


def _judges(trial: Trial, choose_by: ScorerName | None) -> list[Score]:
    """A trial's scores, in the order in which they decide."""

    def weight(score: Score) -> tuple[bool, bool]:
        scorer = score.exam.rpartition("/")[2]
        return scorer != choose_by, scorer == "loss"

    return sorted(trial.scores, key=weight)


def _alike(store: Store, ordered: list[Trial], choose_by: ScorerName | None) -> tuple[int, ...]:
    """Which trials the exam does not tell from the best, question by question."""
    key = _judges(ordered[0], choose_by)[0].exam_digest, _judges(ordered[0], choose_by)[0].exam
    best, *others = (
        (trial.number, _result(store, trial, key)) for trial in ordered if trial.scores
    )
    alike = []
    for number, result in others:
        found = comparisons(result, best[1])
        if not found or found[0].p_better > TOLD_APART:
            alike.append(number)
    return tuple(alike)


def _result(store: Store, trial: Trial, key: tuple[str, str]) -> list[ExamResult]:
    """What a trial answered in one exam, which is on record."""
    assert trial.stack is not None
    stack = of_descriptor(store, store.describe(trial.stack), label=trial.text, force=True)
    exams = [exam for exam in carried(store, stack.layers[-1:]) if (exam.digest, exam.name) == key]
    return sit(store, stack, exams, Silent())
