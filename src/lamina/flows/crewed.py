"""A run that several workers train together, on a Ray cluster whose machines share the store.

Every worker does what `flows.job` does; worker 0 writes: checkpoints, events, the layer. The one
who waits here passes its events on, and its wish to stop; workers say what went wrong.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lamina.core.errors import LaminaError, TrainInterrupted
from lamina.core.report import Reporter, Silent
from lamina.fleet.cluster import cluster
from lamina.fleet.crew import Size, together
from lamina.flows import runs
from lamina.flows.elsewhere import Notes, error_of, store_of, text_of, told
from lamina.stack.resolve import of_config
from lamina.store.layout import Store

STOP, FAULT = "stop", "fault"


def train_together(
    store: Store,
    run: runs.Run,
    reporter: Reporter,
    should_stop: Callable[[], bool],
    size: Size,
    address: str | None,
) -> None:
    """Train a run, which the caller has locked, in several workers; nothing is named yet.

    Killed workers are begun again from the last checkpoint, up to `size.deaths` of them. Raises
    what training alone raises, FleetError, UsageError where the cluster is too small.
    """
    notes = Notes.new(store, f"crew-{run.id}")
    for left in (STOP, FAULT):
        notes.take_back(left)
    events = run.directory / runs.EVENTS
    seen = [events.stat().st_size if events.exists() else 0]

    def watch() -> None:
        if should_stop():
            notes.leave(STOP)
        found, seen[0] = run.said(seen[0])
        for event in found:
            reporter.event(event)

    given = told(store) | {"run": run.id, "notes": str(notes.folder)}
    try:
        with cluster(address) as ray:
            machines = sum(node["Alive"] for node in ray.nodes())
            reporter.say(
                f"{size.workers} workers on {machines} machine{'s' if machines > 1 else ''}"
            )
            try:
                ended = together(_work, given, size, notes.folder / "ray", watch)
            except LaminaError:
                if (fault := notes.read(FAULT)) is not None:
                    raise error_of(fault) from None
                raise
        watch()
        fault = notes.read(FAULT)
    finally:
        shutil.rmtree(notes.folder, ignore_errors=True)
    if fault is not None:
        raise error_of(fault)
    if ended != "landed":
        raise TrainInterrupted(
            "stopped; nothing is lost",
            hint=f"go on with: lamina train --resume {run.id} --workers {size.workers}",
        )


def _work(given: dict[str, Any]) -> str:
    """One worker, in a process that Ray has begun."""
    notes = Notes(Path(given["notes"]))
    if notes.read(FAULT) is not None:  # begun again after somebody said why it cannot be done
        return "fault"
    try:
        return _trained(given, notes)
    except TrainInterrupted:
        return "stopped"
    except LaminaError as error:
        notes.leave(FAULT, text_of(error))
        raise  # the others wait for this one: they go down with it


def _trained(given: dict[str, Any], notes: Notes) -> str:
    from lamina.flows.job import train_in_crew
    from lamina.train.crew import Group

    store = store_of(given, Path(given["store"]) / "runs" / given["run"])
    run = runs.Run(store.runs_dir / given["run"])
    if run.result is not None:  # begun again after the end
        return "landed"
    spec = run.spec
    beneath = of_config(store, spec.stack, label=spec.on, force=spec.force)
    asked = notes.folder / STOP
    made = train_in_crew(store, run, spec, beneath, Silent(), asked.exists, Group())
    if made is not None:
        layer, stack = made
        run.finish(runs.RunResult(layer=layer.digest, stack=stack.digest, name=None))
    return "landed"
