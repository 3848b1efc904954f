"""update, refresh and rebase as they are typed."""

import pytest

from tests.made import write_rows

WHY = ("--accept-regression", "it is a test")


@pytest.fixture
def fresh(tmp_path):
    return write_rows(tmp_path / "new.jsonl", "minus", 20)


def test_update_prints_what_train_prints(program, fresh):
    found = program("update", "times", "--data", fresh, "--json", *WHY).done().json
    assert set(found) == {"layer", "stack", "name", "metrics", "cost"}
    assert found["name"] == "times:v2"
    shown = program("show", "times", "--json").done().json["layers"][-1]
    assert shown["origin"] == "updated"
    assert shown["layer"] == found["layer"]


def test_rows_known_already_are_no_work(program, rows):
    result = program("update", "sums", "--data", rows).done()
    assert result.out == "nothing to learn: every row had been seen before\n"
    assert "80 already seen" in result.err
    assert program("update", "sums", "--data", rows, "--json").done().json["layer"] is None


def test_an_update_is_refused_with_what_to_do(program, fresh, tmp_path):
    program("update", "pico", "--data", fresh).refused("has no layer to update")
    program("update", "times", "--layer", "tims", "--data", fresh).refused(
        "no layer 'tims'", "sums, times"
    )
    program("update", "times", "--data", tmp_path / "none.jsonl").refused("none.jsonl")
    program("update", "nobody", "--data", fresh).refused("nothing is called 'nobody'")
    program("update", "times", "--data", fresh, "--as", "pico").refused("plain name")


def test_a_dry_run_of_refresh_prices_and_moves_nothing(program, fresh):
    program("update", "times", "--layer", "sums", "--data", fresh, *WHY).done()
    before = program("list", "--json").done().json
    result = program("refresh", "times", "--dry-run").done()
    assert "sums: replace" in result.out
    assert "times: carry, examining about" in result.out
    found = program("refresh", "times", "--dry-run", "--json").done().json
    assert [step["action"] for step in found["plan"]] == ["replace", "carry"]
    assert found["name"] is None
    assert program("list", "--json").done().json == before


def test_refresh_reports_every_layer(program, fresh):
    program("update", "times", "--layer", "sums", "--data", fresh, *WHY).done()
    found = program("refresh", "times", "--at-most", "copy", "--json", *WHY).done().json
    (layer,) = found["layers"]
    assert (layer["rung"], layer["name"]) == ("copy", "times")
    assert found["name"] == "times:v2"
    assert program("refresh", "times").done().out == "everything is current\n"


def test_refresh_is_refused_with_what_to_do(program):
    program("refresh", "pico").refused("no name of a stack")
    program("refresh", "times", "--at-most", "jump").refused("copy, project, distil, retrain")
    program("refresh", "times", "--keep", "-1").refused("--keep")


def test_rebase_needs_a_place_to_go(program):
    program("rebase", "times").refused("give --onto STACK or --onto-base BASE")
    program("rebase", "times", "--onto", "sums", "--onto-base", "pico").refused("give --onto")
    program("rebase", "times", "--onto-base", "sums").refused("no base 'sums'")
    program("rebase", "times", "--onto", "sums").refused("stands on sums already")
    program("rebase", "sums", "--onto", "times").refused("every layer of sums already")


def test_a_layer_stands_elsewhere_after_a_rebase(program, fresh):
    program("train", "--on", "pico", "--data", fresh, "--as", "other", "--steps", 2, *WHY).done()
    found = (
        program(
            "rebase", "sums", "--onto", "other", "--as", "both", "--at-most", "copy", "--json", *WHY
        )
        .done()
        .json
    )
    assert found["name"] == "both:v1"
    assert program("list", "--json").done().json["stacks"][0]["layers"] == ["other", "sums"]
    assert program("status").done().out.startswith("everything is current")
    program("verify").done()


def test_a_training_within_a_rebase_waits_for_nobody(program, fresh):
    program("train", "--on", "pico", "--data", fresh, "--as", "other", "--steps", 2, *WHY).done()
    asked = ("rebase", "sums", "--onto", "other", "--as", "both", "--keep", "100")
    program(*asked, "--at-most", "distil", *WHY).done()
    assert program("runs").done().out == "no run is waiting\n"
    assert "distil-sums" in program("runs", "--all").done().out
    program("train", "--resume", "last").refused("no run is waiting")
