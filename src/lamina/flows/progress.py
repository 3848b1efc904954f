"""How far training runs are: what the record of each says of its state, speed and time left.

Reads records only and takes no lock: looking at a run must never be in a training's way. So
whether a run is at work is told by how long ago it last said something.
"""

import datetime
from collections.abc import Sequence
from typing import Any, Literal

from lamina.flows.runs import Run, all_runs
from lamina.store.layout import Store

State = Literal["starting", "training", "quiet", "stopped", "landing", "not named", "finished"]
"""'quiet': nothing heard for too long, so it was likely killed. 'stopped': on request, to be
resumed. 'landing': trained, being stored and examined. 'not named': trained, the gate said no."""
QUIET_SECONDS = 180.0
"""Silence after which a run no longer counts as at work, unless its steps take long."""
QUIET_STEPS = 10
"""Steps that a run may be silent for; an evaluation takes several steps' time."""
TAIL_BYTES = 1 << 14
"""Enough of a record's end to hold a few dozen events."""


def progress(store: Store, *, newest: int = 200, at: float | None = None) -> list[dict[str, Any]]:
    """The newest runs, newest first. `at`: seconds since the epoch; now by default."""
    found = all_runs(store)[::-1][:newest]
    return [progress_of(run, at=at) for run in found]


def progress_of(run: Run, *, at: float | None = None) -> dict[str, Any]:
    """One run, for --json and pages. Seconds, except for `minutes_left`."""
    when = datetime.datetime.now(datetime.UTC).timestamp() if at is None else at
    spec, result = run.spec, run.result
    events, _ = run.said(-TAIL_BYTES)
    step = _last(events, "step")
    evaluated = _last(events, "eval")
    done = _last(events, "done")
    steps = step.get("steps") or _last(events, "planned").get("steps")
    reached = step.get("step") or 0
    heard = events[-1].get("time") if events else None
    named = result.name if result else None
    if run.finished:
        state: State = "finished"
    elif result is not None:
        state = "not named"
    else:
        state = _state(events, step, created=spec.created, when=when)
    left = None
    if state == "training" and steps and reached:
        left = step["elapsed"] / reached * (steps - reached) / 60
    return {
        "run": run.id,
        "name": spec.name,
        "on": spec.on,
        "created": spec.created,
        "author": spec.author,
        "origin": spec.origin,
        "files": [file.name for file in spec.files],
        "rank": spec.recipe.rank,
        "state": state,
        "result": named,
        "layer": result.layer if result else None,
        "step": reached,
        "steps": steps,
        "loss": step.get("loss"),
        "held_out": evaluated.get("loss") if evaluated else done.get("loss"),
        "tokens_per_second": _speed(events),
        "elapsed": step.get("elapsed"),
        "minutes_left": left,
        "heard": heard,
        "part_of": spec.part_of,
    }


def _state(
    events: Sequence[dict[str, Any]], step: dict[str, Any], *, created: str, when: float
) -> State:
    """The state of a run that has no result yet."""
    if not events:
        begun = datetime.datetime.fromisoformat(created).timestamp()
        return "starting" if when - begun < QUIET_SECONDS else "quiet"
    kind = events[-1]["event"]
    if kind == "interrupted":
        return "stopped"
    a_step = step["elapsed"] / step["step"] if step.get("step") else 0.0
    if when - float(events[-1].get("time") or 0.0) > max(QUIET_SECONDS, QUIET_STEPS * a_step):
        return "quiet"
    return "landing" if kind == "done" else "training"


def _last(events: Sequence[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next((event for event in reversed(events) if event["event"] == kind), {})


def _speed(events: Sequence[dict[str, Any]]) -> float | None:
    """Tokens a second over the last steps: the harmonic mean, weighted by tokens."""
    steps = [e for e in events if e["event"] == "step" and e.get("tokens_per_second")][-20:]
    seconds = sum(e["tokens"] / e["tokens_per_second"] for e in steps)
    return sum(e["tokens"] for e in steps) / seconds if seconds else None
