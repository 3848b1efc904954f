"""What each part of a run takes on this machine: measured in seconds, on the base's own shapes.

Decoder layers are alike, so a few of the base's tell of all of them: passes of several sizes go
through those, forward and back, round by round until the time is spent, and `plan.time.fit` finds
the rates that explain the medians. The rest (loading, folding, optimiser, checkpoint, tokenizer,
answering, directions of old rows) is timed once each.
"""

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from lamina.bases import families
from lamina.bases.load import empty_model
from lamina.core import machine
from lamina.core.digest import digest_json
from lamina.core.errors import UsageError
from lamina.core.files import atomic_write
from lamina.core.recipe import Recipe
from lamina.core.report import Reporter
from lamina.core.version import __version__
from lamina.data.example import Example, Message
from lamina.flows import runs
from lamina.flows.answering import answers
from lamina.lowrank.attach import attached
from lamina.lowrank.inputs import main_directions
from lamina.lowrank.maths import fold
from lamina.plan.memory import PROTECTED
from lamina.plan.time import Calibration, Tokens, fit, of_passes, pass_amounts
from lamina.stack.compile import (
    DTYPES,
    Compiled,
    base_directory,
    base_format,
    compile_stack,
    device_at_hand,
)
from lamina.stack.resolve import ResolvedStack
from lamina.store.layout import Store
from lamina.tokens.batch import collate
from lamina.tokens.mask import Encoded, encode_all
from lamina.train import checkpoint
from lamina.train.held_out import mean_loss
from lamina.train.job import Job, fresh_factors
from lamina.train.passes import backward
from lamina.train.way import way_through

SECONDS = 20.0
"""A probe takes this long, at most a little more."""
FEW_LAYERS = 4
"""Decoder layers that passes go through."""
ROUNDS = 7
"""Medians of so many are good enough."""
MOST_FACTORS = 20_000_000
"""Trained parameters that the optimiser is timed with, at most."""
SHAPES = ((4, 16, 0.5), (16, 32, 0.5), (4, 128, 0.5), (1, 512, 0.5), (8, 128, 0.1), (8, 128, 0.9),
          (1, 1024, 0.5), (8, 256, 0.5))  # fmt: skip
"""(rows, tokens of each, share of them that is supervised) of the passes."""
OTHER_RANK = 4
"""How many times the rank is the other one that passes are timed at."""
LARGE = 7
"""Which of SHAPES goes through transformers' own modules too, as old rows do before training."""
AT_OTHER_RANK = (2, LARGE)
"""Which of SHAPES those are."""
BEATS = 40
"""Of a pulse."""
WHOLE = 1 << 30
"""Tokens at once: all."""

Clock = Callable[[], float]


def key_of(base: ResolvedStack, dtype: str) -> str:
    """What a calibration holds for: base's shapes, dtype, machine, threads, lamina's version."""
    config = base.base_config
    return digest_json(
        {
            "base": config.identity,
            "dtype": dtype,
            "device": device_at_hand(),
            "machine": platform.node(),
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "version": __version__,
        }
    )


def kept(store: Store, base: ResolvedStack, dtype: str) -> Calibration | None:
    """The calibration that is on record, None without."""
    path = path_of(store, key_of(base, dtype))
    try:
        return Calibration.parse_exactly(path.read_bytes(), str(path))
    except (OSError, ValueError):  # none yet, or of another version: it is measured again
        return None


def keep(store: Store, calibration: Calibration) -> None:
    """Put it where `kept` finds it."""
    path = path_of(store, calibration.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, calibration.to_bytes())


def path_of(store: Store, key: str) -> Path:
    """Where a calibration lies."""
    return store.cache_dir / "rates" / f"{key.removeprefix('sha256:')}.json"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith("model name")), platform.processor())


# -- the probe -------------------------------------------------------------------------------------


