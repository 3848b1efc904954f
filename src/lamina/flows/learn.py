"""`lamina train`: data -> tokens -> training -> layer -> store -> stack -> exam -> gate -> name."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lamina.bases import families
from lamina.core.digest import short
from lamina.core.errors import DataError, LaminaError, UsageError
from lamina.core.manifests import (
    COST_TYPE,
    CostEvidence,
    Descriptor,
    ExamSpec,
    LayerConfig,
)
from lamina.core.names import Name
from lamina.core.recipe import Recipe
from lamina.core.report import Reporter
from lamina.data import seen
from lamina.data.example import Example
from lamina.data.exams import default_scorers
from lamina.data.read import read
from lamina.data.split import split
from lamina.flows import rehearsal, runs
from lamina.flows.examine import Examination, examine_for_gate
from lamina.flows.naming import name_stack, new_name
from lamina.flows.questions import exam_of, exams_in
from lamina.flows.trained import land
from lamina.stack.compile import DTYPES, Compiled, compile_stack, device_at_hand, stored_factors
from lamina.stack.resolve import ResolvedStack, of_config, of_descriptor, resolve
from lamina.store.layout import Store
from lamina.tokens.mask import EncodeReport, encode_all
from lamina.train.events import EventLog
from lamina.train.loop import Job, train
from lamina.train.rehearse import Pool, Taught


@dataclass(frozen=True)
class Request:
    """What `lamina train` was asked to do."""

    on: str
    data: Sequence[str]
    name: str
    recipe: Recipe
    format: str | None = None
    skip_bad: bool = False
    private: bool = False
    rehearsal_set: str | None = None
    """sample, synthesised or none; None: a sample, or synthesised when private."""
    licence: str | None = None
    author: str | None = None
    exam_files: Sequence[str] = ()
    accept_regression: str | None = None
    force: bool = False


@dataclass(frozen=True)
class Learned:
    """What came of a run."""

    layer: Descriptor
    config: LayerConfig
    stack: ResolvedStack
    name: Name | None
    cost: CostEvidence
    examination: Examination


def prepare(store: Store, request: Request, reporter: Reporter) -> runs.Run:
    """Read and split the data, write the run's folder. Nothing is trained yet.

    Raises DataError listing every bad row, UnknownNameError, UsageError.
    """
    name = new_name(store, request.name)
    rehearsal_set = rehearsal.asked_for(request.rehearsal_set, private=request.private)
    beneath = resolve(store, request.on, force=request.force)
    dataset = read(
        request.data,
        format=request.format,
        skip_bad=request.skip_bad,
        licence=request.licence,
    )
    for fault in dataset.bad:
        reporter.say(f"skipped {fault.file}:{fault.line}: {fault.reason}")
    parts = split(dataset.examples, request.recipe.held_out, request.recipe.held_out_max)
    reporter.say(
        f"{len(dataset.examples)} rows ({dataset.format}): {len(parts.train)} to train on, "
        f"{len(parts.held_out)} held out"
        + (f", {dataset.duplicates} duplicates left out" if dataset.duplicates else "")
    )
    exams = _exams(request, name.name, parts.held_out)
    spec = runs.RunSpec(
        id=runs.new_id(name.name),
        created=runs.now().isoformat(),
        name=name.name,
        on=request.on,
        stack=beneath.config,
        recipe=request.recipe,
        format=dataset.format,
        files=dataset.files,
        sources=tuple(str(Path(s).absolute()) if Path(s).exists() else s for s in request.data),
        duplicates=dataset.duplicates,
        skipped=len(dataset.bad),
        licence=dataset.licence,
        author=request.author,
        exams=tuple(exam for exam, _ in exams),
        private=request.private,
        rehearsal_set=rehearsal_set,
        accept_regression=request.accept_regression,
        force=request.force,
    )
    directory = store.runs_dir / spec.id
    return runs.create(
        directory,
        spec,
        parts.train,
        parts.held_out,
        [data for _, data in exams],
        rehearsal.of_layers(store, beneath.layers),
        seen=seen.pack(map(seen.mark, parts.unused)),
    )


def _exams(
    request: Request, name: str, held_out: Sequence[Example]
) -> list[tuple[ExamSpec, bytes]]:
    """The layer's own exam, one spec a scorer, from held-out rows and --exam files."""
    made: list[tuple[ExamSpec, bytes]] = []
    if held_out:
        for scorer in request.recipe.exams or default_scorers(held_out):
            made.append(exam_of(name, scorer, held_out, private=request.private))
    for file in request.exam_files:
        exam = f"{name}.{_slug(Path(file).stem)}"
        made += exams_in(file, exam, request.recipe.exams, private=request.private)
    return made


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-") or "exam"


