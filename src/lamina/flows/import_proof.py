"""Is an imported layer what the other tool computes? Logits on real prompts, in float32."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lamina.bases import families
from lamina.bases.load import too_large
from lamina.bases.quiet import quiet
from lamina.core.errors import CheckError, MissingPartError
from lamina.core.report import Reporter
from lamina.data.example import Message
from lamina.export.parity import Parity, compare, logits_of
from lamina.flows import to_diffusers
from lamina.flows.modality import probes_of, sayings
from lamina.flows.outbound import Probe
from lamina.flows.questions import probe_prompts
from lamina.flows.to_python import load_peft
from lamina.imports.adapter import Adapter
from lamina.imports.base import Beneath
from lamina.imports.place import Placed
from lamina.lowrank import codec
from lamina.lowrank.attach import fold_into
from lamina.lowrank.maths import LayerFactors
from lamina.stack.compile import Compiled, compile_stack
from lamina.stack.resolve import ResolvedStack
from lamina.store.layout import Store

QUESTIONS = (
    "Name three colours and one number.",
    "Write one sentence about the sea, then translate it into French.",
    "What is 17 + 25? Answer with a number.",
)
"""Asked beside the exams' own questions of the stack beneath."""


@dataclass(frozen=True)
class Proof:
    """What the comparison gave."""

    parity: Parity | None
    """Our stack beside the other tool's model; None: nothing here computes the other side."""
    unproved: str | None
    """Why there is no comparison."""
    effect: float
    """Largest relative difference of logits to the stack beneath, 0 where the layer does nothing
    on these prompts."""
    lost: float = 0.0
    """The same for our stack and the source, where both were measured: what the import lost."""


def prove(
    store: Store,
    stack: ResolvedStack,
    base: Beneath,
    adapter: Adapter,
    placed: Placed,
    reporter: Reporter,
) -> Proof:
    """Compare the layer over its stack with what the source computes over the same stack.

    An adapter is loaded by PEFT itself, a checkpoint by its own weights. Raises CheckError where
    an import that should be exact is another model.
    """
    if stack.draws:
        return _prove_images(store, stack, base, adapter, placed, reporter)
    if base.packed:
        return Proof(None, f"the base is in {base.packed}: its adapters are not compared", 0.0)
    if too_large(base.directory, torch.float32):
        return Proof(None, "the base in float32 does not fit into the memory at hand", 0.0)
    reporter.event({"event": "examining", "text": "comparing logits with the source's"})
    ours = compile_stack(store, stack, dtype=torch.float32, stream=False)
    probes: list[Probe] = [((Message(role="user", content=text),), ()) for text in QUESTIONS]
    prompts = [ours.format.prompt_ids(*probe) for probe in probes + probe_prompts(store, stack)]
    before = logits_of(ours.model, prompts)
    found = _with_layer(ours, placed.factors, prompts)
    effect = compare(before, found, torch.float32).max_rel
    try:
        expected = _expected(ours, adapter, placed, base, prompts)
    except MissingPartError as error:
        return Proof(None, error.message, effect)
    parity = compare(expected, found, torch.float32)
    if placed.exact and not parity.ok:
        raise CheckError(
            "the layer is not what its source computes: outputs differ by "
            f"{parity.max_rel:.2e}, the limit is {parity.limit:.0e}",
            hint="nothing was stored; please report this, with what wrote the file",
        )
    return Proof(parity, None, effect, 0.0 if placed.exact else parity.max_rel)


def _prove_images(
    store: Store,
    stack: ResolvedStack,
    base: Beneath,
    adapter: Adapter,
    placed: Placed,
    reporter: Reporter,
) -> Proof:
    """The same of images: drawn by us, and by diffusers with the file itself."""
    reporter.event({"event": "examining", "text": "drawing, and having diffusers draw"})
    ours = compile_stack(store, stack, dtype=torch.float32)
    probes = probes_of(store, stack)
    before = sayings(ours, probes)
    fold_into(ours.linears, placed.factors)
    effect = compare(before, sayings(ours, probes), torch.float32).max_rel
    captions = [each for each in probes if isinstance(each, str)]
    try:
        parity = to_diffusers.prove_file(base, adapter.files[0], ours, captions)
    except MissingPartError as error:
        return Proof(None, error.message, effect)
    if placed.exact and not parity.ok:
        raise CheckError(
            f"the layer is not what its source is: {parity.said}, the limit is {parity.limit:.0e}",
            hint="nothing was stored; please report this, with what wrote the file",
        )
    return Proof(parity, None, effect, 0.0 if placed.exact else parity.max_rel)


def _with_layer(
    compiled: Compiled, factors: LayerFactors, prompts: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Logits with a layer folded in; the weights are put back."""
    kept = {name: compiled.linears[name].weight for name in factors}
    fold_into(compiled.linears, factors)
    try:
        return logits_of(compiled.model, prompts)
    finally:
        for name, weight in kept.items():
            compiled.linears[name].weight = weight


def _expected(
    compiled: Compiled,
    adapter: Adapter,
    placed: Placed,
    base: Beneath,
    prompts: Sequence[Sequence[int]],
) -> list[Tensor]:
    """The source's own logits. Uses the model up. Raises MissingPartError without PEFT."""
    if adapter.kind == "checkpoint":
        _fill(compiled.model, adapter, base)
        return logits_of(compiled.model, prompts)
    with tempfile.TemporaryDirectory(prefix="lamina-proof-") as temporary:
        folder = Path(temporary)
        if adapter.reference is not None:
            adapter.reference(folder, placed.equal)
        else:
            _write_layer(placed.factors, compiled, folder)
        with quiet():
            theirs = load_peft(compiled.model, folder)
            return logits_of(theirs, prompts)


def _write_layer(factors: LayerFactors, compiled: Compiled, folder: Path) -> None:
    """The layer as it will be stored: where the source is no PEFT adapter, PEFT reads that."""
    rank = max(part.rank for part in factors.values())
    config, weights = codec.encode(
        factors,
        rank=rank,
        alpha=float(rank),
        scaling="lora",
        target_modules=families.target_modules(compiled.linears, tuple(factors)),
        base="",
    )
    (folder / codec.CONFIG_FILE).write_bytes(config)
    (folder / codec.WEIGHTS_FILE).write_bytes(weights)


def _fill(model: nn.Module, adapter: Adapter, base: Beneath) -> None:
    """Give a model every tensor of a checkpoint, one at a time, in float32."""
    own = {base.tensor_name(name): stored for name, stored in adapter.rest.items()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        stored = own.get(base.tensor_name(name))
        if stored is not None and stored.shape == tuple(parameter.shape):
            parameter.data = stored.read().float()
