"""Whether a run fits into memory, before anything is loaded; and how it is made to.

The model is built without weights for its shapes, the rows are known, `plan.memory` does the sum.
Where it is too much, the step's batch goes through in smaller passes, then layers are computed
twice; where that is not enough, training is refused, with what would fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from lamina.bases import families
from lamina.bases.load import crowded, empty_model, loaded_bytes
from lamina.core import machine
from lamina.core.errors import UsageError
from lamina.core.recipe import Recipe
from lamina.core.report import Reporter
from lamina.core.seeds import derive
from lamina.core.sizes import size_text
from lamina.flows import holding, runs
from lamina.flows.examinee import BATCH_TOKENS
from lamina.flows.holding import Held
from lamina.kernels import native
from lamina.kernels.choose import chosen
from lamina.plan.memory import (
    LEAST_PASS,
    Linear,
    Pass,
    Prediction,
    Setting,
    Shapes,
    Work,
    first_fit,
    predict,
    settings,
)
from lamina.plan.remedies import ways_out
from lamina.stack.compile import DTYPES, base_directory, device_at_hand
from lamina.stack.resolve import ResolvedStack
from lamina.store.layout import Store
from lamina.tokens.mask import Encoded, EncodedSet
from lamina.tokens.pack import plan_batches
from lamina.train import checkpoint, prefix
from lamina.train.crew import Alone, Crew
from lamina.train.fused import why_not
from lamina.train.passes import split_rows

ANSWERS_AT_ONCE = 32
"""Rows that an exam answers at once (bases.sample.BATCH_ROWS)."""
_READ_TOGETHER = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
"""Linears that read the tensor which their siblings among these read."""


_TURNED_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""What a model does to its logits (see `bases.families.head`)."""


@dataclass(frozen=True, eq=False)
class Rows:
    """A run's rows, encoded."""

    train: EncodedSet
    held: Sequence[Encoded]
    """Those looked at while training."""
    older: Sequence[Encoded]
    """Old rows of the layer's own older versions."""
    parents: Sequence[Encoded]
    """Old rows of the layers beneath."""


class Fitted(NamedTuple):
    """A run as it fits."""

    spec: runs.RunSpec
    prefix_memory: int = prefix.MEMORY
    """Bytes that activations below the first trained layer may take."""
    held: Held = "whole"
    """How a crew holds the base; "whole" where one worker is by itself."""


def fit(
    store: Store,
    run: runs.Run,
    spec: runs.RunSpec,
    beneath: ResolvedStack,
    rows: Rows,
    reporter: Reporter,
    *,
    crew: Crew | None = None,
) -> Fitted:
    """Say what the run takes; the run as it fits, on record in its folder (by worker 0 of a crew).

    A run that has begun keeps its passes, as they decide its digest; computing layers twice does
    not, nor does remembering in memory, for which there is what is left. A base that one of a
    crew's workers has no room for is shared out, where everybody has room for a share, else left in
    the store. Raises UsageError where nothing fits, naming what would.
    """
    crew = crew or Alone()
    directory, dtype = base_directory(store, beneath.base), DTYPES[spec.recipe.dtype]
    packed = beneath.base_config.quantised is not None
    together = crew.size > 1 and not packed and not spec.stream
    if device_at_hand() != "cpu":
        if spec.memory is not None:
            raise UsageError("--memory is about the processor's memory, and a GPU trains here")
        if not together:
            return Fitted(spec)
        shapes = shapes_of(empty_model(directory), spec.recipe, warm=spec.start is not None)
        return Fitted(spec, held=holding.on_gpu(crew, shapes, dtype.itemsize))
    large = crowded(loaded_bytes(directory, dtype), crew.beside)
    if packed or spec.stream or (large and not together):
        return _unpredicted(Fitted(spec))
    shapes = shapes_of(empty_model(directory), spec.recipe, warm=spec.start is not None)
    begun = (run.directory / checkpoint.FILE).exists()
    free = machine.free()
    free = free and free // crew.beside
    fitting = _Fitting(spec, beneath, rows, shapes, machine.resident(), free, begun)
    held: Held = "whole"
    if together:
        share = fitting.with_parameters(holding.shared_parameters(shapes, crew.size))
        room = not crowded(dtype.itemsize * share.shapes.parameters, crew.beside)
        held = holding.agreed(
            crew,
            whole=not large and fitting.way[0] is not None,
            shared=room and share.way[0] is not None,
        )
        if held == "stored" and large:
            return _unpredicted(Fitted(spec, held=held))
        fitting = share if held == "shared" else fitting
    way, remembered = fitting.settled(reporter)
    if way == fitting.given:
        return Fitted(spec, remembered, held)
    changes = {"pass_tokens": way.pass_tokens, "checkpointing": way.checkpointing}
    fitted = spec.recipe.model_copy(update=changes)
    if crew.rank == 0:
        return Fitted(run.resolve(fitted), remembered, held)
    return Fitted(spec.model_copy(update={"recipe": fitted}), remembered, held)


