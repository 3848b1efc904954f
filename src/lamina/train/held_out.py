"""Rows that are held out of training, and what a model makes of them."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lamina.tokens.batch import Batch, collate
from lamina.tokens.mask import Encoded
from lamina.tokens.pack import plan_batches
from lamina.train.crew import Alone, Crew
from lamina.train.job import Job
from lamina.train.objective import Decoder, token_losses


def eval_batches(job: Job) -> list[Batch]:
    """The held-out rows as they go through the model."""
    if not job.eval_rows:
        return []
    rows = cast(Sequence[Encoded], job.eval_rows)
    plan = plan_batches([len(row) for row in rows], job.recipe.at_once, seed=0, epoch=0)
    return [collate([rows[i] for i in batch], job.pad_id) for batch in plan]


@torch.inference_mode()
def mean_loss(
    model: nn.Module | Decoder, batches: Sequence[Batch], crew: Crew | None = None
) -> float:
    """Nats per supervised token over all batches, of which a crew's workers take some each."""
    crew = crew or Alone()
    mine = batches[crew.rank :: crew.size]
    losses: list[Tensor] = [token_losses(model, batch).double() for batch in mine]
    if crew.size == 1:
        return float(torch.cat(losses).mean())
    total, count = sum(float(each.sum()) for each in losses), sum(map(len, losses))
    sums = torch.tensor([total, count], dtype=torch.float64)
    crew.add(sums)
    return float(sums[0] / sums[1])
