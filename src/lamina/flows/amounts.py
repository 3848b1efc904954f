"""What a training will do, in amounts for `plan.time`: the loop's own plan, counted, not run.

The same functions that the run will use read the rows, split, encode and batch them, and decide
steps and evaluations; only the arithmetic is left out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lamina.bases.load import empty_model
from lamina.core.recipe import Recipe
from lamina.data.read import Dataset
from lamina.data.split import split
from lamina.exams.scorers.registry import SCORERS
from lamina.exams.tasks import Exam
from lamina.flows import fitting, learn, rehearsal, runs
from lamina.flows.examine import on_record
from lamina.flows.examinee import BATCH_TOKENS
from lamina.flows.examinee import MAX_LENGTH as EXAM_LENGTH
from lamina.flows.pools import pools_of
from lamina.flows.questions import carried
from lamina.plan.memory import Setting, Shapes, Work
from lamina.plan.time import Run, Tokens, of_passes
from lamina.stack.compile import base_directory, base_format
from lamina.stack.resolve import ResolvedStack
from lamina.store.layout import Store
from lamina.tokens.mask import Encoded, encode_all
from lamina.tokens.pack import plan_batches
from lamina.train.fused import FILLED
from lamina.train.passes import split_rows
from lamina.train.plan import Plan
from lamina.train.protect import MOST_ROWS
from lamina.train.schedule import eval_interval, planned_steps

MOST_STEPS = 3000
"""Steps that are counted one by one; of longer runs the mean of these stands for the rest."""


@dataclass(frozen=True)
class Planned:
    """A training that was thought through and not begun."""

    run: Run
    shapes: Shapes
    work: Work
    rows: int
    """Rows to train on."""
    tokens: int
    """Tokens of one pass over them."""
    supervised: int


def of_training(
    store: Store, beneath: ResolvedStack, request: learn.Request, dataset: Dataset
) -> Planned:
    """What training a layer over a stack on these rows does.

    Raises DataError where no row leaves a label, UsageError for targets that name nothing.
    """
    recipe = request.recipe
    parts = split(dataset.examples, recipe.held_out, recipe.held_out_max)
    exams = learn.exams_of(request, request.name, parts.held_out)
    spec = learn.spec_of(request, request.name, beneath, dataset, exams)
    chat = base_format(store, beneath)
    length = recipe.max_length
    train = encode_all(parts.train, chat, max_length=length, overlong=recipe.overlong)
    held, old = (
        encode_all(some, chat, max_length=length, overlong="truncate").rows
        for some in (
            parts.held_out[: recipe.eval_rows], rehearsal.of_layers(store, beneath.layers),
        )
    )  # fmt: skip
    rows = fitting.Rows(train, held, (), old)
    directory = base_directory(store, beneath.base)
    shapes = fitting.shapes_of(empty_model(directory), recipe)
    asked = encode_all(parts.held_out, chat, max_length=EXAM_LENGTH, overlong="truncate").rows
    inherited = carried(store, beneath.layers)
    run = _training(spec, shapes, rows)
    weights = sum(each.inputs * each.outputs for each in shapes.linears)
    run = replace(
        run,
        weights=weights,
        folds=int(bool(beneath.layers)),
        encoded=train.report.tokens + sum(map(len, (*held, *old))),
        **_exams(spec, shapes, asked, inherited, _sat(store, beneath, spec), beneath),
    )
    setting = Setting(recipe.pass_tokens, recipe.checkpointing)
    return Planned(
        run=run,
        shapes=shapes,
        work=fitting.work_of(spec, beneath, rows, setting),
        rows=len(parts.train),
        tokens=train.report.tokens,
        supervised=train.report.supervised_tokens,
    )


def _training(spec: runs.RunSpec, shapes: Shapes, rows: fitting.Rows) -> Run:
    recipe = spec.recipe
    own, pools = rows.train.rows, pools_of(spec, rows.older, rows.parents)
    old = [*rows.older, *rows.parents]
    every = (*own, *old)
    plan = Plan(recipe, every, len(own), pools)
    steps = planned_steps(recipe, plan.first_pass)
    if recipe.stop_after is not None:
        steps = min(steps, recipe.stop_after)
    counted = min(steps, MOST_STEPS)
    learned, seen = Tokens(), set()
    passes = [*_batched(rows.held, recipe.at_once)]
    for step in range(counted):
        chosen = plan.batch(step)
        seen |= set(chosen)
        parts = _parts([every[i] for i in chosen], recipe.at_once)
        passes += parts
        learned += _tokens(parts, shapes)
    learned = learned.times(steps / counted)
    looked, times = _evaluations(recipe, rows.held, steps, shapes)
    below = shapes.trained_layers < shapes.layers
    distinct = [every[i] for i in seen] + list(rows.held)
    said, guarded = _old_rows(recipe, plan, every, len(own), old, steps, shapes)
    return Run(
        layers=shapes.layers,
        trained_layers=shapes.trained_layers,
        factors=shapes.factors,
        weights=0,
        steps=steps,
        learned=learned,
        looked=looked.times(times),
        sizes=len({-(-sum(map(len, some)) // FILLED) for some in passes}),
        below=_tokens([[row] for row in distinct], shapes) if below else Tokens(),
        checkpointing=recipe.checkpointing,
        said=said,
        protect=bool(recipe.protect and old),
        guarded=guarded,
    )


def _evaluations(
    recipe: Recipe, held: Sequence[Encoded], steps: int, shapes: Shapes
) -> tuple[Tokens, int]:
    """One look at the held-out rows, and how many there are."""
    if not held:
        return Tokens(), 0
    every = eval_interval(recipe, steps, sum(map(len, held)))
    ends = steps % every != 0  # the last step is looked at, whatever the interval
    return _tokens(_batched(held, recipe.at_once), shapes), 1 + steps // every + ends


def _old_rows(
    recipe: Recipe,
    plan: Plan,
    every: Sequence[Encoded],
    own: int,
    old: Sequence[Encoded],
    steps: int,
    shapes: Shapes,
) -> tuple[Tokens, Tokens]:
    """Old rows of which the stack says something first, and those whose inputs are kept clear.

    Both go through transformers' modules, which pad.
    """
    if not old:
        return Tokens(), Tokens()
    padded = replace(shapes, fused=False)
    groups = plan.old_rows(steps) if recipe.rehearse == "parent" and recipe.rehearsal else []
    said = [
        batch
        for group in groups
        for batch in _batched([every[i] for i in group if i >= own], recipe.at_once)
    ]
    some = list(old)[:: max(1, len(old) // MOST_ROWS)][:MOST_ROWS] if recipe.protect else []
    return _tokens(said, padded), _tokens(_batched(some, recipe.at_once), padded)


def _sat(store: Store, beneath: ResolvedStack, spec: runs.RunSpec) -> bool:
    """Whether the stack beneath has sat the new exams before: the same questions, in other runs."""
    known = on_record(store, beneath.digest, own=True)
    return all((e.items, e.scorer, e.max_new_tokens) in known for e in spec.exams)


def _exams(
    spec: runs.RunSpec,
    shapes: Shapes,
    asked: Sequence[Encoded],
    inherited: Sequence[Exam],
    sat: bool,
    beneath: ResolvedStack,
) -> dict[str, Any]:
    """The new stack sits its own exams and the inherited ones; the one beneath the new ones alone,
    and not those either that it has `sat`."""
    own, theirs = spec.exams, [exam.spec for exam in inherited if exam.items is not None]
    if not own and not theirs:
        return {}
    asking = bool(own) and not sat
    one = _tokens(_batched(asked, BATCH_TOKENS), shapes)
    each = one.times(1 / len(asked)) if asked else Tokens(1, 256, 256**2, 128)
    sittings = [(exam, 1 + asking) for exam in own] + [(exam, 1) for exam in theirs]
    scored, written = Tokens(), 0
    for exam, times in sittings:
        if SCORERS[exam.scorer].generates:
            answer = min(each.supervised or exam.max_new_tokens, exam.max_new_tokens)
            written += times * exam.rows * answer
        else:
            scored += one.times(times) if exam in own else each.times(times * exam.rows)
    return {
        "exam": scored,
        "written": written,
        "exam_loads": 1 + asking,
        "exam_folds": 1 + (asking and bool(beneath.layers)),
    }


# -- counting --------------------------------------------------------------------------------------


def _parts(rows: Sequence[Encoded], at_once: int) -> list[Sequence[Encoded]]:
    return [rows[part] for part in split_rows([len(row) for row in rows], at_once)]


def _batched(rows: Sequence[Encoded], at_once: int) -> list[Sequence[Encoded]]:
    plan = plan_batches([len(row) for row in rows], at_once, seed=0, epoch=0)
    return [[rows[i] for i in batch] for batch in plan]


def _tokens(passes: Iterable[Sequence[Encoded]], shapes: Shapes) -> Tokens:
    """Through transformers' own modules a row is as long as its batch's longest."""
    found = []
    for rows in passes:
        longest = max(map(len, rows), default=0)
        found.append([
            (len(row) if shapes.fused else longest, int(row.mask[1:].sum())) for row in rows
        ])  # fmt: skip
    return of_passes(found)
