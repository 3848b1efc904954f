"""Whether a run fits into memory, before anything is loaded; and how it is made to.

The model is built without weights for its shapes, the rows are known, `plan.memory` does the sum.
Where it is too much, the step's batch goes through in smaller passes, then layers are computed
twice; where that is not enough, training is refused, with what would fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lamina.bases import families
from lamina.bases.load import empty_model, too_large
from lamina.core import machine
from lamina.core.errors import UsageError
from lamina.core.recipe import Recipe
from lamina.core.report import Reporter
from lamina.core.seeds import derive
from lamina.core.sizes import size_text
from lamina.flows import runs
from lamina.flows.examinee import BATCH_TOKENS
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


def fit(
    store: Store,
    run: runs.Run,
    spec: runs.RunSpec,
    beneath: ResolvedStack,
    rows: Rows,
    reporter: Reporter,
    *,
    record: bool = True,
) -> Fitted:
    """Say what the run takes; the run as it fits, on `record` in its folder.

    A run that has begun keeps its passes, as they decide its digest; computing layers twice does
    not, nor does remembering in memory, for which there is what is left. Raises UsageError where
    nothing fits, naming what would.
    """
    if device_at_hand() != "cpu":
        if spec.memory is not None:
            raise UsageError("--memory is about the processor's memory, and a GPU trains here")
        return Fitted(spec)
    recipe = spec.recipe
    directory = base_directory(store, beneath.base)
    elsewhere = spec.stream or too_large(directory, DTYPES[recipe.dtype])
    if elsewhere or beneath.base_config.quantised is not None:
        if spec.memory is not None:
            raise UsageError("--memory does not know packed or streamed bases yet")
        return Fitted(spec)
    model = empty_model(directory)
    shapes = shapes_of(model, recipe, warm=spec.start is not None)
    resident, free = machine.resident(), machine.free()
    limit = min((n for n in (spec.memory, free and free + resident) if n is not None), default=None)
    begun = (run.directory / checkpoint.FILE).exists()

    def predicted(way: Setting, remembered: int = 0) -> Prediction:
        work = replace(work_of(spec, beneath, rows, way), remembered=remembered)
        return predict(shapes, work, resident)

    given = Setting(recipe.pass_tokens, recipe.checkpointing)
    longest = max(map(len, _learned(rows, recipe)))
    ways = settings(recipe.batch_tokens, longest, given)
    if begun:
        ways = (way for way in ways if way.pass_tokens == given.pass_tokens)
    enough = limit if limit is not None else 1 << 62
    way, needed = first_fit(ways, lambda each: predicted(each).bytes, enough)
    if way is None:
        leanest = Setting(min(LEAST_PASS, recipe.batch_tokens), checkpointing=True)
        work = work_of(spec, beneath, rows, leanest)
        raise _refusal(spec, shapes, work, resident, enough, needed)
    remembered = min(_remembered(shapes, recipe, rows), enough - needed)
    found = predicted(way, remembered)
    reporter.event(
        {
            "event": "memory",
            "predicted": found.bytes,
            "resident": resident,
            "free": free,
            "phases": dict(found.phases),
            "parts": dict(found.parts),
            "pass_tokens": way.pass_tokens,
            "checkpointing": way.checkpointing,
        }
    )
    reporter.say(_said(found.bytes, free, spec.memory, way, given))
    if way == given:
        return Fitted(spec, remembered)
    changes = {"pass_tokens": way.pass_tokens, "checkpointing": way.checkpointing}
    fitted = recipe.model_copy(update=changes)
    if record:
        return Fitted(run.resolve(fitted), remembered)
    return Fitted(spec.model_copy(update={"recipe": fitted}), remembered)


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
