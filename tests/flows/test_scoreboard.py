"""Results over versions, stacks at a glance, one stack layer by layer, and what layers took."""

import pytest

from lamina.core.errors import UnknownNameError, UsageError
from lamina.core.evidence import COST_TYPE, CostEvidence
from lamina.exams.statistics import wilson
from lamina.flows.costs import costs
from lamina.flows.picture import gallery, picture
from lamina.flows.scoreboard import scoreboard
from tests.books import Books, exam


@pytest.fixture
def books(tmp_path):
    return Books(tmp_path / "store")


RIGHT, WRONG = (1.0, 1.0, "a"), (0.0, 1.0, "b")
UNREAD = (0.0, 0.0, None)


@pytest.fixture
def grown(books):
    """`one` with two versions; the second asks other questions, and sat the first's too."""
    old = exam("one/exact").model_copy(update={"max_new_tokens": 1})  # as `Books.score` records
    new = old.model_copy(update={"items": exam("x").items})
    first = books.layer("one", exams=(old,), author="ann")
    stack = books.name("one", first)
    books.score(stack, "one/exact", *[RIGHT] * 2 + [WRONG] * 18)
    agent = books.layer("agent", [first], exams=(exam("agent/loss", "loss"),), rank=8)
    top = books.name("agent", first, agent)
    books.score(top, "agent/loss", (6, 4, None), (2, 4, None), UNREAD, scorer="loss")
    second = books.layer("one", number=2, supersedes=first, origin="updated", exams=(new,))
    stack = books.name("one", second)
    books.score(stack, "one/exact", *[RIGHT] * 15 + [WRONG] * 5)
    books.score(stack, "x", RIGHT, RIGHT)
    return books


def test_versions_and_their_results(grown):
    found = scoreboard(grown.store, "one")
    assert [v["version"] for v in found["versions"]] == ["one:v1", "one:v2"]
    first, second = (v["own"] for v in found["versions"])
    assert first != second
    assert {e["exam"] for e in found["exams"]} == {"one/exact"}
    cells = {(c["stack"], c["exam"]): c for c in found["cells"]}
    assert cells["one:v1", first[0]]["value"] == 0.1
    assert cells["one:v1", first[0]]["ci"] == wilson(2, 20)
    assert cells["one:v1", first[0]]["change"] is None
    assert (cells["one:v2", first[0]]["value"], cells["one:v2", first[0]]["change"]) == (
        0.75,
        "better",
    )
    assert cells["one:v2", second[0]]["value"] == 1.0
    assert ("one:v1", second[0]) not in cells


def test_what_counts_no_question_is_no_result(books):
    carries = (exam("one/loss", "loss"),)
    books.score(books.name("one", books.layer("one", exams=carries)), "one/loss", UNREAD)
    found = scoreboard(books.store, "one")
    assert found["cells"] == []
    assert gallery(books.store)["stacks"][0]["result"] is None


def test_only_names_of_stacks_have_versions(grown):
    with pytest.raises(UsageError, match="is a base"):
        scoreboard(grown.store, "pico")
    with pytest.raises(UnknownNameError):
        scoreboard(grown.store, "nothing")


def test_the_gallery_shows_every_name_once(grown):
    found = gallery(grown.store)
    assert [base["name"] for base in found["bases"]] == ["pico"]
    agent, one = found["stacks"]
    assert (agent["name"], agent["version"], agent["fresh"]) == ("agent", "agent:v1", False)
    assert [(layer["name"], layer["rank"], layer["state"]) for layer in agent["layers"]] == [
        ("one", 1, "superseded"),
        ("agent", 8, "stale"),
    ]
    assert agent["result"]["value"] == 1.0
    assert (one["version"], one["versions"], one["fresh"], one["base"]) == (
        "one:v2",
        2,
        True,
        "pico",
    )


def test_a_picture_of_a_stack(grown):
    found = picture(grown.store, "agent")
    assert (found["version"], found["fresh"], found["latest"]) == ("agent:v1", False, True)
    one, agent = found["layers"]
    assert one["state"]["superseded_by_name"] == "one:v2"
    assert (one["author"], agent["rank"]) == ("ann", 8)
    assert one["results"][0]["value"] is None  # agent never sat it
    assert (agent["results"][0]["value"], agent["results"][0]["n"]) == (1.0, 2)
    old = picture(grown.store, "one:v1")
    assert (old["version"], old["latest"]) == ("one:v1", False)
    assert [v["version"] for v in old["versions"]] == ["one:v2", "one:v1"]


def test_a_picture_of_what_has_no_name(grown):
    bare = picture(grown.store, "pico")
    assert (bare["layers"], bare["fresh"], bare["versions"]) == ([], None, [])
    digest = grown.store.names()["agent"]["latest"].digest
    found = picture(grown.store, f"@{digest.removeprefix('sha256:')}")
    assert [layer["name"] for layer in found["layers"]] == ["one", "agent"]
    assert found["layers"][0]["state"] is None


def test_costs_are_those_on_record(grown):
    (layer,) = (row for row in costs(grown.store) if row["name"] == "agent")
    assert (layer["seconds"], layer["stacks"]) == (None, ["agent:v1"])
    record = CostEvidence(
        created="2026-01-01T00:00:00+00:00", seconds=90.0, steps=3, best_step=3, tokens=600,
        tokens_per_second=6.5, peak_bytes=10, hardware="a box", versions={}, layer_bytes=5,
        base_bytes=50,
    )  # fmt: skip
    grown.store.put_evidence(COST_TYPE, record, grown.store.describe(layer["layer"]))
    newest = costs(grown.store)[0]
    assert (newest["name"], newest["seconds"], newest["tokens"]) == ("agent", 90.0, 600)
