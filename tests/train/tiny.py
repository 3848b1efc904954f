"""A model of one decoder layer in float32, rows of random tokens, and jobs on them."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import torch

from lamina.bases import families
from lamina.bases.load import load
from lamina.core.recipe import Recipe
from lamina.tokens.mask import Encoded
from lamina.train.events import EventLog
from lamina.train.job import Job
from lamina.train.loop import train
from lamina.train.rehearse import Pool
from tests.pico import SMALLEST_VOCAB, pico_base

PAD = 3


@functools.cache
def folder(family: str = "llama", **config) -> Path:
    """A pico base, written once a session."""
    path = Path(tempfile.mkdtemp(prefix="lamina-tiny-")) / family
    return pico_base(path, family=family, vocab=SMALLEST_VOCAB, hidden=32, layers=1, **config)


def model(family: str = "llama", dtype: torch.dtype = torch.float32, **config) -> torch.nn.Module:
    """A fresh model in memory."""
    return load(folder(family, **config), dtype=dtype).model


def row(length: int, seed: int, *, first: int = 8) -> Encoded:
    """A row of random tokens from `first` on, whose second half is supervised."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(first, SMALLEST_VOCAB, length, dtype=np.int32)
    return Encoded(ids, np.arange(length) >= max(1, length // 2), f"row {seed}")


def rows(count: int = 12, seed: int = 0) -> list[Encoded]:
    """Rows of 6 to 17 tokens."""
    return [row(6 + (5 * i) % 12, seed + i) for i in range(count)]


def recipe(**changes) -> Recipe:
    """Six steps of a few rows each."""
    values = {"rank": 2, "lr": 1e-2, "steps": 6, "batch_tokens": 48, "dtype": "float32"} | changes
    return Recipe(**values)


def job(directory: Path, *, on: torch.nn.Module | None = None, **changes) -> Job:
    """A job in a folder of its own; `recipe` keys and `Job` fields alike in `changes`,
    rehearsal rows as `old`, or as `pools`."""
    directory.mkdir(parents=True, exist_ok=True)
    on = on or model()
    changes = {"rehearsal": 0.0, "protect": 0.0} | changes
    old, pools = changes.pop("old", ()), changes.pop("pools", None)
    fields = {"rows": rows(), "eval_rows": rows(4, seed=100), "start": None, "said": None}
    fields |= {key: changes.pop(key) for key in tuple(changes) if key in fields}
    how = changes.pop("recipe", None) or recipe(**changes)
    if pools is None:
        taught = "labels" if how.rehearse == "labels" else "stack"
        pools = (Pool(old, how.rehearsal, taught),)
    return Job(
        model=on,
        linears=families.linears(on),
        recipe=how,
        pad_id=PAD,
        directory=directory,
        resume_with="go on",
        rehearsal=pools,
        **fields,
    )


def run(work: Job, should_stop=lambda: False):
    """Train; the outcome and the events."""
    events: list[dict] = []
    outcome = train(work, EventLog(None, events.append), should_stop)
    return outcome, events


def stop_after(calls: int):
    """Says stop when it has been asked that many times."""
    left = [calls]

    def ask() -> bool:
        left[0] -= 1
        return left[0] < 0

    return ask


def raw(outcome) -> dict[str, tuple[bytes, bytes]]:
    """The factors' bytes."""
    return {
        name: (f.a_RI.numpy().tobytes(), f.b_OR.numpy().tobytes())
        for name, f in outcome.factors.items()
    }
