"""Many layers at once: a file of jobs, each trained, examined and named as `lamina train` does it.

Jobs are independent: one that fails never stops the others, and none is lost. What is done is known
by its work (`flows.work`) and what had begun goes on from its checkpoint, so a farm that was
stopped, or killed, goes on when it is asked again. Layers are those that `lamina train` makes with
as many threads, to the digest.
"""

import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.core.errors import (
    CheckError,
    LaminaError,
    StoreBusyError,
    TrainInterrupted,
    UsageError,
)
from lamina.core.names import Name
from lamina.core.rates import Rates
from lamina.core.recipe import Recipe
from lamina.core.report import Reporter, Silent
from lamina.core.values import Value
from lamina.fleet.cluster import cluster
from lamina.fleet.pool import Done, Piece, spread
from lamina.flows import learn, runs
from lamina.flows.elsewhere import Notes, store_of, told
from lamina.store.layout import Store

STOP, TICKET = "stop", ".run"
"""Word that all are to stop; and the end of the name under which a job says which run it trains."""

WATCHED = 100
"""Jobs whose line is kept up to date while they run: nobody reads more, and each is a file."""


class Job(Value):
    """One layer to train; what it leaves out, `[defaults]` say."""

    name: str
    """Of the stack that comes out."""
    on: str
    data: tuple[str, ...]
    """Files; relative to the file of jobs."""
    recipe: Recipe = Recipe()
    exam: tuple[str, ...] = ()
    format: str | None = None
    skip_bad: bool = False
    private: bool = False
    licence: str | None = None
    author: str | None = None
    accept_regression: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a job."""

    name: str
    state: str
    """named, refused (by the gate), failed or stopped."""
    result: str
    """`name:vN`, or why there is none."""
    layer: str | None
    tries: int
    seconds: float


def read(text: Mapping[str, Any], folder: Path, source: str) -> tuple[Job, ...]:
    """The jobs of a table with `[defaults]` and `[[job]]`. Raises UsageError with every fault."""
    unknown = sorted(set(text) - {"defaults", "job"})
    given, defaults = text.get("job"), text.get("defaults", {})
    if unknown or not isinstance(given, list) or not given or not isinstance(defaults, dict):
        raise UsageError(
            f"{source} is no file of jobs",
            faults=[f"unknown table {name!r}" for name in unknown],
            hint='a job: [[job]] name = "…", on = "…", data = ["…"]; see: lamina farm --help',
        )
    jobs, faults = [], []
    for number, fields in enumerate(given, 1):
        try:
            jobs.append(_job(defaults, fields, folder, f"job {number}"))
        except LaminaError as error:
            faults += [f"job {number}: {fault}" for fault in error.faults or [error.message]]
    twice = [name for name, count in Counter(job.name for job in jobs).items() if count > 1]
    faults += [f"{name!r} is the name of several jobs" for name in twice]
    if faults:
        raise UsageError(f"{source} cannot be used", faults=faults)
    return tuple(jobs)


def _job(defaults: Mapping[str, Any], fields: Any, folder: Path, source: str) -> Job:
    if not isinstance(fields, dict):
        raise UsageError("it is no table")
    own = {"recipe": {**defaults.get("recipe", {}), **fields.get("recipe", {})}}
    job = Job.parse({**defaults, **fields, **own}, source)
    Name(job.name)
    exam = tuple(str(folder / each) for each in job.exam)
    return job.model_copy(update={"data": located(job.data, folder), "exam": exam})


def located(data: Sequence[str], folder: Path) -> tuple[str, ...]:
    """Files of rows as they lie in `folder`; what lies nowhere there stays as it is (`hf:…`)."""
    return tuple(str(folder / each) if (folder / each).exists() else each for each in data)


def request_of(job: Job, rates: Any, beside: Sequence[str] = ()) -> learn.Request:
    """What `lamina train` would be asked; `rates` as their dump, None for none."""
    fields = dict(job)
    return learn.Request(
        exam_files=fields.pop("exam"),
        rates=Rates.parse(rates, "the rates") if rates else None,
        beside=beside,
        **fields,
    )


def farm(
    store: Store,
    jobs: tuple[Job, ...],
    reporter: Reporter,
    should_stop: Callable[[], bool],
    *,
    address: str | None = None,
    processors: int = 1,
    rates: Rates | None = None,
) -> list[Outcome]:
    """Train every job on a Ray cluster whose machines share the store.

    The events of kind `job` have `name`, `text` and `done`: a line for each. Raises UsageError,
    FleetError; TrainInterrupted, once all that ran have saved, where it was asked to stop.
    """
    notes = Notes.new(store, runs.new_id("farm"))
    seen: dict[str, str] = {}

    def tell(name: str, text: str, *, done: bool = False) -> None:
        if seen.get(name) != text:
            seen[name] = text
            reporter.event({"event": "job", "name": name, "text": text, "done": done})

    def watch() -> None:
        if should_stop():
            notes.leave(STOP)
        for ticket in itertools.islice(notes.folder.glob(f"*{TICKET}"), WATCHED):
            if (line := _line(store, ticket)) is not None:
                tell(ticket.name.removesuffix(TICKET), line)

    pieces = [
        Piece(
            job.name,
            told(store)
            | {
                "notes": str(notes.folder),
                "job": job.model_dump(mode="json"),
                "rates": rates.model_dump(mode="json") if rates else None,
            },
        )
        for job in jobs
    ]
    found = {}
    try:
        with cluster(address):
            for done in spread(_work, pieces, watch, processors=processors):
                outcome = found[done.name] = _outcome(done)
                notes.take_back(f"{done.name}{TICKET}")
                tell(done.name, f"{outcome.state}: {outcome.result}", done=True)
    finally:
        shutil.rmtree(notes.folder, ignore_errors=True)
    outcomes = [found[job.name] for job in jobs]
    if left := sum(outcome.state == "stopped" for outcome in outcomes):
        raise TrainInterrupted(
            f"stopped with {len(outcomes) - left} of {len(outcomes)} jobs done; nothing is lost",
            hint="the same command goes on",
        )
    return outcomes


def _outcome(done: Done) -> Outcome:
    value = done.value or {"state": "failed", "result": done.fault, "layer": None}
    return Outcome(done.name, **value, tries=done.tries, seconds=round(done.seconds, 2))


def _line(store: Store, ticket: Path) -> str | None:
    """Where a job that runs has come to."""
    try:
        run = runs.Run(store.runs_dir / ticket.read_text(encoding="utf-8"))
        said, _ = run.said(-4096)
    except (OSError, ValueError):  # not begun, or just over
        return None
    steps = [event for event in said if event["event"] == "step"]
    if not steps:
        return "loading"
    last = steps[-1]
    return f"step {last['step']}/{last['steps'] or '?'} · loss {last['loss'] or float('nan'):.4f}"


def _work(given: dict[str, Any]) -> dict[str, Any]:
    """One job, in a process that Ray has begun."""
    notes = Notes(Path(given["notes"]))
    if notes.read(STOP) is not None:
        return {"state": "stopped", "result": "not begun", "layer": None}
    job = Job.parse(given["job"], "the job")
    request = request_of(job, given["rates"])
    run = None
    try:
        store = store_of(given, notes.folder)
        run = learn.prepare(store, request, Silent(), go_on=True)
        notes.leave(f"{job.name}{TICKET}", run.id)
        learned = learn.execute(store, run, Silent(), (notes.folder / STOP).exists)
    except TrainInterrupted as error:
        return {"state": "stopped", "result": error.message, "layer": None}
    except StoreBusyError:
        raise  # whoever held it may be dead by the next try
    except LaminaError as error:
        result = None if run is None else run.result
        return {
            "state": "refused" if isinstance(error, CheckError) else "failed",
            "result": error.render(),
            "layer": result.layer if result else None,
        }
    return {"state": "named", "result": str(learned.name), "layer": learned.layer.digest}