def execute(
    store: Store,
    run: runs.Run,
    reporter: Reporter,
    should_stop: Callable[[], bool] = lambda: False,
) -> Learned:
    """Train a prepared run to its end, wherever it stands, and land, examine and name the result.

    Every stage can be killed and taken up again: what is already done is found by digest.
    Raises TrainInterrupted, TrainError, GateError (the layer is kept, the name is not moved).
    """
    with run.lock():
        done = run.result
        if done is not None and done.name is not None:
            raise UsageError(
                f"run {run.id} is finished: {done.name}", hint=f"lamina show {done.name}"
            )
        spec = run.spec
        if spec.part_of is not None:
            raise UsageError(f"run {run.id} is part of a longer work", hint=spec.part_of)
        layer, stack = _landed(store, run, spec, reporter, should_stop)
        return _examine_and_name(store, run, spec, layer, stack, reporter)


def landed(
    store: Store,
    run: runs.Run,
    reporter: Reporter,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Descriptor, ResolvedStack]:
    """Train a run that is part of a longer work to its end: its layer and stack, unnamed."""
    with run.lock():
        return _landed(store, run, run.spec, reporter, should_stop)


def _landed(
    store: Store,
    run: runs.Run,
    spec: runs.RunSpec,
    reporter: Reporter,
    should_stop: Callable[[], bool],
) -> tuple[Descriptor, ResolvedStack]:
    done = run.result
    if done is not None and store.has(done.layer):  # landed earlier; only the gate is left
        layer = store.describe(done.layer)
        return layer, of_descriptor(store, layer, label=spec.name, force=spec.force)
    layer, stack = _train_and_land(store, run, spec, reporter, should_stop)
    run.finish(runs.RunResult(layer=layer.digest, stack=stack.digest, name=None))
    return layer, stack


def _train_and_land(
    store: Store,
    run: runs.Run,
    spec: runs.RunSpec,
    reporter: Reporter,
    should_stop: Callable[[], bool],
) -> tuple[Descriptor, ResolvedStack]:
    beneath = _beneath(store, spec)
    reporter.say(f"folding {len(beneath.layers)} layers into a copy of the base")
    compiled = compile_stack(
        store, beneath, dtype=DTYPES[spec.recipe.dtype], device=device_at_hand()
    )
    try:
        job, counts = job_of(store, run, spec, compiled)
    except LaminaError:
        if not (run.directory / runs.EVENTS).exists():
            shutil.rmtree(run.directory)  # nothing was trained; the request itself was wrong
        raise
    _say_counts(counts, reporter)
    events = EventLog(run.directory / runs.EVENTS, reporter.event)
    outcome = train(job, events, should_stop)
    return land(store, run, spec, compiled, outcome, counts, reporter, should_stop)


def _beneath(store: Store, spec: runs.RunSpec) -> ResolvedStack:
    """The stack that a run trains over, as it was when the run began."""
    return of_config(store, spec.stack, label=spec.on, force=spec.force)


