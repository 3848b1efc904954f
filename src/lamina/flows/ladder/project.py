"""Rung 2: correct the factors for what the new parents changed, by two forward passes.

Both stacks read the layer's rehearsal set; each A is then corrected so that the update does to the
new inputs what it did to the old ones (`lowrank.align`).
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lamina.flows import rehearsal
from lamina.flows.ladder.copy import put_over
from lamina.flows.ladder.rung import Move, Moved
from lamina.lowrank.align import InputMoments, aligned
from lamina.lowrank.attach import fold_into
from lamina.lowrank.inputs import inputs_of
from lamina.lowrank.maths import Factors
from lamina.stack.compile import Compiled, compile_stack, stored_factors
from lamina.tokens.batch import Batch, collate
from lamina.tokens.mask import encode_all
from lamina.tokens.pack import plan_batches
from lamina.train.objective import token_losses

BATCH_TOKENS = 2048
MAX_LENGTH = 1024
MOMENT_BYTES = 2 << 30
"""Most memory for the moments of one group of linears; more linears take more passes."""


def project(move: Move) -> Moved | str:
    """Costs forward passes over the rehearsal set's rows on both stacks."""
    if not move.same_shapes or not move.same_tokens:
        return "the bases differ in shape or tokenizer"
    if move.old.draws:
        return "of image stacks no inputs are measured"
    rows = rehearsal.of_layers(move.store, [move.layer])
    if not rows:
        return "the layer carries no rehearsal set to measure by"
    factors = stored_factors(move.store, move.layer.digest)
    old = compile_stack(move.store, move.old)
    new = compile_stack(move.store, move.onto)
    weighted = {name: part.weighted(move.layer.weight) for name, part in factors.items()}
    fold_into(new.linears, weighted)  # its inputs are those of a stack that has the layer
    encoded = encode_all(rows, old.format, max_length=MAX_LENGTH, overlong="truncate").rows
    plan = plan_batches([len(row) for row in encoded], BATCH_TOKENS, seed=0, epoch=0)
    batches = [collate([encoded[i] for i in batch], old.pad_id) for batch in plan]
    corrected: dict[str, Factors] = {}
    for group in _groups({name: new.linears[name].in_features for name in factors}):
        moments = _moments(old, new, group, batches)
        corrected |= {name: aligned(factors[name], moments[name]) for name in group}
        text = f"measuring inputs: {len(corrected)}/{len(factors)} linears"
        last = len(corrected) == len(factors)
        move.reporter.event({"event": "examining", "text": text, "last": last})
    return put_over(move, corrected)


def _groups(features: Mapping[str, int]) -> Iterator[list[str]]:
    """Modules in groups whose moments fit into MOMENT_BYTES; at least one a group."""
    group: list[str] = []
    used = 0
    for name, size in features.items():
        need = 8 * size * size
        if group and used + need > MOMENT_BYTES:
            yield group
            group, used = [], 0
        group.append(name)
        used += need
    if group:
        yield group


@torch.inference_mode()
def _moments(
    old: Compiled, new: Compiled, modules: Sequence[str], batches: Sequence[Batch]
) -> dict[str, InputMoments]:
    """Moments of the modules' inputs over all real tokens of the batches."""
    found = {name: InputMoments(new.linears[name].in_features) for name in modules}
    for batch in batches:
        real = _real(batch)
        with inputs_of(_some(old, modules)) as before, inputs_of(_some(new, modules)) as after:
            token_losses(old.model, batch)
            token_losses(new.model, batch)
        for name in modules:
            found[name].add(before[name][real], after[name][real])
    return found


def _some(compiled: Compiled, modules: Sequence[str]) -> dict[str, nn.Linear]:
    return {name: compiled.linears[name] for name in modules}


def _real(batch: Batch) -> Tensor:
    """(B * T,) True where a token is no padding; rows are padded on the right."""
    places_T = torch.arange(batch.ids.shape[1])
    return (places_T[None] < batch.lengths[:, None]).flatten()
