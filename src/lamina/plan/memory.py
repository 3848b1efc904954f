"""The most memory that training takes, from shapes alone, and how to make it fit.

A run goes through phases; each has what stays (weights, factors, optimiser), what a pass keeps for
its way back, and what comes and goes inside one layer. The largest phase is the prediction. What
is there already (interpreter, libraries, rows) is measured, not guessed: `resident`.

Formulas are in bytes; e is the width of the products' dtype, N the tokens of a pass, C the hidden
channels, F the MLP's, W those of queries, keys and values side by side, D a head's, P the trained
parameters, R ranks, V the vocabulary. What they leave out (allocator, libraries' own buffers) is
in the measured constants; `python -m benchmarks.memory` compares with what is measured.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

HEAD_CHUNK = 32 << 20
"""Logits that exist at once, at most (train.objective.CHUNK_BYTES; a test compares them)."""
TOUCHED = 160 << 20
"""What loading and the first passes bring in: a tokenizer, pages of torch, and the code that its
products keep for the sizes they met last (core.heap). Calibrated: with 90 MB, which loading alone
brings in, ten configurations on smollm2-135m were 0.7% too high to 19% too low (docs/log.md)."""
SLACK = 0.06
"""Holes that the allocator leaves between activations, as a share of them."""
TEACHER_CHUNK = 256
"""Positions whose logits exist at once when old rows are said (train.teach.CHUNK)."""
DIRECTIONS = 1 / 4
"""Protected directions as a share of a linear's inputs, at most (lowrank.inputs)."""
PROTECTED = 1 / 12
"""The same as it was found on real rows at `protect` 0.7."""
LEAST_PASS = 16
"""Tokens of the smallest pass that is tried."""


@dataclass(frozen=True)
class Linear:
    """A linear of the decoder."""

    name: str
    inputs: int
    outputs: int
    rank: int
    """Of its update; 0 where it is not trained."""
    source: str
    """Which tensor it reads; linears of a layer that read one share the name."""


@dataclass(frozen=True)
class Shapes:
    """What is known of a model without its weights."""

    parameters: int
    layers: int
    trained_layers: int
    """Decoder layers from the first trained one on."""
    hidden: int
    wide: int
    """F, channels between the MLP's products."""
    queries: int
    keys: int
    head: int
    vocabulary: int
    linears: tuple[Linear, ...]
    head_norms: bool
    fused: bool
    """Whether the decoder is lamina's own."""
    native: bool
    """Whether its kernels are the processor's own."""
    native_head: bool
    """Whether losses are computed by the processor's own kernel, in place."""
    normed: int = 2
    """Norms of a layer over the hidden channels."""
    still: int = 0
    """Parameters of a warm start's factors that stay as they are, below the first trained layer."""

    @property
    def qkv(self) -> int:
        """W."""
        return (self.queries + 2 * self.keys) * self.head

    @property
    def factors(self) -> int:
        """P."""
        return sum(each.rank * (each.inputs + each.outputs) for each in self.linears)

    @property
    def ranks(self) -> float:
        """R: columns of all u = x A^T of a layer."""
        return sum(each.rank for each in self.linears) / self.trained_layers

    @property
    def largest(self) -> int:
        """Weights of the largest linear."""
        return max(each.inputs * each.outputs for each in self.linears)


@dataclass(frozen=True)
class Pass:
    """The most that goes through the model at once."""

    tokens: int = 0
    padded: int = 0
    """The same with padding: rows x longest."""
    longest: int = 0
    supervised: int = 0


@dataclass(frozen=True)
class Work:
    """What is to be done with the model."""

    itemsize: int
    """e: 2 for bfloat16, 4 for float32."""
    step: Pass
    evaluation: Pass = Pass()
    old: Pass = Pass()
    """Old rows, as they are said and looked at before the first step."""
    said: bool = False
    """Whether old rows are learned from what the stack says of them."""
    protect: bool = False
    checkpointing: bool = False
    drift: bool = False
    beneath: int = 0
    """Float32 parameters of the frozen layers that are folded in."""
    from_float32: bool = False
    """Whether the base is stored in float32 and folded so before it is rounded."""
    exam: Pass = Pass()
    """What is scored at once in an exam."""
    remembered: int = 0
    """Bytes of activations below the first trained layer that are kept in memory."""
    answers: int = 0
    """Rows x tokens of answers that are generated at once, their prompts included."""


@dataclass(frozen=True)
class Prediction:
    """Bytes of the largest phase, of each phase, and what the training phase is made of."""

    phases: Mapping[str, int]
    parts: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """The peak."""
        return max(self.phases.values())


