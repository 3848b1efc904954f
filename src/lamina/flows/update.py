"""`lamina update`: a new version of a layer from new rows, without the cost of training it anew.

It starts from the old version's factors and learns the new rows beside old ones: all rows of older
versions where their files are still at hand, else the rehearsal set that travels, and the
rehearsal sets of the layers beneath. Rows that were seen before are known by hash and left out. A
new row that asks an old question and answers it otherwise replaces it: in the rehearsal set and in
the exam. The rank stays what it was, however often a layer is updated, and private stays private.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lamina.core.digest import Digest, digest_bytes, short
from lamina.core.errors import UsageError
from lamina.core.manifests import ExamSpec, StackedLayer
from lamina.core.names import LATEST, Name, parse_reference
from lamina.core.rates import Rates
from lamina.core.recipe import AS_IT_FITS, Recipe, ScorerName
from lamina.core.report import Reporter
from lamina.data import seen
from lamina.data.example import Example
from lamina.data.exams import ExamItem, default_scorers, items_from_examples, to_jsonl
from lamina.data.read import Dataset, read
from lamina.data.split import question_digest, split
from lamina.exams.scorers.registry import SCORERS
from lamina.flows import at_hand, joined, rehearsal, runs, seen_rows, suiting
from lamina.flows.lineage import Lineage
from lamina.flows.naming import new_name
from lamina.flows.questions import ANSWER_TOKENS, carried
from lamina.stack.resolve import ResolvedLayer, ResolvedStack, resolve
from lamina.store.layout import Store

REHEARSAL = 0.5
"""Share of an update's tokens that are the layer's own old rows: an update works on the very
factors that hold the old answers. Rows of the layers beneath have the share that a new layer gives
them."""

ABOVE = 0.0
"""An update trains the whole depth: what new rows ask for may be made anywhere. For other facts
0.67 keeps far more of the old ones and costs a third less; of another manner it learns little."""

PROTECT = 0.0
"""An update may move everything: what it changes lies where its old rows lie."""


@dataclass(frozen=True)
class Request:
    """What `lamina update` was asked to do."""

    stack: str
    data: Sequence[str]
    layer: str | None = None
    """Which layer, by name or digest; None: the top one."""
    name: str | None = None
    """Name that moves; None: the stack's own for its top layer, else the layer's."""
    overrides: tuple[tuple[str, object], ...] = ()
    """Recipe keys that differ from the old version's recipe."""
    format: str | None = None
    skip_bad: bool = False
    private: bool = False
    licence: str | None = None
    author: str | None = None
    accept_regression: str | None = None
    force: bool = False
    memory: int | None = None
    """Bytes that training may take; None: what the machine has."""
    rates: Rates | None = None
    """What the machine costs, for the layer's cost on record."""


@dataclass(frozen=True)
class Parts:
    """An update's rows and questions."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    rehearsal: tuple[Example, ...]
    """Old rows to mix in: those of the layers beneath, then those of older versions."""
    travelling: tuple[Example, ...] = ()
    """What is left of the older version's rehearsal set."""
    exams: tuple[tuple[ExamSpec, bytes], ...] = ()
    seen: frozenset[bytes] = frozenset()
    """Marks of rows that are neither learned nor held out now: seen before, or beyond the cap."""
    private: bool = False
    """Whether the new version withholds its rows and questions."""
    all_old: bool = False
    """Whether the old rows are all that older versions learned, not a sample that travels."""
    known: int = 0
    """Rows left out because they had been seen before."""
    replaced: int = 0
    """Old questions that have a new answer."""


def prepare(store: Store, request: Request, reporter: Reporter) -> runs.Run | None:
    """Read the new rows and write the run's folder; None when every row had been seen before.

    Train it with `learn.execute`. Raises DataError, UsageError, UnknownNameError.
    """
    stack = resolve(store, request.stack, force=request.force)
    index = layer_index(stack, request.layer)
    layer = stack.layers[index]
    name = _name(store, request, stack, index)
    older = _superseded(store, stack, index, name)
    dataset = read(
        request.data, format=request.format, skip_bad=request.skip_bad, licence=request.licence
    )
    for fault in dataset.bad:
        reporter.say(f"skipped {fault.file}:{fault.line}: {fault.reason}")
    recipe = recipe_of(layer, request)
    suiting.check_options(stack, recipe, memory=request.memory)
    suiting.check_rows(stack, dataset.examples)
    layers = stack.layers[: index + 1]
    parts = parts_of(store, layers, dataset.examples, recipe, private=request.private)
    reporter.say(_counts(dataset, parts))
    if not parts.train:
        return None
    if parts.all_old and "rehearse" not in dict(request.overrides):
        # a sample would be learned by heart; where every old row is at hand, its label is the truth
        recipe = recipe.model_copy(update={"rehearse": "labels"})
    spec = _spec(request, stack, index, name, older, recipe, dataset, parts)
    return runs.create(
        store.runs_dir / spec.id,
        spec,
        parts.train,
        parts.held_out,
        [data for _, data in parts.exams],
        parts.rehearsal,
        travelling=parts.travelling,
        seen=seen.pack(parts.seen),
    )


