"""--memory through the program: sizes, refusals, and what is said."""

import pytest

from tests.cli.test_train import train


def test_it_says_what_a_run_takes(program, rows):
    result = program(*train("pico", rows, "fresh", "--steps", 1)).done()
    (line,) = [each for each in result.err.splitlines() if "of memory" in each]
    assert line.startswith("about ")
    assert line.endswith(" free")


@pytest.mark.parametrize("size", ["plenty", "2", "2G", "-1GB", "0GB", "1,5GB"])
@pytest.mark.parametrize("command", ["train", "update"])
def test_nonsense_is_refused(program, rows, command, size):
    words = {
        "train": train("pico", rows, "fresh", f"--memory={size}"),
        "update": ("update", "times", "--data", rows, f"--memory={size}"),
    }[command]
    program(*words).refused(repr(size), "2GB")
    assert program("runs", "--all").done().out.count("fresh") == 0


def test_too_little_is_refused_before_training(program, rows):
    result = program(*train("pico", rows, "fresh", "--memory", "50MB"))
    result.refused("training needs at least", "50 MB is given", "about")
    assert result.err.count("  - ") == 3
    assert "step " not in result.err
    assert "fresh" not in program("runs", "--all").done().out


def test_enough_is_said_beside_what_is_given(program, rows):
    result = program(*train("pico", rows, "fresh", "--steps", 1, "--memory", "64 GiB")).done()
    assert "69 GB given" in result.err


def test_a_run_goes_on_with_the_memory_that_it_was_given(program):
    program("train", "--resume", "last", "--memory", "2GB").refused("--memory")
