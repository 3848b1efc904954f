"""A run that several workers train together, on a Ray cluster whose machines share the store.

Every worker does what `flows.job` does; worker 0 writes: checkpoints, events, the layer. The one
who waits here passes its events on, and its wish to stop. What is on disk between the two is a
file in the run's folder that says stop, and one that says what went wrong.
"""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lamina.core.errors as errors
from lamina.core.errors import LaminaError, TrainInterrupted, UsageError
from lamina.core.report import Reporter, Silent
from lamina.core.version import __version__
from lamina.fleet.cluster import cluster
from lamina.fleet.crew import Size, together
from lamina.flows import runs
from lamina.stack.resolve import of_config
from lamina.store.layout import Store

STOP, FAULT = "stop", "fault.json"


def train_together(
    store: Store,
    run: runs.Run,
    reporter: Reporter,
    should_stop: Callable[[], bool],
    size: Size,
    address: str | None,
) -> runs.RunResult:
    """Train a run, which the caller has locked, in several workers: what it made, unnamed.

    Killed workers are begun again from the last checkpoint, up to `size.deaths` of them. Raises
    what training alone raises, FleetError, UsageError where the cluster is too small.
    """
    stop, fault = run.directory / STOP, run.directory / FAULT
    for left in (stop, fault):
        left.unlink(missing_ok=True)
    notes = store.cache_dir / "ray" / run.id
    notes.mkdir(parents=True, exist_ok=True)
    seen = [run.said()[1] if (run.directory / runs.EVENTS).exists() else 0]

    def watch() -> None:
        if should_stop():
            stop.touch()
        found, seen[0] = run.said(seen[0])
        for event in found:
            reporter.event(event)

    given = {"store": str(store.root), "run": run.id, "version": __version__}
    try:
        with cluster(address) as ray:
            machines = sum(node["Alive"] for node in ray.nodes())
            reporter.say(
                f"{size.workers} workers on {machines} machine{'s' if machines > 1 else ''}"
            )
            ended = together(_work, given, size, notes, watch)
        watch()
    finally:
        shutil.rmtree(notes, ignore_errors=True)
    if fault.exists():
        raise _read(fault)
    if ended != "landed":
        raise TrainInterrupted(
            "stopped; nothing is lost",
            hint=f"go on with: lamina train --resume {run.id} --workers {size.workers}",
        )
    result = run.result
    assert result is not None
    return result


def _work(given: dict[str, Any]) -> str:
    """One worker, in a process that Ray has begun."""
    from lamina.flows.job import train_in_crew
    from lamina.train.crew import Group

    store = _store(given)
    run = runs.Run(store.runs_dir / given["run"])
    stop, fault = run.directory / STOP, run.directory / FAULT
    if fault.exists():  # begun again after somebody said why it cannot be done
        return "fault"
    if run.result is not None:  # begun again after the end
        return "landed"
    crew = Group()
    try:
        spec = run.spec
        beneath = of_config(store, spec.stack, label=spec.on, force=spec.force)
        made = train_in_crew(store, run, spec, beneath, Silent(), stop.exists, crew)
        if made is not None:
            layer, stack = made
            run.finish(runs.RunResult(layer=layer.digest, stack=stack.digest, name=None))
    except TrainInterrupted:
        return "stopped"
    except LaminaError as error:
        _write(fault, error)
        raise  # the others wait for this one: they go down with it
    return "landed"


def _store(given: dict[str, Any]) -> Store:
    """The store, as this machine sees it. Raises UsageError where it does not."""
    root = Path(given["store"])
    if not (root / "runs" / given["run"]).is_dir():
        raise UsageError(
            f"this machine does not see the run in {root}",
            hint="workers share the store: a folder that all machines mount at the same place",
        )
    if given["version"] != __version__:
        raise UsageError(
            f"this machine has lamina {__version__}, and {given['version']} was asked",
            hint="install the same version on all machines",
        )
    return Store.open(root)


def _write(path: Path, error: LaminaError) -> None:
    said = {
        "kind": type(error).__name__,
        "message": error.message,
        "faults": error.faults,
        "hint": error.hint,
    }
    with contextlib.suppress(OSError):
        path.write_text(json.dumps(said), encoding="utf-8")


def _read(path: Path) -> LaminaError:
    said = json.loads(path.read_text(encoding="utf-8"))
    kind = getattr(errors, said["kind"], LaminaError)
    error: LaminaError = kind(said["message"], faults=said["faults"], hint=said["hint"])
    path.unlink()
    return error