def layer_index(stack: ResolvedStack, layer: str | None) -> int:
    """Where in a stack the layer of this name or digest lies; the top for None.

    Raises UsageError naming the layers there are.
    """
    if not stack.layers:
        raise UsageError(
            f"{stack.label} has no layer to update", hint="train one: lamina train --on …"
        )
    if layer is None:
        return len(stack.layers) - 1
    wanted = layer.removeprefix("@").removeprefix("sha256:")
    found = [
        index
        for index, each in enumerate(stack.layers)
        if each.config.name == layer
        or (len(wanted) >= 6 and each.digest.removeprefix("sha256:").startswith(wanted))
    ]
    if len(found) != 1:
        names = ", ".join(each.config.name for each in stack.layers)
        raise UsageError(
            f"{stack.label} has {'no' if not found else 'more than one'} layer {layer!r}",
            hint=f"its layers, lowest first: {names}; a digest is never ambiguous",
        )
    return found[0]


def _name(store: Store, request: Request, stack: ResolvedStack, index: int) -> Name:
    """The name that moves to the new version. Raises UsageError where it stands elsewhere."""
    if request.name is not None:
        return new_name(store, request.name)
    reference = parse_reference(request.stack)
    if index < len(stack.layers) - 1 or not isinstance(reference, Name):
        return new_name(store, stack.layers[index].config.name)
    name = Name(reference.name)
    if reference.tag != LATEST and store.resolve(name).digest != store.resolve(reference).digest:
        raise UsageError(
            f"{reference} is not the version that {name} stands at",
            hint=f"update the newest: lamina update {name}; or branch off: --as NAME",
        )
    return name


def _superseded(store: Store, stack: ResolvedStack, index: int, name: Name) -> Digest | None:
    """The layer of which the update is the next version; None where it branches off.

    It branches off under a name of its own: another one, or that of a copy of a stack whose layer
    has a newer version elsewhere. Raises UsageError where a next version would stand beside the
    one that there is already.
    """
    layer = stack.layers[index]
    own = name.name == layer.config.name
    if not own and not _named_by_its_top(stack, index, name):
        return None
    lineage = Lineage.of(store)
    newest = lineage.newest(layer.digest)
    if newest == layer.digest:
        return layer.digest
    if not own:
        return None
    reference = parse_reference(stack.label)
    known = lineage.named(newest)
    called = str(known.name) if known else f"@{short(newest)}"
    then = "; or branch off: --as NAME"
    if index < len(stack.layers) - 1 and isinstance(reference, Name):
        then = f", then lamina refresh {reference.name}"
    raise UsageError(
        f"{layer.config.name} has a newer version ({called})",
        hint=f"lamina update {known.name.name if known else called} --data …{then}",
    )


def _named_by_its_top(stack: ResolvedStack, index: int, name: Name) -> bool:
    """Whether the layer is the top of the stack that already has this name."""
    reference = parse_reference(stack.label)
    top = index == len(stack.layers) - 1
    return top and isinstance(reference, Name) and name.name == reference.name


def recipe_of(layer: ResolvedLayer, request: Request) -> Recipe:
    """The old version's recipe with the length of its schedule open again."""
    config = layer.config
    old = (config.recipe or Recipe()).model_dump()
    fixed = {"rank": config.rank, "alpha": config.alpha, "scaling": config.scaling}
    fixed["ranks"] = old["ranks"]
    changes = dict(request.overrides)
    wrong = [key for key in changes if key in fixed]
    if wrong:
        raise UsageError(
            f"an update keeps the layer's {', '.join(wrong)}",
            hint="train a new layer, or squash it afterwards: lamina squash --rank",
        )
    opened: dict[str, object] = {
        "steps": None, "stop_after": None, "warmup_steps": None, "schedule": None,
    }  # fmt: skip
    own = {"rehearsal": REHEARSAL, "protect": PROTECT, "above": ABOVE}
    opened |= AS_IT_FITS
    return Recipe.parse(old | opened | own | fixed | changes, "the recipe of the update")


# -- rows ----------------------------------------------------------------------------------------


def parts_of(
    store: Store,
    layers: Sequence[ResolvedLayer],
    rows: Sequence[Example],
    recipe: Recipe,
    *,
    private: bool = False,
) -> Parts:
    """What an update of the top of `layers` with `rows` learns, rehearses and is asked.

    `private`: whether the rows are; where older rows are, so is the new version.
    """
    layer = layers[-1]
    private = private or seen_rows.is_private(layer)
    known = seen_rows.of_layer(store, layer)
    new = [row for row in rows if seen.mark(row) not in known]
    sides = split(new, recipe.held_out, recipe.held_out_max)
    asked = {question_digest(row.prompt, row.matter) for row in new}
    own = rehearsal.of_layers(store, [layer])
    found, all_old = at_hand.all_rows(store, layer)
    # what travels stands for the versions whose rows are not at hand
    older = found if all_old else (*own, *found)
    old = {question_digest(row.prompt, row.matter): row for row in older}
    still = [row for row in own if question_digest(row.prompt, row.matter) not in asked]
    exams, dropped = _exams(store, layer, new, sides.held_out, recipe, private=private)
    return Parts(
        train=sides.train,
        held_out=sides.held_out,
        rehearsal=(
            *rehearsal.of_layers(store, layers[:-1]),
            *(row for question, row in old.items() if question not in asked),
        ),
        travelling=tuple(still),
        exams=tuple(exams),
        seen=known.union(map(seen.mark, sides.unused)),
        private=private,
        all_old=all_old,
        known=len(rows) - len(new),
        replaced=dropped + len(own) - len(still),
    )