def predict(shapes: Shapes, work: Work, resident: int) -> Prediction:
    """The most that the process has in memory, from `resident` bytes on. Pure."""
    e, factors = work.itemsize, shapes.factors
    weights = e * shapes.parameters
    fixed = resident + TOUCHED
    # float32: the factors, their gradient, two moments, the best so far; and their copy in e
    training = 4 * factors * (5 + work.drift) + e * factors + (4 + e) * shapes.still
    protected = _protected(shapes) if work.protect and work.old.tokens else 0
    kept, passing = _kept(shapes, work, work.step), _passing(shapes, work, work.step)
    scored = _scored(shapes, e, work.step, gradient=True)
    parts = {
        "interpreter, libraries and rows": fixed,
        "weights": weights,
        "factors and optimiser": training,
        "protected directions": protected,
        "rows below the first trained layer": work.remembered,
        "kept for the way back": kept,
        "inside a layer or at the head": max(passing, scored),
    }
    standing = fixed + weights
    looked = _forward_only(shapes, work, work.evaluation)
    # what layers keep stays for the next step, but not their inputs (train.layer.Pool)
    pooled = kept if shapes.fused and not work.checkpointing else 0
    phases = {
        "folding": _folding(shapes, work, fixed, work.beneath),
        "looking at old rows": standing + 12 * factors + 4 * shapes.still + _before(shapes, work),
        "training": round(sum(parts.values()) + SLACK * (kept + passing)),
        "evaluation": standing + training + protected + work.remembered + pooled + looked,
        "exam": _exam(shapes, work, fixed),
    }
    return Prediction(phases, parts)


def _folding(shapes: Shapes, work: Work, fixed: int, folded: int) -> int:
    """Loading, and layers of so many parameters: as they are, joined, and one linear in float32."""
    stored = 4 if work.from_float32 and folded else work.itemsize
    one = (8 + stored) * shapes.largest if folded else 0
    return fixed + stored * shapes.parameters + 8 * folded + one


def _kept(shapes: Shapes, work: Work, at: Pass) -> int:
    """What the decoder keeps of a pass: a set a layer, or inputs and one layer's set.

    Fused: x, qkv, attended, mid, gate and up, each u = x A^T, 1/rms and the softmaxes' sums; where
    heads have norms, queries and keys as they were. transformers' modules: see `_kept_by_modules`.
    """
    e = work.itemsize
    tokens = at.tokens if shapes.fused else at.padded
    inputs = shapes.hidden * e * tokens
    whole = tokens * (_kept_fused(shapes, e) if shapes.fused else _kept_by_modules(shapes, e))
    if work.checkpointing:
        return shapes.trained_layers * inputs + whole
    return shapes.trained_layers * whole


def _kept_fused(shapes: Shapes, e: int) -> int:
    q = shapes.queries * shapes.head
    found = e * (2 * shapes.hidden + shapes.qkv + q + 2 * shapes.wide + shapes.ranks)
    found += 4 * (2 + shapes.queries)
    if shapes.head_norms:
        found += (shapes.queries + shapes.keys) * (e * shapes.head + 4)
    return round(found)


def _kept_by_modules(shapes: Shapes, e: int) -> int:
    """What autograd keeps a token and layer of transformers' modules.

    Norms compute in float32 and keep their input so; what linears read, once for all that read it;
    queries, keys and values as attention reads them; gate, its activation, up, their product; each
    linear's u; 1/rms and the softmaxes' sums.
    """
    q, kv = shapes.queries * shapes.head, shapes.keys * shapes.head
    found = 4 * shapes.normed * (shapes.hidden + 1) + 4 * shapes.queries
    found += e * (2 * shapes.hidden + 2 * q + 2 * kv + 4 * shapes.wide)
    if shapes.head_norms:
        found += 4 * (q + kv + shapes.queries + shapes.keys)
    return round(found + e * shapes.ranks)


def _passing(shapes: Shapes, work: Work, at: Pass) -> int:
    """The most that comes and goes inside one layer of a step's pass."""
    e, q = work.itemsize, shapes.queries * shapes.head
    tokens = at.tokens if shapes.fused else at.padded
    gradient = e * shapes.hidden
    mlp = gradient + e * (2 * shapes.wide + 2 * shapes.hidden)
    attention = gradient + e * (q + shapes.qkv)
    if shapes.native:
        return tokens * max(mlp, attention + 8 * q)
    if not shapes.fused:
        return tokens * (mlp + e * 2 * shapes.wide + 12 * shapes.hidden)
    # in torch: float32 copies beside the values, and a sequence's scores as a whole
    scores = shapes.queries * at.longest**2 * (12 + 2 * e)
    return max(tokens * (mlp + 4 * 5 * shapes.wide), tokens * (attention + 8 * q) + scores)


