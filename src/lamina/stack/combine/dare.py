"""dare: drop entries of each update at random, make the others larger, add.

Reference: Yu et al., "Language models are super Mario", arXiv:2311.03099.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lamina.core.seeds import derive
from lamina.lowrank.maths import LayerFactors
from lamina.stack.combine.dense import checked_density, dense, merge_dense
from lamina.stack.combine.method import PLAIN, Merged, Method, Options, Term

DENSITY = 0.5
"""Share of entries kept. The paper drops up to 0.9 of full updates; the fewer are kept, the more of
the result is noise that no low rank holds."""


def dare(
    layers: Sequence[LayerFactors], weights: Sequence[float], options: Options = PLAIN
) -> Merged:
    """sum_i w_i m_i * dW_i / density with m_i ~ Bernoulli(density), then the nearest update of
    rank sum(R_i).

    Each layer's mask of each module has its own stream, derived from the seed. Shapes: layers of
    any ranks. Float32. Mutates nothing.
    Raises LayerError (see `by_module`), UsageError for a density out of range.
    """
    density = checked_density(options, DENSITY)

    def merge(module: str, terms: Sequence[Term]) -> Tensor:
        dropped = [
            dropped_out(dense(factors), density, derive(options.seed, "dare", module, index))
            * weights[index]
            for index, factors in terms
        ]
        return torch.stack(dropped).sum(0)

    return merge_dense(layers, weights, options, merge)


def dropped_out(update_OI: Tensor, density: float, seed: int) -> Tensor:
    """m * x / density, m ~ Bernoulli(density): x in expectation. Mutates nothing."""
    generator = torch.Generator().manual_seed(seed)
    mask_OI = torch.empty_like(update_OI).bernoulli_(density, generator=generator)
    return mask_OI * update_OI / density


DARE = Method("dare", dare, "arXiv:2311.03099", result="dense", density=DENSITY, seeded=True)
