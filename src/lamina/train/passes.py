"""A step's batch in passes: what goes through the model at once, where memory does not hold it all.

The step stays what it is: the loss is the mean over the batch's supervised tokens, whatever number
of passes its gradient is the sum of.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lamina.bases.families import backbone
from lamina.tokens.batch import collate
from lamina.tokens.mask import Encoded
from lamina.train.crew import Alone, Crew, share
from lamina.train.fused import FusedDecoder
from lamina.train.graphs import Graphs
from lamina.train.objective import Decoder, SoftTargets, token_losses, worst_of_rows
from lamina.train.teach import mixed


def split_rows(lengths: Sequence[int], at_once: int) -> list[slice]:
    """Rows, in order, cut into runs whose padded size, rows x longest, is at most `at_once`; a row
    longer than that is a run of its own."""
    cuts = [0]
    longest = 0
    for row, length in enumerate(lengths):
        longest = max(longest, length)
        if row > cuts[-1] and (row - cuts[-1] + 1) * longest > at_once:
            cuts.append(row)
            longest = length
    return [slice(a, b) for a, b in zip(cuts, [*cuts[1:], len(lengths)], strict=True) if a < b]


def backward(
    model: nn.Module | Decoder,
    rows: Sequence[Encoded],
    said: Sequence[SoftTargets | None],
    pad_id: int,
    at_once: int,
    *,
    checkpointing: bool = False,
    graphs: Graphs | None = None,
    crew: Crew | None = None,
) -> tuple[Tensor, Tensor]:
    """The mean loss of the rows' supervised tokens, whose gradient is added to the factors', and
    each row's worst (see `worst_of_rows`).

    `checkpointing` is about transformers' modules: a fused decoder knows by itself. `graphs`: of
    this decoder, where there are such. In a `crew` all three are this worker's part of them, 0 for
    others' rows.
    """
    total = sum(row.supervised for row in rows)
    mine = share([len(row) for row in rows], crew or Alone())
    loss, worst_B = torch.zeros(()), torch.zeros(len(rows))
    fused = isinstance(model, FusedDecoder)
    modules = model if isinstance(model, nn.Module) else model.model
    with checkpointed(modules, checkpointing and not fused):
        for part in split_rows([len(rows[i]) for i in mine], at_once):
            batch = collate([rows[i] for i in mine[part]], pad_id)
            soft = mixed(batch, [said[i] for i in mine[part]])
            if graphs is not None:
                losses_N = graphs.backward(batch, soft, 1 / total)
            else:
                losses_N = token_losses(model, batch, soft)
                (losses_N.sum() / total).backward()  # type: ignore[no-untyped-call]
            losses_N = losses_N.detach()
            loss = loss + (losses_N.sum() / total).cpu()
            worst_B[mine[part]] = worst_of_rows(losses_N, batch, soft)
    return loss, worst_B


@contextmanager
def checkpointed(model: nn.Module, wanted: bool) -> Iterator[None]:
    """transformers' own gradient checkpointing of decoder layers for a block, where it is wanted.

    transformers asks the layer whether it is training; what is inside stays in eval mode, without
    dropout.
    """
    if not wanted:
        yield
        return
    decoder: Any = model
    inner: Any = backbone(model)
    layers: list[nn.Module] = list(inner.layers)
    # transformers 5.23 renamed it; the older name warns
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(decoder, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    before = [layer.training for layer in layers]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.training = was
        getattr(decoder, f"{kind}_checkpointing_disable")()