def job_of(
    store: Store, run: runs.Run, spec: runs.RunSpec, compiled: Compiled
) -> tuple[Job, EncodeReport]:
    """A run over a compiled stack: its rows encoded, the factors that it starts from.

    Raises DataError, UsageError for unknown targets and ranks of none.
    """
    recipe = spec.recipe
    train_set = encode_all(
        run.rows(runs.TRAIN_ROWS),
        compiled.format,
        max_length=recipe.max_length,
        overlong=recipe.overlong,
    )
    if not train_set.rows:
        raise DataError(
            f"none of {train_set.report.rows} rows leaves a token to learn",
            hint="raise max_length, lower held_out, or give rows with answers",
        )
    looked_at = run.rows(runs.HELD_ROWS)[: recipe.eval_rows]
    eval_set = encode_all(
        looked_at, compiled.format, max_length=recipe.max_length, overlong="truncate"
    )
    linears = families.select(compiled.linears, recipe.targets)
    if recipe.ranks:
        families.module_ranks(linears, recipe.rank, recipe.ranks)  # faults before any training
    job = Job(
        model=compiled.model,
        linears=linears,
        rows=train_set.rows,
        rehearsal=_pools(store, run, spec, compiled),
        eval_rows=eval_set.rows,
        recipe=recipe,
        pad_id=compiled.pad_id,
        directory=run.directory,
        resume_with=spec.part_of or f"lamina train --resume {run.id}",
        start=None if spec.start is None else stored_factors(store, spec.start),
    )
    return job, train_set.report


def _pools(store: Store, run: runs.Run, spec: runs.RunSpec, compiled: Compiled) -> tuple[Pool, ...]:
    """A run's old rows: those of the layer's own older versions, and those of the layers beneath.

    An update's recipe is about the first. The others keep the share that a new layer gives them,
    and teach what the stack says of them.
    """
    recipe, rows = spec.recipe, run.rows(runs.REHEARSAL_ROWS)
    beneath = len(rehearsal.of_layers(store, compiled.stack.layers))
    older, parents = (
        encode_all(some, compiled.format, max_length=recipe.max_length, overlong="truncate").rows
        for some in (rows[beneath:], rows[:beneath])
    )
    taught: Taught = "labels" if recipe.rehearse == "labels" else "stack"
    by: dict[str, Taught] = {"updated": "stack", "distilled": "parents"}
    share = recipe.rehearsal
    if spec.origin == "updated":
        share = min(share, Recipe().rehearsal)
    return (
        Pool(older, recipe.rehearsal, taught),
        Pool(parents, share, by.get(spec.origin, taught)),
    )


def _say_counts(counts: EncodeReport, reporter: Reporter) -> None:
    reporter.say(f"{counts.tokens} tokens, {counts.supervised_tokens} of them supervised")
    if counts.overlong:
        reporter.say(
            f"{counts.overlong} rows are longer than max_length: {counts.windows} windows, "
            f"{counts.lost} rows left without a label"
        )


def _examine_and_name(
    store: Store,
    run: runs.Run,
    spec: runs.RunSpec,
    layer: Descriptor,
    stack: ResolvedStack,
    reporter: Reporter,
) -> Learned:
    beneath = _beneath(store, spec)
    examination = examine_for_gate(store, stack, beneath, spec.name, reporter)
    version = name_stack(
        store,
        stack,
        Name(spec.name),
        examination,
        override=spec.accept_regression,
        author=spec.author,
        kept_as=f"@{short(layer.digest)}",
        retry_with=f'lamina train --resume {run.id} --accept-regression "why"',
    )
    name = Name(spec.name).at_version(version)
    run.finish(runs.RunResult(layer=layer.digest, stack=stack.digest, name=str(name)))
    store.remove_root(layer.digest)  # the named stack keeps it from here on
    cost = store.evidence(layer.digest, COST_TYPE, CostEvidence)[-1]
    config = stack.layers[-1].config
    return Learned(layer, config, stack, name, cost, examination)