def _scored(shapes: Shapes, e: int, at: Pass, *, gradient: bool) -> int:
    """The head: chosen hidden states through the last norm, their gradient, a chunk of logits."""
    chunk = min(HEAD_CHUNK, at.supervised * shapes.vocabulary * e)
    wide = 0 if shapes.native_head else (4 if e == 4 else 8) * chunk // e
    hidden = at.supervised * shapes.hidden * (8 + (4 if gradient else 2) * e)
    return hidden + chunk + wide


def _forward_only(shapes: Shapes, work: Work, at: Pass) -> int:
    """A pass that keeps nothing: one layer, then the head."""
    if not at.tokens:
        return 0
    e = work.itemsize
    each = _kept_fused(shapes, e) if shapes.fused else 0
    each = each or _kept_by_modules(shapes, e)
    tokens = at.tokens if shapes.fused else at.padded
    layer = tokens * (each + e * (shapes.hidden + shapes.wide))
    return max(layer, tokens * e * shapes.hidden + _scored(shapes, e, at, gradient=False))


def _protected(shapes: Shapes) -> int:
    """Directions that A is kept off, and A as it was, for every trained linear."""
    return round(
        4 * sum(PROTECTED * x.inputs**2 + x.rank * x.inputs for x in shapes.linears if x.rank)
    )


def _before(shapes: Shapes, work: Work) -> int:
    """Old rows before the first step: what the stack says of them, and what linears read.

    Both go through transformers' modules, with padding. For `protect` a pass's inputs of every
    linear stay until it is over, beside a float32 matrix of inputs x inputs for every tensor that
    is read, and the directions found in it.
    """
    if not work.old.tokens:
        return 0
    plain = replace(shapes, fused=False, native=False)
    found = 0
    if work.said:
        logits = min(TEACHER_CHUNK, work.old.supervised) * shapes.vocabulary * (work.itemsize + 8)
        found = max(_forward_only(plain, work, work.old), logits)
    if work.protect:
        read = {each.source: each.inputs for each in shapes.linears if each.rank}
        seen = work.old.padded * work.itemsize * sum(read.values())
        grams = 4 * sum(inputs**2 for inputs in read.values())
        spans = 4 * sum(round(each.inputs**2 * DIRECTIONS) for each in shapes.linears if each.rank)
        found = max(found, grams + max(seen, spans))
    return found


def _exam(shapes: Shapes, work: Work, fixed: int) -> int:
    """The stack loaded anew, its new layer folded in; scoring, or answering with keys and values of
    all tokens in a cache."""
    if not (work.exam.tokens or work.answers):
        return fixed
    e = work.itemsize
    cache = work.answers * shapes.layers * 2 * shapes.keys * shapes.head * e
    plain = replace(shapes, fused=False)
    prompt = Pass(work.answers, work.answers, 0, 32)
    written = cache + _forward_only(plain, work, prompt) if work.answers else 0
    asked = max(_forward_only(shapes, work, work.exam), written)
    loading = _folding(shapes, work, fixed, work.beneath + shapes.factors + shapes.still)
    return max(loading, fixed + e * shapes.parameters + asked)


# -- fitting ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """How a step's batch goes through the model."""

    pass_tokens: int | None
    """None: all at once."""
    checkpointing: bool


def settings(batch_tokens: int, longest: int, given: Setting) -> Iterator[Setting]:
    """Ways to take a step in less memory, cheapest first: smaller passes cost a little, as
    products get smaller; computing layers twice costs a quarter of the time.

    Passes are halved until one holds the longest row only. What is `given` is never made larger.
    """
    first = given.pass_tokens
    sizes = [first]
    size = (first or batch_tokens) // 2
    while size >= max(LEAST_PASS, (longest + 1) // 2):
        sizes.append(size)
        size //= 2
    for checkpointing in (False, True):
        if checkpointing or not given.checkpointing:
            yield from (Setting(each, checkpointing) for each in sizes)


def first_fit(
    ways: Iterator[Setting], needed: Callable[[Setting], int], limit: int
) -> tuple[Setting | None, int]:
    """The first setting within the limit and what it needs; else None and the least of all."""
    least: int | None = None
    for way in ways:
        found = needed(way)
        if found <= limit:
            return way, found
        least = found if least is None else min(least, found)
    return None, least or 0
