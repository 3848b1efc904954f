"""`lamina train --workers`: two hosts train one layer, whatever dies."""

import json
import os
import signal
import subprocess

import pytest
import torch

from lamina.flows import runs
from lamina.stack.compile import stored_factors
from tests.fleet.hosts import BIN, ended, until

pytestmark = [pytest.mark.slow, pytest.mark.alone]

RECIPE = (
    "--rank", "2", "--lr", "0.02", "--batch-tokens", "512", "--max-length", "64",
    "--held-out", "0.3", "--accept-regression", "a test", "--on", "pico",
)  # fmt: skip


def begin(hosts, store, name, *more, words=None):
    given = words or ("--data", store.root.parent / "rows.jsonl", "--as", name, *RECIPE)
    return hosts.lamina(store.root, "train", *given, "--workers", 2, *more)


def alone(store, name, steps):
    done = subprocess.run(
        [BIN / "lamina", "train", "--data", store.root.parent / "rows.jsonl", "--as", name,
         *RECIPE, "--steps", str(steps), "--json"],
        env={**os.environ, "LAMINA_HOME": str(store.root), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return stored_factors(store, json.loads(done.stdout)["layer"])


def worst(ours, theirs):
    """The largest difference of an update, relative to the update."""
    assert set(ours) == set(theirs)
    found = []
    for name, mine in ours.items():
        other = theirs[name]
        delta, wanted = mine.b_OR @ mine.a_RI, other.b_OR @ other.a_RI
        found.append(float(torch.linalg.norm(delta - wanted) / torch.linalg.norm(wanted)))
    return max(found)


def run_named(store, name):
    return next(run for run in runs.all_runs(store) if run.spec.name == name)


def steps_of(store, name):
    """Steps that worker 0 has said."""
    with_name = [run for run in runs.all_runs(store) if run.spec.name == name]
    return [e["step"] for run in with_name for e in run.events() if e["event"] == "step"]


def test_two_hosts_come_to_what_one_process_comes_to(hosts, home):
    status, out, said = ended(begin(hosts, home, "duo", "--steps", 12, "--json"))
    assert status == 0, said
    assert "2 workers on 2 machines" in said
    layer = json.loads(out)["layer"]
    assert worst(stored_factors(home, layer), alone(home, "solo", 12)) < 2e-2  # bfloat16 passes
    assert steps_of(home, "duo") == list(range(1, 13))
    (crew,) = [e for e in run_named(home, "duo").events() if e["event"] == "crew"]
    parameters = sum(f.a_RI.numel() + f.b_OR.numel() for f in stored_factors(home, layer).values())
    assert crew["workers"] == 2
    assert 4 * parameters <= crew["bytes_per_step"] <= 5 * parameters


@pytest.mark.parametrize("host", [0, 1])
def test_a_worker_that_is_killed_costs_steps_and_nothing_else(hosts, home, host):
    name = f"killed-{host}"
    process = begin(hosts, home, name, "--steps", 400, "--json")
    until(lambda: len(steps_of(home, name)) > 20)
    workers = hosts.pids(host, "ray::RayTrainWorker")
    assert workers, [hosts.pids(host)]
    os.kill(workers[0], signal.SIGKILL)
    status, out, said = ended(process)
    assert status == 0, said
    assert json.loads(out)["name"] == f"{name}:v1"
    steps = steps_of(home, name)
    assert steps[-1] == 400
    assert len(steps) > 400  # some were taken twice
    assert home.verify().clean


def test_asked_to_stop_all_stop_and_go_on(hosts, home):
    process = begin(hosts, home, "stopped", "--steps", 300, "--json")
    until(lambda: len(steps_of(home, "stopped")) > 10)
    process.send_signal(signal.SIGINT)
    status, _, said = ended(process)
    assert status == 130, said
    run = run_named(home, "stopped")
    assert f"--resume {run.id} --workers 2" in said
    done = len(steps_of(home, "stopped"))
    assert 10 < done < 300
    status, out, said = ended(begin(hosts, home, "", words=("--resume", run.id, "--json")))
    assert status == 0, said
    assert json.loads(out)["name"] == "stopped:v1"
    assert steps_of(home, "stopped") == list(range(1, 301))  # none twice


def test_what_is_wrong_is_said_once_and_at_once(hosts, home):
    status, _, said = ended(begin(hosts, home, "wrong", "--steps", 3, "--target", "nowhere"))
    assert status == 2
    assert "nowhere" in said
    assert "Traceback" not in said
    status, _, said = ended(begin(hosts, home, "many", "--steps", 3, "--workers", 9))
    assert status == 2
    assert "9 workers are more than this cluster has processors (2)" in said


@pytest.mark.parametrize(
    ("address", "needed"),
    [("127.0.0.1:1", "does not answer"), ("nonsense", "no address"), ("ray://a:1", "no address")],
)
def test_no_cluster_there(home, address, needed):
    done = subprocess.run(
        [BIN / "lamina", "train", "--data", home.root.parent / "rows.jsonl", "--as", "none",
         *RECIPE, "--workers", "2", "--ray", address],
        env={**os.environ, "LAMINA_HOME": str(home.root)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert needed in done.stderr
    assert "Traceback" not in done.stderr
