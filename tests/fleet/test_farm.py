"""`lamina farm`: many layers over two hosts are those that are trained one after another."""

import json
import os
import signal
import subprocess

import pytest

from lamina.flows import runs
from lamina.store.layout import Store
from tests.fleet.hosts import BIN, ended, until
from tests.flows.world import write_rows

pytestmark = [pytest.mark.slow, pytest.mark.alone]

DEFAULTS = """
[defaults]
on = "pico"
accept_regression = "a test"
recipe = { rank = 2, lr = 0.02, steps = STEPS, batch_tokens = 256, max_length = 64, held_out = 0.3 }
"""


def write_jobs(home, names, *, steps=4, more=""):
    """A file of jobs in the folder beside the store, each with rows of its own."""
    folder = home.root.parent
    jobs = []
    for name in names:
        write_rows(folder / f"{name}.jsonl", 24, word=name)
        jobs.append(f'[[job]]\nname = "{name}"\ndata = ["{name}.jsonl"]\n')
    path = folder / f"{names[0]}.toml"
    path.write_text(DEFAULTS.replace("STEPS", str(steps)) + "".join(jobs) + more)
    return path


def begin(hosts, home, path):
    return hosts.lamina(home.root, "farm", path, "--json")


def jobs_of(out):
    return {job["name"]: job for job in json.loads(out)["jobs"]}


def run_of(home, name):
    return next((run for run in runs.all_runs(home) if run.spec.name == name), None)


def begun(home, name, steps=5):
    run = run_of(home, name)
    return run is not None and sum(e["event"] == "step" for e in run.events()) >= steps


def test_layers_are_those_of_one_after_another_and_a_failure_stops_nobody(hosts, home):
    more = (
        '[[job]]\nname = "amiss"\ndata = ["nowhere.jsonl"]\n'
        '[[job]]\nname = "homeless"\non = "nothing"\ndata = ["red.jsonl"]\n'
    )
    path = write_jobs(home, ["red", "green", "blue"], more=more)
    status, out, said = ended(begin(hosts, home, path))
    assert status == 1, said
    jobs = jobs_of(out)
    assert {name: job["state"] for name, job in jobs.items()} == {
        "red": "named", "green": "named", "blue": "named", "amiss": "failed", "homeless": "failed",
    }  # fmt: skip
    assert "nowhere.jsonl" in jobs["amiss"]["result"]
    assert jobs["amiss"]["tries"] == 1  # it is no use
    assert "red: named: red:v1" in said
    for name in ("red", "green", "blue"):
        done = subprocess.run(
            [BIN / "lamina", "train", "--on", "pico", "--data", f"{name}.jsonl", "--as",
             f"{name}-again", "--rank", "2", "--lr", "0.02", "--steps", "4", "--batch-tokens",
             "256", "--max-length", "64", "--held-out", "0.3", "--accept-regression", "a test",
             "--again", "--json"],
            cwd=home.root.parent,
            env={**os.environ, "LAMINA_HOME": str(home.root), "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        ours = home.manifest(jobs[name]["layer"])
        theirs = home.manifest(json.loads(done.stdout)["layer"])
        weights = [b for b in ours.layers if b.mediaType.endswith("safetensors")]
        assert weights
        assert weights == [b for b in theirs.layers if b.mediaType.endswith("safetensors")]


def test_a_worker_that_is_killed_loses_nothing(hosts, home):
    path = write_jobs(home, ["one", "two"], steps=300)
    process = begin(hosts, home, path)
    until(lambda: begun(home, "one") and begun(home, "two"))
    for host in (0, 1):
        workers = hosts.pids(host, "ray::_in_task")
        assert len(workers) == 1
        os.kill(workers[0], signal.SIGKILL)
    status, out, said = ended(process)
    assert status == 0, said
    jobs = jobs_of(out)
    assert [jobs[name]["state"] for name in ("one", "two")] == ["named", "named"]
    assert [jobs[name]["tries"] for name in ("one", "two")] == [2, 2]
    assert home.verify().clean


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_same_command_goes_on(hosts, home, how):
    names = [f"{how.name.lower()}-{n}" for n in range(3)]
    path = write_jobs(home, names, steps=200)
    process = begin(hosts, home, path)
    until(lambda: begun(home, names[0]))
    process.send_signal(how)
    status, _, said = ended(process)
    if how is signal.SIGINT:
        assert status == 130, said
        assert "the same command goes on" in said
    status, out, said = ended(begin(hosts, home, path))
    assert status == 0, said
    assert {job["state"] for job in jobs_of(out).values()} == {"named"}
    assert len([run for run in runs.all_runs(home) if run.spec.name == names[0]]) == 1
    assert Store.open(home.root).verify().clean
