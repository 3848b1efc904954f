"""`lamina squash` and `lamina conflicts` as a user meets them."""

import shlex

import pytest

from tests.made import QUICK

pytestmark = pytest.mark.slow  # whole verbs, again and again


@pytest.fixture
def strong(program, more_rows):
    """The program with `strong` over `sums`: a layer that one direction a linear cannot hold."""
    how = ("--rank", 8, "--steps", 40, "--lr", 0.05, "--exam", more_rows)
    options = dict(zip(QUICK[::2], QUICK[1::2], strict=True)) | dict(
        zip(how[::2], how[1::2], strict=True)
    )
    flat = [part for pair in options.items() for part in pair]
    program(
        "train", "--on", "sums", "--data", more_rows, "--as", "strong", *flat,
        "--accept-regression", "it is a test",
    ).done()  # fmt: skip
    return program


def test_squash_exactly_and_undo(program):
    before = program("show", "times", "--json").json["stack"]
    done = program("squash", "times").done()
    assert "times:v2 is @" in done.out
    assert "2 layers squashed into one" in done.out
    undo = done.out.splitlines()[-1].removeprefix("undo: ")
    assert undo == "lamina tag times:v1 times"
    shown = program("show", "times", "--json").json
    (layer,) = shown["layers"]
    assert layer["origin"] == "squashed"
    assert layer["certificate"]["logits_difference"] < 1e-5
    assert "squash: rank 4, was 4" in program("show", "times").done().out
    assert program("verify", "--json").done().json["faults"] == []
    program(*shlex.split(undo)[1:]).done()
    assert program("show", "times", "--json").json["stack"] == before
    assert program("log", "times", "--json").json["moves"][0]["version"] == 3


def test_squash_json_has_its_documented_shape(program):
    result = program("squash", "times", "--rank", 3, "--as", "small", "--json",
                     "--accept-regression", "it is a test").done()  # fmt: skip
    found = result.json
    assert set(found) == {
        "layer", "stack", "name", "changed", "layers_before", "parameters", "parameters_before",
        "certificate", "metrics", "undo",
    }  # fmt: skip
    assert (found["name"], found["changed"], found["undo"]) == ("small:v1", True, None)
    assert found["certificate"]["rank"] == 3
    assert found["parameters"] < found["parameters_before"]
    assert found["metrics"]["stack"] == found["stack"]
    moves = program("log", "times", "--json").json["moves"]
    assert [move["version"] for move in moves] == [1]  # the original's name did not move


def test_a_ruined_stack_is_refused_with_exit_1(strong):
    before = strong("show", "strong", "--json").json["stack"]
    refused = strong("squash", "strong", "--rank", 1)
    refused.refused("strong was not moved", "--accept-regression", code=1)
    assert refused.out == ""
    assert strong("show", "strong", "--json").json["stack"] == before
    assert strong("verify", "--json").done().json["faults"] == []
    strong("squash", "strong", "--rank", 1, "--accept-regression", "small is all").done()
    assert strong("log", "strong", "--json").json["moves"][0]["override"] == "small is all"


def test_squash_usage(shared):
    shared("squash", "times", "--rank", 2, "--tolerance", 0.1).refused("give one of them")
    shared("squash", "times", "--rank", 0).refused("the lowest rank is 1")
    shared("squash", "times", "--tolerance", 1.5).refused("between 0 and 1")
    shared("squash", "pico").refused("bare base")
    shared("squash", "nobody").refused("nobody")
    digest = shared("show", "times", "--json").json["stack"]
    shared("squash", f"@{digest[7:19]}").refused("no name to move", "--as NAME")


# -- conflicts -------------------------------------------------------------------------------------


@pytest.fixture
def parallel(program, more_rows):
    """The program with `left` and `right`, each over `sums`."""
    for name, seed in (("left", 1), ("right", 2)):
        arguments = ("--on", "sums", "--data", more_rows, "--as", name, *QUICK, "--seed", seed)
        program("train", *arguments, "--accept-regression", "it is a test").done()
    return program


def test_conflicts_of_parallel_layers(parallel):
    found = parallel("conflicts", "left", "right", "--json").done().json
    sums = parallel("show", "sums", "--json").json["layers"][0]["layer"]
    assert found["shared"] == [sums]
    assert [len(found[side]["layers"]) for side in "ab"] == [1, 1]
    inner = [m["inner"] for m in found["modules"]]
    assert len(inner) == 14
    assert inner == sorted(inner)
    assert found["inner"] == pytest.approx(sum(inner))
    assert -1 <= found["cosine"] <= 1
    for module in found["modules"]:
        assert 0 <= module["overlap_a"] <= 1
        assert 0 <= module["columns"]["smallest"] <= module["columns"]["mean"] <= 90
    text = parallel("conflicts", "left", "right").done().out
    assert "a = left (left); b = right (right); left out as shared: sums" in text
    assert "… and 4 more: --all" in text
    assert found["meaning"] in text
    whole = parallel("conflicts", "left", "right", "--all").done().out
    assert all(module["module"] in whole for module in found["modules"])


def test_a_stack_and_what_stands_on_it(shared):
    found = shared("conflicts", "sums", "times", "--json").done().json
    other = shared("conflicts", "times", "sums", "--json").done().json
    assert found["shared"] == []
    assert (found["a"]["layers"], found["b"]["layers"]) == (
        other["b"]["layers"],
        other["a"]["layers"],
    )
    assert found["cosine"] == pytest.approx(other["cosine"])
    assert found["overlap_a"] == pytest.approx(other["overlap_b"])


def test_a_stack_and_its_squash_pull_the_same_way(program):
    program("squash", "times", "--as", "flat").done()
    found = program("conflicts", "times", "flat", "--json").done().json
    assert found["cosine"] == pytest.approx(1.0)
    assert found["overlap_a"] == pytest.approx(1.0)
    assert "pull the same way" in found["meaning"]


def test_conflicts_usage(shared):
    shared("conflicts", "times", "times").refused("the same layers")
    shared("conflicts", "pico", "times").refused("bare base")
    shared("conflicts", "times").refused("Missing argument")