def _exams(
    store: Store,
    layer: ResolvedLayer,
    new: Sequence[Example],
    held_out: Sequence[Example],
    recipe: Recipe,
    *,
    private: bool,
) -> tuple[list[tuple[ExamSpec, bytes]], int]:
    """The old version's exams without the questions that got a new answer, and the new rows'.

    A private version withholds all of them: old and new questions are one exam.
    """
    asked = {question_digest(row.prompt, row.matter) for row in new}
    waiting: list[ScorerName] = []
    if held_out:
        waiting = list(dict.fromkeys(recipe.exams or default_scorers(held_out)))
    made: list[tuple[ExamSpec, list[ExamItem]]] = []
    dropped = 0
    for exam in carried(store, [layer]):
        if exam.items is None:
            raise UsageError(
                f"the questions of exam {exam.name} are withheld and not on this machine",
                hint="its author can update this layer; or train a layer above it",
            )
        items = [item for item in exam.items if _question(item) not in asked]
        dropped += len(exam.items) - len(items)
        if exam.spec.scorer in waiting:
            waiting.remove(exam.spec.scorer)
            items = _capped([*items, *_asked_of(held_out, exam.spec.scorer)], recipe.held_out_max)
        made.append((exam.spec, items))
    for scorer in waiting:
        spec = ExamSpec(
            name=f"{layer.config.name}/{scorer}",
            scorer=scorer,
            items=digest_bytes(b""),
            rows=0,
            max_new_tokens=ANSWER_TOKENS.get(scorer, 1),
        )
        made.append((spec, _asked_of(held_out, scorer)))
    return [_sealed(spec, items, private=private) for spec, items in made if items], dropped


def _asked_of(held_out: Sequence[Example], scorer: ScorerName) -> list[ExamItem]:
    return list(SCORERS[scorer].usable(items_from_examples(held_out, scorer)))


def _capped(items: Sequence[ExamItem], most: int) -> list[ExamItem]:
    """Each question once; beyond `most`, those with the lowest digests stay, in their order."""
    lines = {to_jsonl([item]): item for item in items}
    chosen = set(sorted(lines, key=digest_bytes)[:most])
    return [item for line, item in lines.items() if line in chosen]


def _sealed(spec: ExamSpec, items: Sequence[ExamItem], *, private: bool) -> tuple[ExamSpec, bytes]:
    data = to_jsonl(items)
    changes = {"items": digest_bytes(data), "rows": len(items), "private": private}
    return spec.model_copy(update=changes), data


def _question(item: ExamItem) -> str:
    return question_digest(item.prompt, item.example.matter if item.example else None)


# -- words ---------------------------------------------------------------------------------------


def _counts(dataset: Dataset, parts: Parts) -> str:
    said = [
        f"{len(dataset.examples)} rows ({dataset.format}): {len(parts.train)} to learn",
        f"{len(parts.held_out)} held out",
    ]
    if parts.known:
        said.append(f"{parts.known} already seen")
    if parts.replaced:
        said.append(f"{parts.replaced} old questions answered anew")
    if parts.rehearsal:
        said.append(f"{len(parts.rehearsal)} old rows to rehearse")
    return ", ".join(said)


def _spec(
    request: Request,
    stack: ResolvedStack,
    index: int,
    name: Name,
    older: Digest | None,
    recipe: Recipe,
    dataset: Dataset,
    parts: Parts,
) -> runs.RunSpec:
    layer = stack.layers[index]
    beneath = stack.config.model_copy(update={"layers": stack.config.layers[:index]})
    return runs.RunSpec(
        id=runs.new_id(name.name),
        created=runs.moment(),
        name=name.name,
        layer_name=layer.config.name,
        on=request.stack,
        stack=beneath,
        recipe=recipe,
        format=dataset.format,
        files=dataset.files,
        sources=tuple(str(Path(s).absolute()) if Path(s).exists() else s for s in request.data),
        duplicates=dataset.duplicates,
        skipped=len(dataset.bad),
        licence=joined.licence_of([layer.config.licence, dataset.licence]),
        author=request.author,
        exams=tuple(spec for spec, _ in parts.exams),
        private=parts.private,
        accept_regression=request.accept_regression,
        force=request.force,
        memory=request.memory,
        rates=request.rates,
        origin="updated",
        start=layer.digest,
        supersedes=older,
        layer_sources=(StackedLayer(layer=layer.digest),),
    )
