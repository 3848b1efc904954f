"""`lamina train`: data -> tokens -> training -> layer -> store -> stack -> exam -> gate -> name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lamina.core.digest import short
from lamina.core.errors import UsageError
from lamina.core.evidence import COST_TYPE, CostEvidence
from lamina.core.manifests import Descriptor, ExamSpec, LayerConfig
from lamina.core.names import Name
from lamina.core.rates import Rates
from lamina.core.recipe import Recipe
from lamina.core.report import Reporter
from lamina.data import seen
from lamina.data.example import Example
from lamina.data.exams import default_scorers
from lamina.data.read import Dataset, read
from lamina.data.split import Split, split
from lamina.fleet.crew import Size
from lamina.flows import rehearsal, runs, seen_rows, suiting, work
from lamina.flows.examine import Examination, current, examine_for_gate
from lamina.flows.growth import Growth, growth
from lamina.flows.naming import name_stack, new_name
from lamina.flows.questions import exam_of, exams_in
from lamina.stack.resolve import ResolvedStack, of_config, of_descriptor, resolve
from lamina.store.layout import Store


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
    again: bool = False
    """Train although the same work has been done before."""
    stream: bool = False
    """Leave the base's weights in the store, also where they would fit into memory."""
    memory: int | None = None
    """Bytes that training may take; None: what the machine has."""
    rates: Rates | None = None
    """What the machine costs, for the layer's cost on record."""
    beside: Sequence[str] = ()
    """Further files, whose held-out rows are asked as well and whose others are left alone: layers
    of several mixtures of data sit one exam."""


@dataclass(frozen=True)
class Learned:
    """What came of a run."""

    layer: Descriptor
    config: LayerConfig
    stack: ResolvedStack
    name: Name | None
    cost: CostEvidence
    examination: Examination
    growth: Growth | None = None
    """Where it was trained anew although an update would have done: how its rows had grown."""

    @property
    def next_command(self) -> str:
        """What a person may want to type now."""
        if self.stack.draws:
            return f'lamina draw {self.stack.label} "…"'
        return f"lamina chat {self.config.name}"


def prepare(store: Store, request: Request, reporter: Reporter, *, go_on: bool = False) -> runs.Run:
    """Read and split the data, write the run's folder. Nothing is trained yet.

    Where the very same work has been done before (see `work`), its run instead, unless asked to
    train `again`; with `go_on`, also a run of it that has begun, or was about to.

    Raises DataError listing every bad row, UnknownNameError, UsageError.
    """
    name = new_name(store, request.name)
    rehearsal.asked_for(request.rehearsal_set, private=request.private)
    beneath = resolve(store, request.on, force=request.force)
    _check_suits(store, request, name.name, beneath)
    if beneath.draws:
        request = _of_images(request, reporter)
    dataset = read(
        request.data,
        format=request.format,
        skip_bad=request.skip_bad,
        licence=request.licence,
    )
    for fault in dataset.bad:
        reporter.say(f"skipped {fault.file}:{fault.line}: {fault.reason}")
    suiting.check_rows(beneath, dataset.examples)
    parts = _split(dataset, request)
    reporter.say(
        f"{len(dataset.examples)} rows ({dataset.format}): {len(parts.train)} to train on, "
        f"{len(parts.held_out)} held out"
        + (f", {dataset.duplicates} duplicates left out" if dataset.duplicates else "")
    )
    exams = exams_of(request, name.name, parts.held_out)
    suiting.check_scorers(beneath, [spec.scorer for spec, _ in exams])
    spec = spec_of(request, name.name, beneath, dataset, exams)
    files = runs.contents(
        parts.train,
        parts.held_out,
        [data for _, data in exams],
        rehearsal.of_layers(store, beneath.layers),
        seen=seen.pack(map(seen.mark, parts.unused)),
    )
    spec = spec.model_copy(update={"key": work.key_of(spec, files)})
    done = None if request.again else work.done_before(store, spec)
    if done is not None:
        return _taken_up(store, *done, spec, reporter)
    if (begun := work.begun(store, spec, written=go_on)) is not None:
        if go_on:
            begun.asked_again(spec)
            return begun
        reporter.say(f"begun before; to go on there: lamina train --resume {begun.id}")
    marks = frozenset(map(seen.mark, dataset.examples))
    if grown := _growth(store, current(store, spec.name), spec, marks):
        reporter.say(grown.offer(request.data))
    return runs.write(store.runs_dir / spec.id, spec, files)


