"""A prepared run becomes a trained layer: stack compiled, rows encoded, trained, landed.

Apart from `learn`, because this is what needs torch: what is already there is found without it.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from lamina.bases import families
from lamina.bases.sharded import shards_of
from lamina.bases.streamed import reading_cost
from lamina.core import heap
from lamina.core.digest import digest_json
from lamina.core.errors import DataError, LaminaError
from lamina.core.manifests import Descriptor
from lamina.core.report import Reporter
from lamina.flows import fitting, painting, rehearsal, runs, work
from lamina.flows.pools import pools_of
from lamina.flows.trained import land
from lamina.stack.compile import (
    DTYPES,
    Compiled,
    base_format,
    compile_stack,
    device_at_hand,
    stored_factors,
)
from lamina.stack.resolve import ResolvedStack
from lamina.store.layout import Store
from lamina.tokens.mask import EncodeReport, encode_all
from lamina.tokens.template import ChatFormat
from lamina.train.crew import Alone, Crew
from lamina.train.events import EventLog
from lamina.train.job import Job, Shared
from lamina.train.loop import train


def train_and_land(
    store: Store,
    run: runs.Run,
    spec: runs.RunSpec,
    beneath: ResolvedStack,
    reporter: Reporter,
    should_stop: Callable[[], bool],
) -> tuple[Descriptor, ResolvedStack]:
    """Train a run to its end, from its checkpoint where there is one: its layer and stack.

    Raises TrainInterrupted, TrainError, DataError, UsageError.
    """
    made = train_in_crew(store, run, spec, beneath, reporter, should_stop, Alone())
    assert made is not None
    return made


def train_in_crew(
    store: Store,
    run: runs.Run,
    spec: runs.RunSpec,
    beneath: ResolvedStack,
    reporter: Reporter,
    should_stop: Callable[[], bool],
    crew: Crew,
) -> tuple[Descriptor, ResolvedStack] | None:
    """The same as one of a crew that shares the store: worker 0 writes, the others get None."""
    began = time.perf_counter()
    first = crew.rank == 0
    draws = beneath.draws
    try:
        rows, encoded, fitted = None, began, fitting.Fitted(spec)
        if not draws:
            rows = rows_of(store, run, spec, base_format(store, beneath), beneath)
            encoded = time.perf_counter()
            fitted = fitting.fit(store, run, spec, beneath, rows, reporter, crew=crew)
        spec, stored = fitted.spec, fitted.spec.stream or fitted.held == "stored"
        reporter.say(f"folding {len(beneath.layers)} layers into a copy of the base")
        compiled = compile_stack(
            store,
            beneath,
            dtype=DTYPES[spec.recipe.dtype],
            device="cpu" if stored else device_at_hand(),
            stream=True if stored else None,
            shard=fitted.held == "shared",
        )
        say_reading(compiled, reporter)
        shards = shards_of(compiled.linears.values())
        crew.hold(shards)
        if draws:
            job, counts = painting.job_of(store, run, spec, compiled, reporter)
        else:
            job, counts = job_of(store, run, spec, compiled, rows)
    except LaminaError:
        if crew.size == 1 and not (run.directory / runs.EVENTS).exists():
            shutil.rmtree(run.directory)  # nothing was trained; the request itself was wrong
        raise
    _say_counts(counts, reporter, "places of latents" if draws else "tokens")
    events = EventLog(run.directory / runs.EVENTS if first else None, reporter.event)
    events.emit(
        "ready",
        load_seconds=round(time.perf_counter() - encoded, 2),
        encode_seconds=round(encoded - began, 2),
    )
    if shards is not None:
        events.emit(
            "shards", workers=crew.size, bytes=shards.bytes, bytes_per_worker=shards.share_bytes
        )
    shared = None if spec.private or draws else _shared(store, compiled)
    job = replace(job, prefix_memory=fitted.prefix_memory, shared=shared)
    outcome = train(job, events, should_stop, crew)
    try:
        landed = None
        if first:
            landed = land(store, run, spec, compiled, outcome, counts, reporter, should_stop)
    finally:
        if shards is not None:  # a rehearsal set is written with everybody's share of the base
            crew.follow(torch.zeros(1))
    del compiled, job, outcome
    heap.give_back()  # the exam loads the stack anew
    return landed


def _shared(store: Store, compiled: Compiled) -> Shared:
    """Where activations are left to later runs over the same stack."""
    key = {
        "base": compiled.stack.base.digest,
        "layers": [(layer.digest, layer.weight) for layer in compiled.stack.layers],
        "dtype": str(compiled.dtype),
        **work.code(),
    }
    return Shared(store.cache_dir / "prefixes", digest_json(key))


def job_of(
    store: Store,
    run: runs.Run,
    spec: runs.RunSpec,
    compiled: Compiled,
    rows: fitting.Rows | None = None,
) -> tuple[Job, EncodeReport]:
    """A run over a compiled stack: its rows (encoded here, unless given) and the factors that it
    starts from.

    Raises DataError, UsageError for unknown targets and ranks of none.
    """
    recipe = spec.recipe
    rows = rows or rows_of(store, run, spec, compiled.format, compiled.stack)
    linears = families.select(compiled.linears, recipe.targets)
    if spec.start is None:
        below = families.lowest(linears, recipe.above)
        linears = {name: linear for name, linear in linears.items() if name not in below}
    if recipe.ranks:
        families.module_ranks(linears, recipe.rank, recipe.ranks)  # faults before any training
    job = Job(
        model=compiled.model,
        linears=linears,
        rows=rows.train.rows,
        rehearsal=pools_of(spec, rows.older, rows.parents),
        eval_rows=rows.held,
        recipe=recipe,
        pad_id=compiled.pad_id,
        directory=run.directory,
        resume_with=spec.part_of or f"lamina train --resume {run.id}",
        start=None if spec.start is None else stored_factors(store, spec.start),
    )
    return job, rows.train.report


def rows_of(
    store: Store, run: runs.Run, spec: runs.RunSpec, chat: ChatFormat, beneath: ResolvedStack
) -> fitting.Rows:
    """A run's rows, encoded. Raises DataError."""
    recipe = spec.recipe
    train_set = encode_all(
        run.rows(runs.TRAIN_ROWS), chat, max_length=recipe.max_length, overlong=recipe.overlong
    )
    if not train_set.rows:
        raise DataError(
            f"none of {train_set.report.rows} rows leaves a token to learn",
            hint="raise max_length, lower held_out, or give rows with answers",
        )
    old = run.rows(runs.REHEARSAL_ROWS)
    own = len(rehearsal.of_layers(store, beneath.layers))
    looked_at = run.rows(runs.HELD_ROWS)[: recipe.eval_rows]
    held, older, parents = (
        encode_all(some, chat, max_length=recipe.max_length, overlong="truncate").rows
        for some in (looked_at, old[own:], old[:own])
    )
    return fitting.Rows(train_set, held, older, parents)


def _say_counts(counts: EncodeReport, reporter: Reporter, what: str) -> None:
    reporter.say(f"{counts.tokens} {what}, {counts.supervised_tokens} of them supervised")
    if counts.overlong:
        reporter.say(
            f"{counts.overlong} rows are longer than max_length: {counts.windows} windows, "
            f"{counts.lost} rows left without a label"
        )


def say_reading(compiled: Compiled, reporter: Reporter) -> None:
    """What it costs to leave the base's weights in the store, before anything is trained; nothing
    where they are in memory. Raises OSError."""
    cost = reading_cost(compiled.linears.values())
    if cost is None:
        return
    reporter.say(
        f"the weights of the decoder ({cost.bytes / 1e9:.2f} GB) stay in the store: a step reads "
        f"{2 * cost.bytes / 1e9:.2f} GB, at {cost.rate / 1e9:.2f} GB/s (measured now) "
        f"{2 * cost.seconds:.1f} s of reading beside its arithmetic, an evaluation half of it for "
        "each batch"
    )
