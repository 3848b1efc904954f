"""`lamina sweep`: trials over two hosts, the best by exam gets the name, kills lose nothing."""

import json
import os
import signal

import pytest

from lamina.core.manifests import LayerConfig
from lamina.flows import runs
from tests.fleet.hosts import ended, until
from tests.flows.world import write_rows

pytestmark = [pytest.mark.slow, pytest.mark.alone]

SWEEP = """
name = "NAME"
on = "pico"
data = ["NAME.jsonl"]
accept_regression = "a test"
[recipe]
rank = 2
steps = STEPS
batch_tokens = 256
max_length = 64
held_out = 0.3
eval_every = 2
[search]
"""


def write_sweep(home, name, search, *, steps=8):
    folder = home.root.parent
    write_rows(folder / f"{name}.jsonl", 40, word=name)
    path = folder / f"{name}.toml"
    path.write_text(SWEEP.replace("NAME", name).replace("STEPS", str(steps)) + search)
    return path


def begin(hosts, home, path):
    return hosts.lamina(home.root, "sweep", path, "--json")


def runs_of(home, name):
    return [run for run in runs.all_runs(home) if run.spec.name == name]


def steps_of(run):
    return [event["step"] for event in run.events() if event["event"] == "step"]


def config_of(home, layer):
    return LayerConfig.parse(home.read(home.manifest(layer).config.digest), "the layer")


def test_the_best_by_exam_gets_the_name_and_the_others_are_kept(hosts, home):
    path = write_sweep(home, "best", "lr = [1e-6, 0.02]\nrank = [2, 3]\n")
    status, out, said = ended(begin(hosts, home, path))
    assert status == 0, said
    swept = json.loads(out)
    by_values = {(t["values"]["lr"], t["values"]["rank"]): t for t in swept["trials"]}
    assert len(by_values) == 4
    landed = [trial for trial in swept["trials"] if trial["state"] == "landed"]
    assert {trial["state"] for trial in swept["trials"]} <= {"landed", "ended early"}
    losses = [trial["scores"][0]["value"] for trial in landed]
    assert losses == sorted(losses)
    best = swept["trials"][0]
    assert best["number"] == swept["best"]
    assert best["values"]["lr"] == 0.02
    assert swept["name"] == "best:v1"
    assert home.names()["best"]["latest"].digest == swept["stack"] == best["stack"]
    for trial in landed:  # each is a layer of its own, with the recipe of its trial
        assert config_of(home, trial["layer"]).recipe.rank == trial["values"]["rank"]
    assert f"trial {best['number']} (" in said
    home.collect(grace_seconds=0)
    assert all(home.has(trial["layer"]) for trial in landed)
    status, out, said = ended(begin(hosts, home, path))  # nothing is trained again
    assert status == 0, said
    again = json.loads(out)
    assert again["stack"] == swept["stack"]
    assert {t["layer"] for t in again["trials"]} == {t["layer"] for t in swept["trials"]}
    assert len(runs_of(home, "best")) == 4


def test_what_lags_behind_is_ended_early_and_stays_so(hosts, home):
    rates = ", ".join(["0.02", "0.03", "0.025", "1e-7", "2e-7", "3e-7", "4e-7", "5e-7"])
    path = write_sweep(home, "early", f"lr = [{rates}]\n", steps=60)
    status, out, said = ended(begin(hosts, home, path))
    assert status == 0, said
    first = json.loads(out)
    early = [trial for trial in first["trials"] if trial["state"] == "ended early"]
    assert early
    assert all(trial["layer"] is None and 10 <= trial["percent"] < 60 for trial in early)
    assert first["trials"][0]["values"]["lr"] > 0.01
    told = {run.id: len(steps_of(run)) for run in runs_of(home, "early")}
    status, out, said = ended(begin(hosts, home, path))
    assert status == 0, said
    again = json.loads(out)
    assert {t["number"] for t in again["trials"] if t["state"] == "ended early"} == {
        trial["number"] for trial in early
    }
    assert told == {run.id: len(steps_of(run)) for run in runs_of(home, "early")}


def test_mixtures_of_data_sit_one_exam(hosts, home):
    folder = home.root.parent
    write_rows(folder / "more.jsonl", 40, word="more")
    path = write_sweep(home, "mix", 'data = [["mix.jsonl"], ["mix.jsonl", "more.jsonl"]]\n')
    status, out, said = ended(begin(hosts, home, path))
    assert status == 0, said
    trials = json.loads(out)["trials"]
    assert [trial["state"] for trial in trials] == ["landed", "landed"]
    one, two = (trial["scores"][0] for trial in trials)
    assert one["exam_digest"] == two["exam_digest"]
    rows = {
        len(trial["values"]["data"]): config_of(home, trial["layer"]).data.rows for trial in trials
    }
    assert rows[2] > rows[1]


def test_a_trial_that_is_killed_goes_on(hosts, home):
    path = write_sweep(home, "killed", "lr = [0.02, 0.021]\n", steps=300)
    process = begin(hosts, home, path)
    until(lambda: len([r for r in runs_of(home, "killed") if len(steps_of(r)) > 5]) == 2)
    killed = 0
    for host in (0, 1):
        for pid in hosts.pids(host, "ray::ImplicitFunc"):
            os.kill(pid, signal.SIGKILL)
            killed += 1
    assert killed == 2
    status, out, said = ended(process)
    assert status == 0, said
    assert {trial["state"] for trial in json.loads(out)["trials"]} <= {"landed", "ended early"}
    assert len(runs_of(home, "killed")) == 2
    assert home.verify().clean


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_same_command_goes_on(hosts, home, how):
    name = f"sweep-{how.name.lower()}"
    path = write_sweep(home, name, "lr = [0.02, 0.021, 0.022]\n", steps=200)
    process = begin(hosts, home, path)
    until(lambda: any(len(steps_of(run)) > 5 for run in runs_of(home, name)))
    process.send_signal(how)
    status, _, said = ended(process)
    if how is signal.SIGINT:
        assert status == 130, said
        assert "the same command goes on" in said
    status, out, said = ended(begin(hosts, home, path))
    assert status == 0, said
    assert json.loads(out)["name"] == f"{name}:v1"
    assert len(runs_of(home, name)) == 3
    assert home.verify().clean


def test_what_cannot_be_tried_is_refused_before_anything_begins(hosts, home):
    path = write_sweep(home, "amiss", "rang = [2]\n")
    status, _, said = ended(begin(hosts, home, path))
    assert status == 2
    assert "no key of a recipe" in said
    path = write_sweep(home, "nowhere", "rank = [2, 3]\n")
    (home.root.parent / "nowhere.jsonl").unlink()
    status, _, said = ended(begin(hosts, home, path))
    assert status == 1
    assert "no trial of nowhere came to a layer" in said
    assert "nowhere.jsonl" in said