def probe(
    store: Store,
    stack: ResolvedStack,
    recipe: Recipe,
    reporter: Reporter,
    *,
    start: float | None = None,
    seconds: float = SECONDS,
    clock: Clock = time.perf_counter,
) -> Calibration:
    """Measure everything, in about `seconds`. `start`: what it took to get here, imports included;
    None: a process is begun for that.

    Raises BaseError, UsageError for targets that name nothing, and where a GPU trains.
    """
    if device_at_hand() != "cpu":
        raise UsageError(
            "a probe measures processors, and a GPU trains here",
            hint="train once: lamina plan goes by layers that were trained on this machine",
        )
    began, resident = clock(), machine.resident()
    rates = {"start": _beginning() if start is None else start}
    base = replace(stack, layers=())
    reporter.say(f"measuring what a step takes on {stack.label}: about {seconds:.0f} seconds")
    dtype = DTYPES[recipe.dtype]
    before = pulse(clock)
    directory = base_directory(store, base.base)
    rates["open"] = _timed(clock, base_format, store, base)[1]
    rates["open"] += _timed(clock, empty_model, directory)[1]
    compiled, first = _timed(clock, partial(compile_stack, store, base, dtype=dtype))
    del compiled
    compiled, rates["load"] = _timed(clock, partial(compile_stack, store, base, dtype=dtype))
    rates["first load"] = max(0.0, first - rates["load"])
    rates["encode"] = _encoding(compiled, clock)
    rates |= _around(compiled, recipe, clock)
    if recipe.dtype == "bfloat16":
        rates["write"] = _writing(compiled, clock)
    left = max(seconds / 8, seconds - (clock() - began))
    found, misfit = _passes(compiled, recipe, clock, left)
    rates |= found
    examined = rates
    if recipe.dtype != "bfloat16":  # in which exams are sat
        del compiled
        bfloat16 = compile_stack(store, base)
        examined = _passes(bfloat16, Recipe(), clock, seconds / 5, learning=False)[0]
    rates |= {
        f"exam{name.removeprefix('look')}": rate
        for name, rate in examined.items()
        if name.startswith("look")
    }
    return Calibration(
        key=key_of(stack, recipe.dtype),
        created=runs.now().isoformat(),
        seconds=round(clock() - began, 2),
        rates=rates,
        misfit=round(misfit, 4),
        pulse=(before + pulse(clock)) / 2,
        resident=resident,
    )


def pulse(clock: Clock = time.perf_counter) -> float:
    """Seconds of a fixed piece of work, about as a run's is made: products in bfloat16, memory that
    is moved, and Python. Takes about a second."""
    a, b = torch.ones(512, 1024).bfloat16(), torch.ones(1024, 1024).bfloat16()
    moved = torch.zeros(4 << 20)

    def beat() -> None:
        for _ in range(4):
            a @ b.T
        moved.add_(1.0)
        json.dumps([{"n": n} for n in range(5000)])

    beat()
    return sum(_timed(clock, beat)[1] for _ in range(BEATS)) / BEATS