@dataclass(frozen=True, eq=False)
class _Fitting:
    """What there is to fit, and into what."""

    spec: runs.RunSpec
    beneath: ResolvedStack
    rows: Rows
    shapes: Shapes
    resident: int
    free: int | None
    begun: bool

    def with_parameters(self, parameters: int) -> "_Fitting":
        """The same with so many of them in memory."""
        return replace(self, shapes=replace(self.shapes, parameters=parameters))

    @property
    def given(self) -> Setting:
        """The recipe's."""
        return Setting(self.spec.recipe.pass_tokens, self.spec.recipe.checkpointing)

    @property
    def limit(self) -> int:
        """Bytes that the process may take in all."""
        free = self.free and self.free + self.resident
        return min((n for n in (self.spec.memory, free) if n is not None), default=1 << 62)

    def predicted(self, way: Setting, remembered: int = 0) -> Prediction:
        """What a way takes."""
        work = work_of(self.spec, self.beneath, self.rows, way)
        return predict(self.shapes, replace(work, remembered=remembered), self.resident)

    @cached_property
    def way(self) -> tuple[Setting | None, int]:
        """The first way that fits and what it takes; None and the least that any takes."""
        recipe = self.spec.recipe
        longest = max(map(len, _learned(self.rows, recipe)))
        ways = settings(recipe.batch_tokens, longest, self.given)
        if self.begun:
            ways = (way for way in ways if way.pass_tokens == self.given.pass_tokens)
        return first_fit(ways, lambda each: self.predicted(each).bytes, self.limit)

    def settled(self, reporter: Reporter) -> tuple[Setting, int]:
        """That way, once it is said what it takes, and bytes for what can be remembered. Raises
        UsageError where none fits."""
        recipe = self.spec.recipe
        way, needed = self.way
        if way is None:
            leanest = Setting(min(LEAST_PASS, recipe.batch_tokens), checkpointing=True)
            work = work_of(self.spec, self.beneath, self.rows, leanest)
            raise _refusal(self.spec, self.shapes, work, self.resident, self.limit, needed)
        remembered = min(_remembered(self.shapes, recipe, self.rows), self.limit - needed)
        found = self.predicted(way, remembered)
        reporter.event(
            {
                "event": "memory",
                "predicted": found.bytes,
                "resident": self.resident,
                "free": self.free,
                "phases": dict(found.phases),
                "parts": dict(found.parts),
                "pass_tokens": way.pass_tokens,
                "checkpointing": way.checkpointing,
            }
        )
        reporter.say(_said(found.bytes, self.free, self.spec.memory, way, self.given))
        return way, remembered


def _unpredicted(fitted: Fitted) -> Fitted:
    """A run of which it is not known what it takes."""
    if fitted.spec.memory is not None:
        raise UsageError("--memory does not know packed or streamed bases yet")
    return fitted


def _said(needed: int, free: int | None, given: int | None, way: Setting, asked: Setting) -> str:
    parts = [f"about {size_text(needed)} of memory"]
    if given is not None:
        parts.append(f"{size_text(given)} given")
    if free is not None:
        parts.append(f"{size_text(free)} free")
    chosen_way = []
    if way.pass_tokens != asked.pass_tokens:
        chosen_way.append(f"a step in passes of {way.pass_tokens} tokens")
    if way.checkpointing and not asked.checkpointing:
        chosen_way.append("layers computed again on the way back")
    return ", ".join(parts) + (f": to fit, {' and '.join(chosen_way)}" if chosen_way else "")


# -- what is known beforehand ----------------------------------------------------------------------


def shapes_of(model: Any, recipe: Recipe, *, warm: bool = False) -> Shapes:
    """The shapes of a model without weights, with the recipe's targets; `warm`: as an update of a
    layer that has factors on all of them.

    Raises UsageError for targets that name nothing, BaseError for families without linears.
    """
    config = model.config
    linears = families.linears(model)
    trained = families.select(linears, recipe.targets)
    ranks = families.module_ranks(trained, recipe.rank, recipe.ranks or {})
    below = families.lowest(trained, recipe.above)
    first = min(families.layer_of(name) for name in trained if name not in below)
    still = {name: ranks.pop(name) for name in below}
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    inner: Any = families.backbone(model)
    layer = inner.layers[0]
    dtype = DTYPES[recipe.dtype]
    channels = (config.hidden_size, config.intermediate_size)
    cpu = model.get_input_embeddings().weight.new_empty(0, device="cpu").device
    fused = not why_not(model)
    turned = any(getattr(config, key, None) for key in _TURNED_LOGITS)
    return Shapes(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=config.num_hidden_layers,
        trained_layers=config.num_hidden_layers - first,
        hidden=config.hidden_size,
        wide=config.intermediate_size,
        queries=heads,
        keys=getattr(config, "num_key_value_heads", None) or heads,
        head=size,
        vocabulary=config.vocab_size,
        linears=tuple(
            Linear(name, each.in_features, each.out_features, ranks.get(name, 0), _source(name))
            for name, each in linears.items()
        ),
        head_norms=hasattr(getattr(layer, "self_attn", None), "q_norm"),
        fused=fused,
        native=fused and chosen(dtype, cpu, channels, size)[0] is native,
        native_head=not turned and chosen(dtype, cpu)[0] is native,
        still=warm
        * sum(
            rank * (linears[name].in_features + linears[name].out_features)
            for name, rank in still.items()
        ),
        normed=sum(name.endswith("norm") for name, _ in layer.named_children()),
    )


