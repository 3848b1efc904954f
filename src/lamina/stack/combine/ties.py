"""ties: keep each layer's largest entries, drop those that the others outvote, average the rest.

Reference: Yadav et al., "TIES-Merging", arXiv:2306.01708, with lambda = 1.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lamina.lowrank.maths import LayerFactors
from lamina.stack.combine.dense import checked_density, dense, merge_dense
from lamina.stack.combine.method import PLAIN, Merged, Method, Options, Term

DENSITY = 0.2
"""Share of entries kept (arXiv:2306.01708: the top 20%)."""


def ties(
    layers: Sequence[LayerFactors], weights: Sequence[float], options: Options = PLAIN
) -> Merged:
    """TIES of each module's dense updates, then the nearest update of rank sum(R_i).

    A layer that leaves a module alone has no vote there. Shapes: layers of any ranks. Float32.
    Mutates nothing. Raises LayerError (see `by_module`), UsageError for a density out of range.
    """
    density = checked_density(options, DENSITY)

    def merge(module: str, terms: Sequence[Term]) -> Tensor:
        updates_NOI = torch.stack([dense(factors) for _, factors in terms])
        return merge_entries(updates_NOI, [weights[index] for index, _ in terms], density)

    return merge_dense(layers, weights, options, merge)


def merge_entries(updates_NX: Tensor, weights: Sequence[float], density: float) -> Tensor:
    """Trim, elect, mean; entry by entry.

    t_i = the ceil(density X) largest entries of update i by magnitude, 0 elsewhere;
    g = sign(sum_i w_i t_i), the sign of the larger mass;
    merged = sum_j w_j t_j / sum_j |w_j| over those j whose w_j t_j has the sign g.
    An entry where both signs have the same mass is 0. Weights count relative to each other.

    Shapes: (N, ...) -> (...), in the updates' dtype. Mutates nothing.
    """
    w_N = torch.tensor(list(weights), dtype=updates_NX.dtype)
    w_NX = w_N.view(-1, *[1] * (updates_NX.ndim - 1))
    voted_NX = torch.stack([_trimmed(update_X, density) for update_X in updates_NX]) * w_NX
    elected_X = voted_NX.sum(0).sign()
    agrees_NX = (voted_NX.sign() == elected_X) & (voted_NX != 0)
    mass_X = (agrees_NX * w_NX.abs()).sum(0)
    total_X = (agrees_NX * voted_NX).sum(0)
    return torch.where(mass_X > 0, total_X / mass_X, torch.zeros_like(total_X))


def _trimmed(update_X: Tensor, density: float) -> Tensor:
    size_X = update_X.abs()
    kept = math.ceil(density * update_X.numel())
    least = size_X.flatten().kthvalue(update_X.numel() - kept + 1).values
    return torch.where(size_X >= least, update_X, torch.zeros_like(update_X))


TIES = Method("ties", ties, "arXiv:2306.01708", result="dense", density=DENSITY)
