"""Rehearsal by what the stack itself says: old rows are learned from the stack's own distribution
as it was before training, not from their labels (dark experience replay, arXiv:2004.07211).

A few old rows seen many times would be learned by heart, and what is like them forgotten; the
stack's own distribution over the same rows says more of what it knew, and is no news to it.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lamina.bases.families import head, logits
from lamina.tokens.batch import Batch, collate
from lamina.tokens.mask import Encoded
from lamina.tokens.pack import plan_batches
from lamina.train.job import Job
from lamina.train.objective import SoftTargets, predicting
from lamina.train.rehearse import Taught

TOKENS = 16
"""Most likely tokens kept at each position; their probabilities are scaled to sum to 1."""
CHUNK = 256
"""Positions whose logits exist at once."""


@torch.inference_mode()
def sayings(
    model: nn.Module, rows: Sequence[Encoded], batch_tokens: int, pad_id: int
) -> list[SoftTargets]:
    """What the model says at each row's supervised tokens, row by row, left to right."""
    said: dict[int, SoftTargets] = {}
    for indices in plan_batches([len(row) for row in rows], batch_tokens, seed=0, epoch=0):
        batch = collate([rows[i] for i in indices], pad_id)
        ids_NK, weights_NK = _likeliest(model, batch)
        for place, index in enumerate(indices):
            of_row = batch.row_of_target == place
            said[index] = SoftTargets(ids_NK[of_row], weights_NK[of_row])
    return [said[index] for index in range(len(rows))]


def said_of_old_rows(
    job: Job, groups: Sequence[Sequence[int]], taught: Taught
) -> dict[int, SoftTargets | None]:
    """What the model as it is says of the old rows of those pools that teach `taught`, by their
    place in (*job.rows, *job.old_rows); None for all rows of which the labels are learned.

    Rows of one group share forwards; what is in none of them has nothing said of it.
    """
    said: dict[int, SoftTargets | None] = {}
    asked: dict[int, Encoded] = {}
    start = len(job.rows)
    for pool in job.rehearsal:
        indexed = dict(enumerate(cast(Sequence[Encoded], pool.rows), start))
        start += len(pool.rows)
        if taught == "labels" and (pool.taught == taught or not pool.share):
            said |= dict.fromkeys(indexed)
        elif pool.taught == taught and pool.share:
            asked |= indexed
    for group in groups:
        chosen = [index for index in group if index in asked]
        rows = [asked[index] for index in chosen]
        answers = sayings(job.model, rows, job.recipe.at_once, job.pad_id)
        said |= dict(zip(chosen, answers, strict=True))
    return said


def _likeliest(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    hidden_NH, spec = predicting(model, batch), head(model)
    ids, weights = [], []
    for part_NH in torch.split(hidden_NH, CHUNK):
        top = logits(part_NH, spec).float().softmax(-1).topk(TOKENS, dim=-1)
        ids.append(top.indices)
        weights.append(top.values / top.values.sum(-1, keepdim=True))
    if not ids:
        return torch.empty(0, TOKENS, dtype=torch.int64), torch.empty(0, TOKENS)
    return torch.cat(ids).cpu(), torch.cat(weights).cpu()


def mixed(batch: Batch, said: Sequence[SoftTargets | None]) -> SoftTargets | None:
    """Targets of a batch whose i-th row learns from `said[i]`, or from its labels where None."""
    if all(each is None for each in said):
        return None
    ids_NK = torch.zeros(len(batch.targets), TOKENS, dtype=torch.int64)
    weights_NK = torch.zeros(len(batch.targets), TOKENS)
    ids_NK[:, 0], weights_NK[:, 0] = batch.targets, 1.0
    for place, each in enumerate(said):
        if each is not None:
            of_row = batch.row_of_target == place
            ids_NK[of_row], weights_NK[of_row] = each.ids_NK.clone(), each.weights_NK.clone()
    return SoftTargets(ids_NK, weights_NK)
