"""`lamina train --rehearsal-set`: which rows travel with a layer."""

import pytest

from tests.made import QUICK


@pytest.mark.parametrize("kind", ["sample", "none"])
def test_the_layer_carries_what_was_asked_for(program, rows, kind):
    how = ("--accept-regression", "a test", "--rehearsal-set", kind, *QUICK)
    program("train", "--on", "pico", "--data", rows, "--as", "mine", *how).done()
    (layer,) = program("show", "mine", "--json").done().json["layers"]
    assert layer["rehearsal"] == kind
    assert f"rehearsal set: {kind}" in program("show", "mine").done().out


def test_refusals(program, rows):
    start = ("train", "--on", "pico", "--data", rows, "--as", "mine", "--rehearsal-set")
    program(*start, "all").refused("unknown rehearsal set 'all'", "sample, synthesised, none")
    program(*start, "sample", "--private").refused("a sample of private rows would travel")
    program("train", "--resume", "last", "--rehearsal-set", "none").refused("--rehearsal-set")
