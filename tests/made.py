"""Fixtures: a small store made once by the program's own verbs, and copies of it to change."""

import json
import shutil

import pytest

from tests.cli.program import Program

QUICK = ("--rank", 2, "--epochs", 1, "--batch-tokens", 256, "--max-length", 128, "--lr", 0.01)


@pytest.fixture(scope="session")
def pico(tmp_path_factory):
    """A pico base's folder."""
    from tests.pico import pico_base  # loads torch, which not every session needs

    return pico_base(tmp_path_factory.mktemp("pico") / "llama")


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """A file of 80 chat rows."""
    return write_rows(tmp_path_factory.mktemp("rows") / "sums.jsonl", "plus", 80)


@pytest.fixture(scope="session")
def more_rows(tmp_path_factory):
    """Another file of rows."""
    return write_rows(tmp_path_factory.mktemp("rows") / "times.jsonl", "times", 40)


def write_rows(path, word, count):
    lines = []
    for a in range(count):
        answer = {"role": "assistant", "content": f"{a} {word} 2"}
        turns = [{"role": "user", "content": f"what is {a} {word} 2?"}, answer]
        lines.append(json.dumps({"messages": turns}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def made(tmp_path_factory, pico, rows, more_rows):
    """A store with base `pico`, stack `sums` over it and `times` over that. Not to be changed."""
    from lamina.api import pull

    home = tmp_path_factory.mktemp("made") / "home"
    base = pull(str(pico), name="pico", home=home)
    options = {"rank": 2, "epochs": 1, "batch_tokens": 256, "max_length": 128, "held_out": 0.2}
    options |= {"exams": ("loss",), "lr": 0.01}
    sums = base.train(rows, name="sums", author="Zoë", **options)
    sums.train(more_rows, name="times", accept_regression="it is a test", **options)
    return home


@pytest.fixture
def empty(tmp_path, monkeypatch, capsys):
    """The program with a store that doesn't exist yet."""
    return Program(tmp_path / "home", monkeypatch, capsys)


@pytest.fixture
def shared(made, monkeypatch, capsys):
    """The program with the store that all tests share: for commands that only read."""
    return Program(made, monkeypatch, capsys)


@pytest.fixture
def program(made, tmp_path, monkeypatch, capsys):
    """The program with a copy of that store, free to change."""
    home = shutil.copytree(made, tmp_path / "home", symlinks=True)
    return Program(home, monkeypatch, capsys)
