"""A state that is read back exactly, or refused."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lamina.core.errors import StoreFullError, TrainError
from lamina.train import checkpoint
from lamina.train.checkpoint import FILE, Progress

WRITER = """
import sys
from pathlib import Path
import torch
from lamina.train import checkpoint
from tests.train.test_checkpoint import progress
for step in range(1, 10**6):
    checkpoint.save(Path(sys.argv[1]), progress(step), {"flat": torch.full((50_000,), float(step))})
    print(step, flush=True)
"""


def progress(step: int) -> Progress:
    return Progress(
        step=step,
        steps=9,
        warmup=1,
        tokens=5,
        skipped_in_row=0,
        seconds=0.1 + 0.2,
        best_step=1,
        best_loss=1 / 3,
        since_best=2,
    )


TENSORS = {
    "flat": torch.randn(7),
    "adam.step": torch.tensor(3.0),
    "bf16": torch.ones(3, dtype=torch.bfloat16),
}


def test_round_trip(tmp_path):
    assert checkpoint.load(tmp_path) is None
    checkpoint.save(tmp_path, progress(3), TENSORS)
    found, tensors = checkpoint.load(tmp_path)
    assert found == progress(3)
    assert tensors.keys() == TENSORS.keys()
    for key, value in TENSORS.items():
        assert torch.equal(tensors[key], value)
        assert tensors[key].dtype == value.dtype
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_what_is_read_survives_the_file(tmp_path):
    checkpoint.save(tmp_path, progress(3), TENSORS)
    _, tensors = checkpoint.load(tmp_path)
    (tmp_path / FILE).write_bytes(b"\0" * (tmp_path / FILE).stat().st_size)
    assert torch.equal(tensors["flat"], TENSORS["flat"])


def test_truncated_anywhere(tmp_path):
    checkpoint.save(tmp_path, progress(3), TENSORS)
    data = (tmp_path / FILE).read_bytes()
    for length in {*range(0, len(data), 7), len(data) - 1}:
        (tmp_path / FILE).write_bytes(data[:length])
        with pytest.raises(TrainError, match=r"delete the file to train this run from its start"):
            checkpoint.load(tmp_path)


def test_any_flipped_byte(tmp_path):
    checkpoint.save(tmp_path, progress(3), TENSORS)
    data = (tmp_path / FILE).read_bytes()
    quiet = []
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1
        (tmp_path / FILE).write_bytes(damaged)
        try:
            found = checkpoint.load(tmp_path)
        except TrainError as error:
            assert error.hint  # noqa: PT017 - most of 700 flips raise, and quickly
        else:
            quiet.append((place, found))
    for _, (found, tensors) in quiet:  # padding of the header, or the like: it reads the same
        assert found == progress(3)
        assert all(torch.equal(tensors[key], TENSORS[key]) for key in TENSORS)


def test_no_space_left_keeps_the_old_state(tmp_path):
    checkpoint.save(tmp_path, progress(3), TENSORS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(StoreFullError):
            checkpoint.save(tmp_path, progress(4), {"flat": torch.randn(50_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert checkpoint.load(tmp_path)[0] == progress(3)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_killed_while_saving(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        for _ in range(20):
            acknowledged = int(child.stdout.readline())
        child.kill()
        rest = child.stdout.read().split()
    acknowledged = int(rest[-1]) if rest else acknowledged
    found, tensors = checkpoint.load(tmp_path)
    assert found.step in (acknowledged, acknowledged + 1)
    assert torch.equal(tensors["flat"], torch.full((50_000,), float(found.step)))