def _check_suits(store: Store, request: Request, name: str, beneath: ResolvedStack) -> None:
    """Raise UsageError for what means nothing over such a stack, or for its successor."""
    suiting.check_options(beneath, request.recipe, stream=request.stream, memory=request.memory)
    older = current(store, name)
    if older is not None:
        old = of_descriptor(store, store.describe(older), label=name, force=True)
        suiting.check_successor(beneath, old)


def _split(dataset: Dataset, request: Request) -> Split:
    """The rows to train on, which are the dataset's, and those to hold out."""
    share, most = request.recipe.held_out, request.recipe.held_out_max
    if not request.beside:
        return split(dataset.examples, share, most)
    whole = read((*request.data, *request.beside), format=request.format, skip_bad=request.skip_bad)
    parts, own = split(whole.examples, share, most), set(map(seen.mark, dataset.examples))
    return replace(parts, train=tuple(row for row in parts.train if seen.mark(row) in own))


def _of_images(request: Request, reporter: Reporter) -> Request:
    """The same where a stack draws: it writes no rows in place of private ones."""
    if request.rehearsal_set == "synthesised":
        raise UsageError(
            f"{request.on} draws: it writes no rows in place of its own",
            hint="--rehearsal-set sample, or none",
        )
    if not request.private or request.rehearsal_set is not None:
        return request
    reporter.say("private images: nothing travels for whoever trains above")
    return replace(request, rehearsal_set="none")


def spec_of(
    request: Request,
    name: str,
    beneath: ResolvedStack,
    dataset: Dataset,
    exams: Sequence[tuple[ExamSpec, bytes]],
) -> runs.RunSpec:
    """What a run is asked to do, once its rows are known."""
    return runs.RunSpec(
        id=runs.new_id(name),
        created=runs.moment(),
        name=name,
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
        rehearsal_set=rehearsal.asked_for(request.rehearsal_set, private=request.private),
        accept_regression=request.accept_regression,
        force=request.force,
        stream=request.stream,
        memory=request.memory,
        rates=request.rates,
    )


def _taken_up(
    store: Store, run: runs.Run, result: runs.RunResult, spec: runs.RunSpec, reporter: Reporter
) -> runs.Run:
    """A run that is done, as its work is asked for now; only the name may be left to move."""
    with run.lock():
        run.asked_again(spec)
        if current(store, spec.name) != result.stack:  # as after landing: kept, and not yet named
            store.add_root(store.describe(result.layer))
            run.finish(result.model_copy(update={"name": None}))
    reporter.say(f"nothing changed since layer @{short(result.layer)}: kept (--again trains anew)")
    return run


def _growth(
    store: Store, older: str | None, spec: runs.RunSpec, marks: frozenset[bytes]
) -> Growth | None:
    """How a training's rows differ from what the stack with the digest `older` has seen."""
    if older is None or spec.origin != "trained":
        return None
    stack = of_descriptor(store, store.describe(older), label=spec.name, force=True)
    return growth(store, stack, spec.stack.layers, spec.name, marks)


def exams_of(
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
    crew: Size | None = None,
    cluster: str | None = None,
) -> Learned:
    """Train a prepared run to its end, wherever it stands, and land, examine and name the result.

    Every stage can be killed and taken up again: what is already done is found by digest. Of a
    run that is finished only the name is looked at again: it moves back if it has moved on. A
    `crew` trains it together, on the Ray cluster with the address `cluster` (see `crewed`).
    Raises TrainInterrupted, TrainError, FleetError, GateError (the layer is kept, the name is not
    moved).
    """
    with run.lock():
        spec = run.spec
        if spec.part_of is not None:
            raise UsageError(f"run {run.id} is part of a longer work", hint=spec.part_of)
        if crew is not None and run.result is None:
            from lamina.flows.crewed import train_together

            train_together(store, run, reporter, should_stop, crew, cluster)
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
    from lamina.flows.job import (
        train_and_land,  # torch, which recognising what is there does without
    )

    beneath = _beneath(store, spec)
    layer, stack = train_and_land(store, run, spec, beneath, reporter, should_stop)
    run.finish(runs.RunResult(layer=layer.digest, stack=stack.digest, name=None))
    return layer, stack


def _beneath(store: Store, spec: runs.RunSpec) -> ResolvedStack:
    """The stack that a run trains over, as it was when the run began."""
    return of_config(store, spec.stack, label=spec.on, force=spec.force)


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
    top = stack.layers[-1]
    grown = _growth(store, examination.previous, spec, seen_rows.of_layer(store, top))
    return Learned(layer, top.config, stack, name, cost, examination, grown)
