"""The nearest low-rank update to any difference of weights, with what it leaves out.

Truncating the singular value decomposition leaves the nearest matrix of that rank in the Frobenius
norm (Eckart and Young, Psychometrika 1 (1936) 211). A weight that was stored in a narrow dtype
carries rounding noise, which is of full rank: independent entries of standard deviation e have
no singular value above e (sqrt(O) + sqrt(I) + t), but with a chance of 2 exp(-t^2 / 2) (Davidson
and Szarek 2001, theorem 2.13). What lies above that edge is signal; what lies below is not kept
unless it is asked for.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lamina.core.errors import LayerError
from lamina.lowrank.maths import Factors

MOST = 128
"""Largest rank that is kept where neither a rank nor a tolerance is given."""
EXACT = 1024
"""Matrices whose smaller side is at most this long are decomposed exactly, larger ones by random
projections (Halko, Martinsson and Tropp, arXiv:0909.4061)."""
_NUMERICAL = 1e-7
"""Singular values below this share of the largest are rounding of the decomposition."""
_OVERSAMPLE, _POWER = 16, 4
_SURE = 4.0
"""t of the edge: one matrix of noise in 1,500 reaches above it."""


@dataclass(frozen=True, eq=False)
class Nearest:
    """delta W as s B A, and what is not in it."""

    factors: Factors | None
    """Scale 1, float32, sqrt(sigma) on both sides; None where nothing is above the noise."""
    norm: float
    """Frobenius norm of delta W."""
    discarded: float
    """Frobenius norm of delta W - B A."""
    noise: float
    """Frobenius norm that rounding alone is expected to have."""

    @property
    def rank(self) -> int:
        """Singular values kept."""
        return 0 if self.factors is None else self.factors.rank

    @property
    def share(self) -> float:
        """|delta W - B A| / |delta W|; 0 for a difference that is zero."""
        return self.discarded / self.norm if self.norm else 0.0


def rounding(weight: Tensor) -> float:
    """Root mean square error that rounding to `weight`'s dtype has left on each element.

    ulp / sqrt(12) for each, ulp = eps 2^floor(log2 |w|).
    """
    _, exponent = torch.frexp(weight.float())
    ulp = torch.finfo(weight.dtype).eps * torch.exp2(exponent.double() - 1)
    return float((ulp.square().mean() / 12).sqrt())


def nearest(
    delta_OI: Tensor,
    *,
    rank: int | None = None,
    tolerance: float | None = None,
    error: float = 0.0,
) -> Nearest:
    """The low-rank update nearest to `delta_OI` (O, I), computed in float64 (float32 if large).

    `rank`: at most that many singular values. `tolerance`: as few as leave out at most this share
    of the Frobenius norm. Neither: those above the edge of noise whose elements have the standard
    deviation `error`, at most MOST, and never more than save numbers over the full matrix.
    Mutates nothing. Raises LayerError for numbers that are not finite, or limits out of range.
    """
    if rank is not None and rank < 1:
        raise LayerError(f"rank {rank} is below 1")
    if tolerance is not None and not 0 < tolerance < 1:
        raise LayerError(f"tolerance {tolerance} is not between 0 and 1")
    rows, columns = delta_OI.shape
    if rows > columns:
        return _turned(nearest(delta_OI.T, rank=rank, tolerance=tolerance, error=error))
    norm = float(delta_OI.double().norm())
    if not math.isfinite(norm):
        raise LayerError("numbers that are not finite")
    noise = error * math.sqrt(rows * columns)
    if norm == 0.0:
        return Nearest(None, 0.0, 0.0, noise)
    edge = error * (math.sqrt(rows) + math.sqrt(columns) + _SURE)
    most = rows
    if rank is not None:
        most = min(most, rank)
    elif tolerance is None:
        most = min(MOST, max(1, rows * columns // (rows + columns)))
    u_OK, sigma_K = _decomposed(delta_OI, most, norm, tolerance)
    kept = min(most, int((sigma_K > _NUMERICAL * sigma_K[0]).sum()))
    if tolerance is not None:
        left_K = (norm**2 - sigma_K.square().cumsum(0)).clamp(min=0).sqrt()
        kept = min(kept, int((left_K > tolerance * norm).sum()) + 1)
    elif rank is None:
        kept = min(kept, int((sigma_K > edge).sum()))
    if kept == 0:
        return Nearest(None, norm, norm, noise)
    u_OR = u_OK[:, :kept]
    projected_RI = u_OR.T @ delta_OI.to(u_OR.dtype)
    discarded = float((delta_OI.double() - (u_OR @ projected_RI).double()).norm())
    root_R = sigma_K[:kept].sqrt()
    factors = Factors(
        (projected_RI / root_R[:, None]).float().contiguous(),
        (u_OR * root_R).float().contiguous(),
        1.0,
    )
    return Nearest(factors, norm, discarded, noise)


def _decomposed(
    delta_OI: Tensor, most: int, norm: float, tolerance: float | None
) -> tuple[Tensor, Tensor]:
    """Left singular vectors (O, K) and singular values (K,), falling, K at least `most` or enough
    for the tolerance."""
    small = min(delta_OI.shape)
    if small <= EXACT:
        return _exact(delta_OI.double())
    narrow_OI = delta_OI.float()
    width = most if tolerance is None else min(most, MOST)
    while True:
        if width + _OVERSAMPLE > small // 2:
            return _exact(delta_OI.double())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same difference gives the same layer
            u_OK, sigma_K, _ = torch.svd_lowrank(narrow_OI, width + _OVERSAMPLE, niter=_POWER)
        left = math.sqrt(max(0.0, norm**2 - float(sigma_K[:width].double().square().sum())))
        if tolerance is None or width >= most or left <= tolerance * norm:
            return u_OK, sigma_K
        width *= 2


def _exact(delta_OI: Tensor) -> tuple[Tensor, Tensor]:
    """By the eigenvalues of the Gram matrix (O, O), O <= I: float64 leaves 1e-8 of the largest."""
    values_K, u_OK = torch.linalg.eigh(delta_OI @ delta_OI.T)
    return u_OK.flip(1), values_K.flip(0).clamp(min=0).sqrt()


def _turned(found: Nearest) -> Nearest:
    """The same for the transposed matrix."""
    if found.factors is None:
        return found
    a_RI, b_OR = found.factors.b_OR.T.contiguous(), found.factors.a_RI.T.contiguous()
    return replace(found, factors=Factors(a_RI, b_OR, 1.0))


def dora(weight_OI: Tensor, update_OI: Tensor, magnitude_O: Tensor) -> Tensor:
    """What DoRA adds to W: m (W + U) / |W + U| - W, norms over each output's row.

    (arXiv:2402.09353, equation 5, as peft computes it.) Shapes (O, I), (O, I), (O,), float64.
    Mutates nothing. Raises LayerError where a row's norm is zero.
    """
    directed_OI = weight_OI + update_OI
    norm_O = directed_OI.norm(dim=1)
    if not bool((norm_O > 0).all()):
        raise LayerError("a row of the weights is zero, so that DoRA has no direction")
    scaled_OI: Tensor = directed_OI * (magnitude_O.double() / norm_O)[:, None]
    return scaled_OI - weight_OI