def _source(name: str) -> str:
    parent, _, leaf = name.rpartition(".")
    return f"{parent}.in" if leaf in _READ_TOGETHER else name


def work_of(spec: runs.RunSpec, beneath: ResolvedStack, rows: Rows, way: Setting) -> Work:
    """What is to be done with the model, for `plan.memory`."""
    recipe = spec.recipe
    at_once = min(recipe.batch_tokens, way.pass_tokens or recipe.batch_tokens)
    shares = bool(recipe.rehearsal)
    old = [*rows.older, *rows.parents]
    return Work(
        itemsize=DTYPES[recipe.dtype].itemsize,
        step=_largest(_learned(rows, recipe), recipe, at_once),
        evaluation=_largest(rows.held, recipe, at_once),
        old=_largest(old, recipe, at_once),
        said=shares and (recipe.rehearse != "labels" or spec.origin == "distilled"),
        protect=bool(recipe.protect),
        checkpointing=way.checkpointing,
        drift=bool(recipe.drift),
        beneath=sum(layer.config.parameters for layer in beneath.layers),
        from_float32=beneath.base_config.dtype == "float32" and recipe.dtype != "float32",
        exam=_exam(spec, rows, recipe),
        answers=_answers(spec, beneath, rows),
    )


def _remembered(shapes: Shapes, recipe: Recipe, rows: Rows) -> int:
    """Bytes of activations below the first trained layer, up to what is kept in memory."""
    if shapes.trained_layers == shapes.layers:
        return 0
    tokens = sum(map(len, [*_learned(rows, recipe), *rows.held]))
    return min(prefix.MEMORY, tokens * shapes.hidden * DTYPES[recipe.dtype].itemsize)


def _learned(rows: Rows, recipe: Recipe) -> list[Encoded]:
    return [*rows.train.rows, *((*rows.older, *rows.parents) if recipe.rehearsal else ())]


def _largest(some: Sequence[Encoded], recipe: Recipe, at_once: int) -> Pass:
    """The most of everything in one pass of an epoch."""
    if not some:
        return Pass()
    lengths = [len(row) for row in some]
    found = Pass()
    plan = plan_batches(lengths, recipe.batch_tokens, derive(recipe.seed, "order"), 0)
    for batch in plan:
        for part in split_rows([lengths[i] for i in batch], at_once):
            inside = batch[part]
            longest = max(lengths[i] for i in inside)
            found = Pass(
                tokens=max(found.tokens, sum(lengths[i] for i in inside)),
                padded=max(found.padded, longest * len(inside)),
                longest=max(found.longest, longest),
                supervised=max(found.supervised, sum(int(some[i].mask.sum()) for i in inside)),
            )
    return found


def _exam(spec: runs.RunSpec, rows: Rows, recipe: Recipe) -> Pass:
    """What an exam scores at once: as many of its questions as fit, of about these rows' kind."""
    if not spec.exams or not rows.held:
        return Pass()
    one = _largest(
        rows.held, recipe.model_copy(update={"batch_tokens": BATCH_TOKENS}), BATCH_TOKENS
    )
    looked = sum(map(len, rows.held))
    all_of = looked * max(exam.rows for exam in spec.exams) / len(rows.held)
    scale = max(1.0, min(all_of, BATCH_TOKENS) / max(one.tokens, 1))
    return Pass(
        round(one.tokens * scale), round(one.padded * scale), one.longest,
        round(one.supervised * scale),
    )  # fmt: skip


def _answers(spec: runs.RunSpec, beneath: ResolvedStack, rows: Rows) -> int:
    """Tokens in the cache while the longest answers of an exam are generated."""
    exams = [*spec.exams, *(exam for layer in beneath.layers for exam in layer.config.exams)]
    longest = max((len(row) for row in rows.held), default=0)
    return max(
        (
            min(exam.rows, ANSWERS_AT_ONCE) * (longest + exam.max_new_tokens)
            for exam in exams
            if exam.max_new_tokens > 1
        ),
        default=0,
    )


# -- refusing --------------------------------------------------------------------------------------


def _refusal(
    spec: runs.RunSpec,
    shapes: Shapes,
    work: Work,
    resident: int,
    limit: int,
    least: int,
) -> UsageError:
    """Not even the leanest way fits: what would, cheapest first."""
    what = "given" if limit == spec.memory else "free"
    hint = "or give it more"
    if spec.start is not None:
        hint = "an update keeps the layer's shape: train a new layer over it in one of these ways"
    return UsageError(
        f"training needs at least {size_text(least)} of memory, and {size_text(limit)} is {what}",
        faults=[
            f"{way}: about {size_text(n)}" for way, n in ways_out(shapes, work, resident, limit)
        ],
        hint=hint,
    )
