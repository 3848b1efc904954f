"""`lamina merge` as a user meets it."""

import json
import shutil

import pytest

from lamina.cli import merge as command
from lamina.stack.combine.registry import METHODS
from tests.cli.program import Program
from tests.made import QUICK, write_rows

pytestmark = pytest.mark.slow  # whole verbs, again and again


@pytest.fixture(scope="session")
def parallel(made, tmp_path_factory):
    """A store with `minus` over `sums`, beside `times`. Not to be changed."""
    from lamina.api import load

    home = shutil.copytree(made, tmp_path_factory.mktemp("merge") / "home", symlinks=True)
    rows = write_rows(home.parent / "minus.jsonl", "minus", 40)
    options = {"rank": 3, "epochs": 1, "batch_tokens": 256, "max_length": 128, "held_out": 0.2}
    load("sums", home=home).train(
        rows, name="minus", exams=("loss",), lr=0.01, accept_regression="it is a test", **options
    )
    return home


@pytest.fixture
def world(parallel, tmp_path, monkeypatch, capsys):
    """The program with a copy of that store."""
    home = shutil.copytree(parallel, tmp_path / "home", symlinks=True)
    return Program(home, monkeypatch, capsys)


WHY = ("--accept-regression", "it is a test")


@pytest.mark.parametrize("method", METHODS)
def test_merge_json_has_its_documented_shape(world, method):
    result = world("merge", "times", "minus", "--as", "both", "--method", method, *WHY, "--json")
    found = result.done().json
    assert set(found) == {
        "layer", "stack", "name", "method", "parent", "merged", "certificate", "matrix", "metrics",
    }  # fmt: skip
    assert (found["name"], found["method"]) == ("both:v1", method)
    assert [each["label"] for each in found["merged"]] == ["times", "minus"]
    assert found["certificate"]["method"] == method
    assert found["matrix"]["stacks"] == ["sums (parent)", "times", "minus", "both (merged)"]
    shown = world("show", "both", "--json").done().json
    assert [layer["name"] for layer in shown["layers"]] == ["sums", "both"]
    assert shown["layers"][1]["origin"] == "merged"
    assert [exam["name"] for exam in shown["layers"][1]["exams"]] == ["times/loss", "minus/loss"]
    assert world("verify", "--json").done().json["faults"] == []


def test_merge_for_people(world):
    done = world("merge", "times", "minus", "--as", "both", "--weight", 1, "--weight", -0.5, *WHY)
    lines = done.done().out.splitlines()
    assert lines[0].startswith("both:v1 is @")
    assert lines[0].endswith(": 1 x times + -0.5 x minus")
    assert "concat: rank 5, was 5" in lines[1]
    assert any(line.startswith("both (merged)") for line in lines)
    assert "merging" not in done.out
    exam = world("exam", "both", "--json").done().json
    assert {score["exam"] for score in exam["scores"]} == {"sums/loss", "times/loss", "minus/loss"}


def test_learned_from_a_file_counts_its_rows(world, tmp_path):
    rows = write_rows(tmp_path / "both.jsonl", "minus", 9)
    learn = ("merge", "times", "minus", "--as", "both", "--method", "learned", *WHY)
    done = world(*learn, "--examples", rows, "--json").done()
    assert "9 of 9 rows" in done.err
    assert all(isinstance(each["weight"], float) for each in json.loads(done.out)["merged"])
    assert [each["weight"] for each in done.json["merged"]] != [1.0, 1.0]


def test_the_help_explains_every_method():
    text = command.merge.__doc__
    for name in METHODS:
        (line,) = [line for line in text.splitlines() if line.startswith(f"    {name} ")]
        assert len(line.split(":")) > 1, line
    assert "default" in next(line for line in text.splitlines() if "concat  " in line)


def test_merge_usage(parallel, monkeypatch, capsys):
    shared = Program(parallel, monkeypatch, capsys)
    both = ("merge", "times", "minus", "--as", "both")
    shared(*both, "--method", "tise").refused("unknown merge method", "'ties'", *METHODS)
    shared(*both, "--density", 0.5).refused("--density means nothing to concat", "ties, dare")
    shared(*both, "--method", "ties", "--density", 1.5).refused("above 0, at most 1")
    shared(*both, "--method", "knots", "--seed", 3).refused("--seed", "it is for dare")
    shared(*both, "--examples", "x.jsonl").refused("--examples", "it is for learned")
    shared(*both, "--weight", 1).refused("given 1 times for 2 stacks")
    shared(*both, "--method", "learned", "--examples", "no.jsonl").refused("no.jsonl")
    shared("merge", "times", "--as", "both").refused("two or more")
    shared("merge", "times", "minus").refused("--as")
    shared("merge", "times", "sums", "--as", "both").refused("nothing to merge")
    shared("merge", "times", "nobody", "--as", "both").refused("nobody")
    shared(*both[:3], "--as", "pico").refused("no base")


def test_different_parents_are_refused_with_both_named(world, rows, more_rows):
    world("train", "--on", "pico", "--data", rows, "--as", "sums", "--seed", 5, *QUICK, *WHY).done()
    world("train", "--on", "sums", "--data", more_rows, "--as", "late", *QUICK, *WHY).done()
    refused = world("merge", "times", "late", "--as", "both")
    refused.refused("times stands on sums @", "late stands on sums @", "lamina rebase late --onto")
    assert "both" not in {s["name"] for s in world("list", "--json").json["stacks"]}


def test_a_gate_that_says_no_exits_with_1(world):
    merge = ("merge", "times", "minus", "--as", "both", "--weight", 40, "--weight", 40)
    refused = world(*merge)
    refused.refused("both was not moved", "--accept-regression", code=1)
    assert refused.out == ""
    world(*merge, *WHY).done()
    assert world("log", "both", "--json").json["moves"][0]["override"] == "it is a test"
