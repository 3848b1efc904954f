"""status, log --graph and bisect as they are typed."""

import pytest

from tests.made import write_rows
from tests.test_architecture import HEAVY, RUN, loaded


@pytest.fixture
def stale(program, tmp_path):
    """sums has a new version; times stands on the old one."""
    rows = write_rows(tmp_path / "new.jsonl", "minus", 20)
    program("update", "sums", "--data", rows, "--accept-regression", "it is a test").done()
    return program


def test_status_of_a_store_in_which_all_is_current(shared):
    assert shared("status").done().out == "everything is current: sums:v1, times:v1\n"
    found = shared("status", "--json").done().json
    assert found["current"]
    assert [stack["name"] for stack in found["stacks"]] == ["sums", "times"]
    assert "sums" in shared("status", "times").done().out


def test_status_says_what_to_type(stale):
    result = stale("status").done()
    assert "times:v1 is stale; bring it up to date: lamina refresh times" in result.out
    assert "superseded by @" in result.out
    assert "(sums:v2)" in result.out
    found = stale("status", "times", "--json").done().json
    assert not found["current"]
    (times,) = found["stacks"]
    assert set(times) == {"name", "version", "stack", "fresh", "layers"}
    sums, top = times["layers"]
    assert (sums["state"], sums["superseded_by_name"]) == ("superseded", "sums:v2")
    assert (top["state"], top["because"]) == ("stale", [{"layer": sums["layer"], "name": "sums"}])
    assert stale("status", "sums", "--json").done().json["current"]


def test_an_old_version_has_a_status_of_its_own(stale):
    (old,) = stale("status", "sums:v1", "--json").done().json["stacks"]
    assert (old["version"], old["fresh"]) == ("sums:v1", False)


def test_the_graph_shows_where_each_version_stands(stale):
    lines = stale("log", "--graph").done().out.splitlines()
    assert lines[0].startswith("* sums:v2 @")
    assert lines[1] == "|   supersedes sums:v1"
    assert any(line.startswith("| * times:v1 (stale) @") for line in lines)
    nodes = stale("log", "--graph", "--json").done().json["nodes"]
    assert [node["version"] for node in nodes] == ["sums:v2", "times:v1", "sums:v1"]
    assert nodes[1]["exams"][0]["metric"] == "loss"
    assert stale("log", "sums", "--graph", "--json").done().json["nodes"] == [nodes[0], nodes[2]]


def test_bisect_names_a_layer_and_its_author(shared):
    result = shared("bisect", "times", "--exam", "sums/loss").done()
    assert "sums/loss (loss): base " in result.out
    found = shared("bisect", "times", "--json").done().json
    assert [exam["exam"] for exam in found["exams"]] == ["sums/loss", "times/loss"]
    assert [layer["author"] for layer in found["layers"]] == ["Zoë", None]
    for exam in found["exams"]:
        assert (len(exam["added"]), len(exam["without"])) == (3, 2)


def test_what_cannot_be_found_is_refused(shared, empty):
    shared("status", "tmies").refused("times")
    shared("status", "pico").refused("is a base")
    shared("log", "tmies", "--graph").refused("tmies")
    shared("bisect", "tmies").refused("tmies")
    shared("bisect", "pico").refused("no layers")
    shared("bisect", "times", "--exam", "nothing").refused("sums/loss, times/loss")
    assert empty("status", "--json").done().json == {"current": True, "stacks": []}
    assert empty("log", "--graph", "--json").done().json == {"nodes": []}


def test_reading_lineage_loads_nothing_heavy(made):
    for words in (["status"], ["status", "times"], ["log", "--graph"]):
        assert loaded(RUN.format(arguments=words), made) & HEAVY == set()
