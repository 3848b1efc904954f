"""How far runs are, from their records alone."""

import json

import pytest

from lamina.core.manifests import StackConfig
from lamina.core.recipe import Recipe
from lamina.flows import runs
from lamina.flows.progress import QUIET_SECONDS, progress, progress_of
from lamina.store.layout import Store
from tests.books import ZERO

BEGUN = 1_800_000_000.0  # 2027-01-15T08:00:00Z
CREATED = "2027-01-15T08:00:00+00:00"


def make(tmp_path, *events, name="mine", result=None, **fields):
    spec = runs.RunSpec(
        id=f"20270115-080000-{name}", created=CREATED, name=name, on="pico",
        stack=StackConfig(base=ZERO), recipe=Recipe(), format="chat", files=(), sources=(),
        duplicates=0, skipped=0, exams=(), **fields,
    )  # fmt: skip
    run = runs.write(tmp_path / "store" / "runs" / spec.id, spec, {})
    say(run, *events)
    if result is not None:
        (run.directory / runs.RESULT).write_bytes(result.to_bytes())
    return run


def say(run, *events):
    with (run.directory / runs.EVENTS).open("a") as handle:
        handle.writelines(json.dumps(event) + "\n" for event in events)


def step(number, *, at=0.0, steps=10, speed=100.0, tokens=200):
    return {
        "event": "step", "time": BEGUN + at, "step": number, "steps": steps, "loss": 3.0 / number,
        "tokens": tokens, "tokens_per_second": speed, "elapsed": 2.0 * number,
    }  # fmt: skip


READY = {"event": "ready", "time": BEGUN}
EVAL = {"event": "eval", "time": BEGUN + 5, "step": 2, "loss": 1.25, "best": True}


def test_a_run_at_work_tells_step_speed_and_time_left(tmp_path):
    run = make(tmp_path, READY, step(1), EVAL, step(4, at=8, speed=50.0, tokens=100))
    found = progress_of(run, at=BEGUN + 9)
    assert (found["state"], found["step"], found["steps"]) == ("training", 4, 10)
    assert found["minutes_left"] == pytest.approx(6 * 2.0 / 60)  # 2 seconds a step
    assert found["tokens_per_second"] == pytest.approx(300 / 4.0)  # 200 in 2 s, 100 in 2 s
    assert (found["loss"], found["held_out"]) == (0.75, 1.25)


@pytest.mark.parametrize(
    ("events", "at", "state"),
    [
        ((), 1, "starting"),
        ((), QUIET_SECONDS + 1, "quiet"),
        ((READY, step(1)), 1, "training"),
        ((READY, step(1)), QUIET_SECONDS + 1, "quiet"),
        ((step(1) | {"elapsed": 60.0},), QUIET_SECONDS + 1, "training"),  # slow steps
        ((step(3), {"event": "interrupted", "time": BEGUN, "step": 3}), 9e9, "stopped"),
        ((step(9), {"event": "done", "time": BEGUN, "best_step": 9, "loss": 1.0}), 1, "landing"),
    ],
)
def test_the_state_of_a_run_without_result(tmp_path, events, at, state):
    found = progress_of(make(tmp_path, *events), at=BEGUN + at)
    assert found["state"] == state
    assert (found["minutes_left"] is not None) == (state == "training")


@pytest.mark.parametrize(("name", "state"), [("mine:v1", "finished"), (None, "not named")])
def test_the_state_of_a_run_with_a_result(tmp_path, name, state):
    result = runs.RunResult(layer=ZERO, stack=ZERO, name=name)
    run = make(tmp_path, step(10), result=result)
    found = progress_of(run, at=BEGUN)
    assert (found["state"], found["result"], found["minutes_left"]) == (state, name, None)


def test_what_is_said_in_pieces_is_what_is_said(tmp_path):
    run = make(tmp_path, READY, *(step(n) for n in range(1, 60)))
    offset, found = 0, []
    while True:
        events, following = run.said(offset, at_most=1000)
        if following == offset:
            break
        offset, found = following, found + events
    assert found == list(run.events())
    with (run.directory / runs.EVENTS).open("a") as handle:
        handle.write('{"event": "step", "st')
    assert run.said(offset) == ([], offset)  # torn: not yet
    with (run.directory / runs.EVENTS).open("a") as handle:
        handle.write('ep": 60}\n[1]\nno json\n')
    events, after = run.said(offset)
    assert events == [{"event": "step", "step": 60}]
    assert run.said(after) == ([], after)
    assert run.said(after + 999) == ([], after)
    assert run.said(-200)[0][-1] == {"event": "step", "step": 60}


def test_numbers_that_json_does_not_have_are_none(tmp_path):
    run = make(tmp_path, READY, step(1) | {"loss": float("nan")}, EVAL | {"loss": float("inf")})
    assert [event.get("loss") for event in run.said()[0]] == [None, None, None]
    json.dumps(progress_of(run, at=BEGUN), allow_nan=False)


def test_the_newest_runs_come_first(tmp_path):
    for number in range(3):
        make(tmp_path, name=f"r{number}")
    store = Store.open(tmp_path / "store2")
    (tmp_path / "store" / "runs").rename(store.runs_dir)
    assert [run["name"] for run in progress(store, newest=2)] == ["r2", "r1"]
