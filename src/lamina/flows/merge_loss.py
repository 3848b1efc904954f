"""The loss that learned merge weights descend: of some rows, on the parent with the layers added.

The parent's weights are compiled once and stay as they are; the layers lie beside them as one
concatenated update, whose B is written anew for every weights that are tried.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, zip_longest

import torch
from torch import Tensor

from lamina.core.errors import DataError, UsageError
from lamina.core.report import Reporter
from lamina.data.example import Example
from lamina.data.read import read
from lamina.flows import rehearsal
from lamina.flows.contributions import Contribution
from lamina.lowrank.attach import Attachment, attached
from lamina.lowrank.maths import LayerFactors
from lamina.stack.combine.concat import concat
from lamina.stack.combine.learned import weight_gradients
from lamina.stack.combine.method import LossAndGradients
from lamina.stack.compile import Compiled, compile_stack
from lamina.stack.resolve import ResolvedStack
from lamina.store.layout import Store
from lamina.tokens.batch import Batch, collate
from lamina.tokens.mask import Encoded, encode_all
from lamina.tokens.pack import plan_batches
from lamina.train.fused import fuse
from lamina.train.objective import token_losses

MOST_TOKENS = 4096
"""Tokens looked at for each weights that are tried: two numbers need no more."""
BATCH_TOKENS = 2048
MAX_LENGTH = 1024


def rows_of(store: Store, parts: Sequence[Contribution], files: Sequence[str]) -> list[Example]:
    """The rows of `files`, else those of the contributions' rehearsal sets, in turns.

    Raises DataError, and UsageError listing contributions without a rehearsal set.
    """
    if files:
        return list(read(files).examples)
    sets = [rehearsal.of_layers(store, part.layers) for part in parts]
    without = [part.label for part, rows in zip(parts, sets, strict=True) if not rows]
    if without:
        raise UsageError(
            "learned weights need rows of every stack's kind",
            faults=[f"{label} carries no rehearsal set" for label in without],
            hint="give rows of all kinds with --examples FILE",
        )
    return [row for row in chain.from_iterable(zip_longest(*sets)) if row is not None]


@contextmanager
def loss_over(
    store: Store,
    parent: ResolvedStack,
    layers: Sequence[LayerFactors],
    rows: Sequence[Example],
    reporter: Reporter,
    dtype: torch.dtype = torch.bfloat16,
) -> Iterator[LossAndGradients]:
    """weights -> (mean loss in nats a token, dL/dw), for the length of a block. Deterministic.

    Rows count until MOST_TOKENS are reached. Raises DataError when they leave no token to answer.
    """
    compiled = compile_stack(store, parent, dtype=dtype)
    batches = _batches(compiled, rows, reporter)
    tokens = sum(len(batch.targets) for batch in batches)
    whole = concat(layers, [1.0] * len(layers)).factors
    with attached(compiled.model, whole, compiled.linears) as attachment:
        for module in attachment.modules.values():
            module.a.requires_grad_(False)
        model = fuse(compiled.model)[0] or compiled.model

        def loss_and_gradients(weights: Sequence[float]) -> tuple[float, Sequence[float]]:
            _write(attachment, concat(layers, weights).factors)
            attachment.zero_grad()
            loss = 0.0
            for batch in batches:
                part = token_losses(model, batch).sum() / tokens
                part.backward()  # type: ignore[no-untyped-call]
                loss += float(part.detach())
            return loss, weight_gradients(layers, _b_gradients(attachment))

        yield loss_and_gradients


def _batches(compiled: Compiled, rows: Sequence[Example], reporter: Reporter) -> list[Batch]:
    encoded = encode_all(rows, compiled.format, max_length=MAX_LENGTH, overlong="truncate").rows
    chosen: list[Encoded] = []
    taken = 0
    for row in encoded:
        if taken + len(row) > MOST_TOKENS and chosen:
            break
        chosen.append(row)
        taken += len(row)
    if not chosen:
        raise DataError(
            f"none of {len(rows)} rows leaves a token to learn from", hint="give rows with answers"
        )
    reporter.say(f"learning the weights from {len(chosen)} of {len(rows)} rows, {taken} tokens")
    plan = plan_batches([len(row) for row in chosen], BATCH_TOKENS, seed=0, epoch=0)
    return [collate([chosen[i] for i in batch], compiled.pad_id) for batch in plan]


@torch.no_grad()
def _write(attachment: Attachment, factors: LayerFactors) -> None:
    """Give the attached update other values; its A stays."""
    for name, module in attachment.modules.items():
        module.b.copy_(factors[name].b_OR)


def _b_gradients(attachment: Attachment) -> dict[str, Tensor]:
    found = {name: module.b.grad for name, module in attachment.modules.items()}
    return {name: gradient for name, gradient in found.items() if gradient is not None}