def _beginning() -> float:
    """Seconds of a process that imports what a run needs and ends, on the wall."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {__name__}"], check=True)
    return time.perf_counter() - began


def _timed(clock: Clock, work: Callable[..., Any], *given: Any) -> tuple[Any, float]:
    """What `work` gives, and the seconds it takes."""
    began = clock()
    return work(*given), clock() - began


# -- passes ----------------------------------------------------------------------------------------


@contextmanager
def few_layers(compiled: Compiled) -> Iterator[int]:
    """The model with its first layers only, for the length of a block."""
    inner: Any = families.backbone(compiled.model)
    config: Any = compiled.model.config
    whole, count = inner.layers, config.num_hidden_layers
    few = min(FEW_LAYERS, count)
    inner.layers, config.num_hidden_layers = whole[:few], few
    try:
        yield few
    finally:
        inner.layers, config.num_hidden_layers = whole, count


def _rows(shape: tuple[int, int, float], vocabulary: int, seed: int) -> list[Encoded]:
    count, length, share = shape
    draw = np.random.default_rng(seed)
    found = []
    for row in range(count):
        ids = draw.integers(10, vocabulary - 10, length).astype(np.int32)
        mask = np.zeros(length, dtype=np.bool_)
        mask[length - max(1, round(share * length)) :] = True
        mask[0] = False
        found.append(Encoded(ids, mask, str(row)))
    return found


def _tokens(rows: Sequence[Encoded]) -> Tokens:
    return of_passes([[(len(row), int(row.mask[1:].sum())) for row in rows]])


def _job(compiled: Compiled, recipe: Recipe, folder: str) -> Job:
    linears = families.select(families.linears(compiled.model), recipe.targets)
    return Job(compiled.model, linears, (), (), recipe, compiled.pad_id, Path(folder), "")


def _passes(
    compiled: Compiled, recipe: Recipe, clock: Clock, seconds: float, *, learning: bool = True
) -> tuple[dict[str, float], float]:
    """Rates of passes of looking and, with `learning`, of training; the largest misfit of them."""
    ways = {"train": _learn, "look": _look} if learning else {"look": _look}
    plain = recipe.model_copy(update={"above": 0.0, "ranks": None, "checkpointing": False})
    wide = plain.model_copy(update={"rank": OTHER_RANK * plain.rank})
    vocabulary = int(compiled.model.config.vocab_size)  # type: ignore[union-attr,arg-type]
    batches = [_rows(shape, vocabulary, n) for n, shape in enumerate(SHAPES)]
    times: dict[tuple[str, int, int], list[float]] = {}
    first: dict[tuple[str, int, int], float] = {}
    factors: dict[int, int] = {}
    attaching: list[float] = []
    modules: list[float] = []
    end = clock() + seconds
    with few_layers(compiled) as few, tempfile.TemporaryDirectory() as folder:
        for turn in range(ROUNDS + 1):  # in the first, products prepare themselves
            for each, some in ((plain, range(len(batches))), (wide, AT_OTHER_RANK)):
                if turn and clock() > end:
                    break
                job = _job(compiled, each, folder)
                beginning = clock()
                with attached(job.model, fresh_factors(job.linears, each), job.linears) as layer:
                    factors[each.rank] = layer.flat.numel()
                    model = way_through(job, layer, None).model
                    attaching.append(clock() - beginning)
                    if each is plain:
                        batch = collate(batches[LARGE], job.pad_id)
                        modules.append(_timed(clock, mean_loss, job.model, [batch])[1])
                    for n in some:
                        if turn and clock() > end:
                            break
                        for way, work in ways.items():
                            spent = _timed(clock, work, model, batches[n], job.pad_id)[1]
                            if turn:
                                times.setdefault((way, each.rank, n), []).append(spent)
                            else:
                                first[way, each.rank, n] = spent
    met = [first[key] - median(times[key]) for key in times if key[:2] == ("train", plain.rank)]
    # where time was short, what prepared itself is what is known
    medians = first | {key: median(each) for key, each in times.items()}
    found: dict[str, float] = {}
    misfits = []
    for way in ways:
        keys = [key for key in medians if key[0] == way]
        points = [pass_amounts(_tokens(batches[n]), few, factors[rank]) for _, rank, n in keys]
        rates, misfit = fit(points, [medians[key] for key in keys])
        found |= {f"{way}: {name}": rate for name, rate in rates.items()}
        misfits.append(misfit)
    found["new size"] = max(0.0, median(met)) if met else 0.0
    found["attach"] = median(attaching) / few
    slower = median(modules) / medians["look", plain.rank, LARGE]
    looks = [name for name in found if name.startswith("look")]
    found |= {f"plain{name.removeprefix('look')}": slower * found[name] for name in looks}
    return found, max(misfits)


def _learn(model: Any, rows: Sequence[Encoded], pad_id: int) -> None:
    backward(model, rows, [None] * len(rows), pad_id, WHOLE)


def _look(model: Any, rows: Sequence[Encoded], pad_id: int) -> None:
    mean_loss(model, [collate(rows, pad_id)])


# -- what is around them ---------------------------------------------------------------------------


def _encoding(compiled: Compiled, clock: Clock) -> float:
    """Seconds a token."""
    words = "the river carries seven green stones past a window and nobody answers at once "
    examples = [
        Example(
            messages=(
                Message(role="user", content=f"{n} {words * 4}"),
                Message(role="assistant", content=f"{words * 4} {n}"),
            )
        )
        for n in range(64)
    ]
    encode_all(examples[:2], compiled.format, max_length=4096)
    began = clock()
    found = encode_all(examples, compiled.format, max_length=4096)
    return (clock() - began) / max(1, found.report.tokens)


def _around(compiled: Compiled, recipe: Recipe, clock: Clock) -> dict[str, float]:
    """Optimiser, checkpoint, landing, folding, and what old rows ask for."""
    linears = families.select(compiled.linears, recipe.targets)
    rank = recipe.rank
    whole = sum(rank * (x.in_features + x.out_features) for x in linears.values())
    count = min(whole, MOST_FACTORS)
    flat = torch.nn.Parameter(torch.randn(count))
    flat.grad = torch.randn(count)
    adam = torch.optim.AdamW([flat], lr=1e-6, fused=True)

    def step() -> None:
        assert flat.grad is not None
        flat.grad.zero_()
        torch.nn.utils.clip_grad_norm_([flat], 1.0)
        adam.step()

    step()
    rates = {"optimiser": median(_timed(clock, step)[1] for _ in range(3)) / count}
    with tempfile.TemporaryDirectory() as folder:
        state = dict.fromkeys(("flat", "best", "one", "two"), flat.data)
        state = {name: value.clone() for name, value in state.items()}
        progress = checkpoint.Progress(
            step=0, warmup=0, tokens=0, skipped_in_row=0, seconds=0, best_step=0, since_best=0
        )
        took = [_timed(clock, checkpoint.save, Path(folder), progress, state)[1] for _ in range(2)]
    rates["save"] = max(took) / count
    rates["land"] = max(took) / count  # encoded, hashed, written, read and hashed again: as much
    rates |= _of_one_layer(linears, rank, clock)
    return rates


def _of_one_layer(
    linears: Mapping[str, torch.nn.Linear], rank: int, clock: Clock
) -> dict[str, float]:
    """Folding a weight; a layer's directions of old rows; the guard of a trained parameter."""
    first = min(map(families.layer_of, linears))
    some = {name: each for name, each in linears.items() if families.layer_of(name) == first}
    fresh = fresh_factors(some, Recipe(rank=rank))
    weights = [(linear.weight, fresh[name]) for name, linear in some.items() if name in fresh]

    def folded() -> None:
        for weight, factors in weights:
            fold(weight.data, [factors])

    folded()
    rates = {"fold": _timed(clock, folded)[1] / sum(w.numel() for w, _ in weights)}
    sources = {name.rpartition(".")[2]: each.in_features for name, each in some.items()}
    read = [v for k, v in sources.items() if k not in ("k_proj", "v_proj", "up_proj")]
    grams = {size: torch.eye(size) + torch.randn(size, size) / size for size in set(read)}
    took = {
        size: _timed(clock, main_directions, gram @ gram.T, 0.7, 0)[1]
        for size, gram in grams.items()
    }
    rates["directions"] = sum(took[size] for size in read)
    x = {size: torch.randn(512, size) for size in grams}
    products = {
        size: _timed(clock, torch.addmm, gram, x[size].T, x[size])[1] / 512
        for size, gram in grams.items()
    }
    rates["gram"] = sum(products[size] for size in read)
    spans = {size: torch.randn(size, max(1, round(PROTECTED * size))) for size in set(read)}

    def guard() -> None:
        for name in some:
            a_RI = fresh[name].a_RI
            q_IK = spans[a_RI.shape[1]]
            for _ in range(2):
                (a_RI @ q_IK) @ q_IK.T

    guard()
    rates["guard"] = _timed(clock, guard)[1] / sum(f.parameters for f in fresh.values())
    return rates


def _writing(compiled: Compiled, clock: Clock) -> float:
    """Seconds a token that is generated, short prompts included."""
    vocabulary = int(compiled.model.config.vocab_size)  # type: ignore[union-attr,arg-type]
    prompts = [row.ids.tolist() for row in _rows((16, 24, 0.5), vocabulary, 1)]
    said, took = _timed(
        clock, lambda: answers(compiled, prompts, max_new_tokens=12, progress=lambda done: None)
    )
    written = sum(len(ids) + 1 for ids in said)  # and the stop token
    return took / written
