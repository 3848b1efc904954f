"""`lamina exam --ray` and `lamina refresh --ray`: spread over two hosts, the same as at home."""

import json
import os
import signal
import subprocess

import pytest

from lamina.core.evidence import SCORES_TYPE, ScoresEvidence
from lamina.flows.lineage import status_of
from lamina.stack.resolve import resolve
from tests.fleet.hosts import BIN, ended, until
from tests.flows.cascade import WHY, grow, renew
from tests.flows.world import write_rows

pytestmark = [pytest.mark.slow, pytest.mark.alone]

ABOVE = (("second", "first"), ("third", "first"), ("fourth", "second"))


@pytest.fixture(scope="module")
def grown(home):
    grow(home, home.root.parent, ABOVE)
    return home


def alone(home, *words):
    done = subprocess.run(
        [BIN / "lamina", *words, "--json"], cwd=home.root.parent,
        env={**os.environ, "LAMINA_HOME": str(home.root), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def records(store, name):
    return len(store.evidence(resolve(store, name).digest, SCORES_TYPE, ScoresEvidence))


def test_exams_spread_over_hosts_say_what_one_process_says(hosts, grown):
    write_rows(grown.root.parent / "mine.jsonl", 12, word="song")
    words = ("exam", "fourth", "--against", "third", "--exam", grown.root.parent / "mine.jsonl")
    before = records(grown, "fourth")
    status, out, said = ended(hosts.lamina(grown.root, *words, "--fresh", "--json"))
    assert status == 0, said
    assert "fourth on mine/loss" in said
    assert records(grown, "fourth") == before + 4  # each exam of its layers, and the file's
    across = json.loads(out)
    here = alone(grown, *map(str, words))  # from the record
    assert across == here
    afresh = alone(grown, *map(str, words), "--fresh")
    assert afresh["scores"] == across["scores"]
    status, out, said = ended(hosts.lamina(grown.root, *words, "--json"))  # nothing to ask
    assert json.loads(out) == across
    assert " on mine/loss" not in said


def test_a_killed_exam_is_asked_again(hosts, grown):
    write_rows(grown.root.parent / "long.jsonl", 4000, word="song")
    words = ("exam", "third", "--exam", grown.root.parent / "long.jsonl")
    process = hosts.lamina(grown.root, *words, "--json")
    victims = []

    def begun():
        victims[:] = [pid for host in (0, 1) for pid in hosts.pids(host, "ray::_in_task")]
        return len(victims) == 2

    until(begun)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    status, out, said = ended(process)
    assert status == 0, said
    assert {score["exam"] for score in json.loads(out)["scores"]} >= {"long/loss"}


def test_a_cascade_over_hosts(hosts, grown):
    renew(grown, grown.root.parent)
    words = ("refresh", "--all", "--keep", "0", "--at-most", "copy", "--accept-regression", WHY)
    status, out, said = ended(hosts.lamina(grown.root, *words, "--json"))
    assert status == 0, said
    stacks = json.loads(out)["stacks"]
    assert [(each["name"], each["state"]) for each in stacks] == [
        ("second", "refreshed"), ("third", "refreshed"), ("fourth", "refreshed"),
    ]  # fmt: skip
    assert said.index("second: refreshed") < said.index("fourth: refreshed")
    assert all(each.fresh for each in status_of(grown, None))
    second, fourth = (resolve(grown, name).config.layers for name in ("second", "fourth"))
    assert fourth[:2] == second
    assert grown.verify().clean
    status, out, _ = ended(hosts.lamina(grown.root, *words))
    assert (status, out) == (0, "everything is current\n")
