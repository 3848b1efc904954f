"""From a dense update back to a low rank; one module at a time, so that only one is ever dense."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lamina.core.errors import UsageError
from lamina.core.seeds import derive
from lamina.lowrank.maths import Factors, LayerFactors
from lamina.stack.combine.method import Merged, MergedModule, Options, Term, by_module

EXACT_SIDE = 1024
"""Where the smaller side is longer, the decomposition is approximate: the exact one takes 0.2 s for
1536 x 576 and grows with the cube."""
_OVERSAMPLED, _ITERATIONS = 10, 6
"""Further columns and power iterations of the approximate decomposition."""

MergeDense = Callable[[str, Sequence[Term]], Tensor]
"""(module, its updates) -> the merged dense update (O, I), float32."""


def dense(factors: Factors) -> Tensor:
    """scale * B A: (O, I) float32."""
    return factors.scale * (factors.b_OR.float() @ factors.a_RI.float())


def checked_density(options: Options, default: float) -> float:
    """The density asked for, or the default. Raises UsageError unless 0 < density <= 1."""
    density = default if options.density is None else options.density
    if not 0 < density <= 1:
        raise UsageError(
            f"density {density:g} is no share of entries to keep",
            hint="give one above 0, at most 1",
        )
    return density


def merge_dense(
    layers: Sequence[LayerFactors],
    weights: Sequence[float],
    options: Options,
    merge: MergeDense,
) -> Merged:
    """Merge every module densely and keep the nearest update of rank sum(R_i), scale 1.

    `options.exact` gets each dense result. Raises LayerError (see `by_module`).
    """
    terms = by_module(layers, weights)
    modules: dict[str, MergedModule] = {}
    for module, found in terms.items():
        delta_OI = merge(module, found)
        options.exact(module, delta_OI)
        rank = sum(factors.rank for _, factors in found)
        factors = nearest(delta_OI, rank, derive(options.seed, "nearest", module))
        lost, norm = float((delta_OI - dense(factors)).norm()), float(delta_OI.norm())
        modules[module] = MergedModule(factors, rank, lost, norm)
        options.progress(len(modules), len(terms))
    return Merged(modules, tuple(weights))


def nearest(delta_OI: Tensor, rank: int, seed: int) -> Factors:
    """The update of at most `rank` nearest to dW (Eckart and Young, Psychometrika 1 (1936) 211).

    dW ~ (U sqrt(sigma)) (sqrt(sigma) V^T), cut at `rank`. Where the smaller side is longer than
    EXACT_SIDE, by random subspace iteration (Halko et al., arXiv:0909.4061, algorithm 4.4), the
    same for the same seed. Float32; mutates nothing.
    """
    rank = min(rank, *delta_OI.shape)
    if min(delta_OI.shape) <= EXACT_SIDE:
        u_OK, sigma_K, vh_KI = torch.linalg.svd(delta_OI, full_matrices=False)
    else:
        q_OK = _range(delta_OI, min(rank + _OVERSAMPLED, *delta_OI.shape), seed)
        u_KK, sigma_K, vh_KI = torch.linalg.svd(q_OK.T @ delta_OI, full_matrices=False)
        u_OK = q_OK @ u_KK
    root_R = sigma_K[:rank].sqrt()
    b_OR = u_OK[:, :rank] * root_R
    a_RI = vh_KI[:rank] * root_R[:, None]
    return Factors(a_RI.contiguous(), b_OR.contiguous(), 1.0)


def _range(delta_OI: Tensor, columns: int, seed: int) -> Tensor:
    """An orthonormal basis (O, K) of the strongest part of dW's column space."""
    generator = torch.Generator().manual_seed(seed)
    drawn_IK = torch.randn(delta_OI.shape[1], columns, generator=generator)
    q_OK: Tensor = torch.linalg.qr(delta_OI @ drawn_IK)[0]
    for _ in range(_ITERATIONS):
        q_IK = torch.linalg.qr(delta_OI.T @ q_OK)[0]
        q_OK = torch.linalg.qr(delta_OI @ q_IK)[0]
    return q_OK
