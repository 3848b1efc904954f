"""knots: express all updates in one basis of outputs, then merge as TIES does, in that basis.

    [dW_1 ... dW_n] = U [P_1 ... P_n],  U orthonormal,  P_i = Sigma V_i^T = U^T dW_i,
    dW = U ties(P_1, ..., P_n).

Entries of aligned parts can be compared where entries of the updates themselves cannot. The result
has no higher rank than U, so nothing is lost, and dW is never formed.

Reference: Stoica et al., "Model merging with SVD to tie the knots", arXiv:2410.19735.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lamina.lowrank.maths import Factors, LayerFactors
from lamina.stack.combine.dense import checked_density
from lamina.stack.combine.method import (
    PLAIN,
    Merged,
    MergedModule,
    Method,
    Options,
    Term,
    by_module,
)
from lamina.stack.combine.ties import DENSITY, merge_entries

NOISE = 1e-6
"""Singular values up to this share of the largest are rounding of float32 factors."""


def knots(
    layers: Sequence[LayerFactors], weights: Sequence[float], options: Options = PLAIN
) -> Merged:
    """KnOTS with TIES, of every module: rank at most sum(R_i), scale 1, float32.

    Shapes: layers of any ranks. Computed in float64. Weights count relative to each other, as in
    `ties`. Mutates nothing. Raises LayerError (see `by_module`), UsageError for a density out of
    range.
    """
    density = checked_density(options, DENSITY)
    terms = by_module(layers, weights)
    modules: dict[str, MergedModule] = {}
    for module, found in terms.items():
        merged = _tied(found, [weights[index] for index, _ in found], density)
        modules[module] = MergedModule(merged, sum(factors.rank for _, factors in found))
        options.progress(len(modules), len(terms))
    return Merged(modules, tuple(weights))


def _tied(terms: Sequence[Term], weights: Sequence[float], density: float) -> Factors:
    basis_OK = joint_basis([factors for _, factors in terms])
    parts_NKI = torch.stack(
        [f.scale * (basis_OK.T @ f.b_OR.double()) @ f.a_RI.double() for _, f in terms]
    )
    merged_KI = merge_entries(parts_NKI, weights, density)
    return Factors(merged_KI.float().contiguous(), basis_OK.float().contiguous(), 1.0)


def joint_basis(terms: Sequence[Factors]) -> Tensor:
    """U (O, K) of the singular value decomposition of [dW_1 ... dW_n], through small matrices.

    With [s_1 B_1 ... s_n B_n] = Q [R_1 ... R_n] and A_i^T = Q_i L_i, the left singular vectors are
    Q times those of [R_1 L_1^T ... R_n L_n^T]. Float64. K is the numerical rank, at least 1.
    """
    b_OR = torch.cat([term.b_OR.double() * term.scale for term in terms], dim=1)
    q_OP, r_PR = torch.linalg.qr(b_OR)
    parts = r_PR.split([term.rank for term in terms], dim=1)
    core_PR = torch.cat(
        [
            part_PR @ torch.linalg.qr(term.a_RI.double().T)[1].T
            for part_PR, term in zip(parts, terms, strict=True)
        ],
        dim=1,
    )
    u_PK, sigma_K, _ = torch.linalg.svd(core_PR, full_matrices=False)
    kept = max(1, int((sigma_K > NOISE * sigma_K[0]).sum()))
    basis_OK: Tensor = q_OP @ u_PK[:, :kept]
    return basis_OK


KNOTS = Method("knots", knots, "arXiv:2410.19735", result="low-rank", density=DENSITY)
