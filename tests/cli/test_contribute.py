"""A layer goes from its author to whoever keeps the stack: propose, review, accept."""

import json
import shutil
import subprocess
import tarfile

import pytest

from lamina.core.names import Name
from lamina.flows.inventory import history
from lamina.store.layout import Store
from tests.cli.program import Program
from tests.made import QUICK, write_rows

WHY = ("--accept-regression", "it is a test")


@pytest.fixture
def ann(made, tmp_path, monkeypatch, capsys):
    """The contributor: has what the maintainer has, and a layer of her own over `times`."""
    home = shutil.copytree(made, tmp_path / "ann" / "home", symlinks=True)
    program = Program(home, monkeypatch, capsys)
    rows = write_rows(tmp_path / "minus.jsonl", "minus", 40)
    program(
        "train", "--on", "times", "--data", rows, "--as", "minus", *QUICK, *WHY,
        "--exam", rows, "--author", "Ann", "--licence", "cc-by-4.0",
    ).done()  # fmt: skip
    return program


@pytest.fixture
def max_(made, tmp_path, monkeypatch, capsys):
    """The maintainer, who keeps `times`."""
    home = shutil.copytree(made, tmp_path / "max" / "home", symlinks=True)
    return Program(home, monkeypatch, capsys)


@pytest.fixture
def offer(ann, tmp_path):
    """Ann's proposal for `times`."""
    path = tmp_path / "minus.oci.tar"
    ann("propose", "minus", path, "--onto", "times", "--note", "it subtracts", "--author", "Ann").done()
    return path


def everything(home):
    """Every file of a store with its bytes, but for the cache and the lock."""
    return {
        path.relative_to(home): path.read_bytes()
        for path in home.rglob("*")
        if path.is_file() and path.relative_to(home).parts[0] not in ("cache", "lamina.lock")
    }


def test_a_good_layer_is_reviewed_and_accepted(ann, max_, offer):
    made = max_("review", offer, "--json", LAMINA_AUTHOR="Max").done().json
    assert (made["verdict"], made["reasons"]) == ("accept", [])
    shown = max_("review", offer); open("/tmp/rep.txt","w").write(shown.out+shown.err)
    done = max_("accept", offer, LAMINA_AUTHOR="Max").done()
    print(done)
