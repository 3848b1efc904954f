"""The nearest low-rank update to any difference of weights, with what it leaves out.

Truncating the singular value decomposition leaves the nearest matrix of that rank in the Frobenius
norm (Eckart and Young, Psychometrika 1 (1936) 211). A weight that was stored in a narrow dtype
carries rounding noise, which is of full rank: the largest singular value of independent entries of
standard deviations b_ij is about max_i |b_i.| + max_j |b_.j| at most, or a few max b_ij above that
(Bandeira and van Handel, arXiv:1408.6185). What lies above that edge is signal; what lies below is
not kept unless it is asked for.

A change that is smaller than the rounding of weights that were on the dtype's grid before is no
such sum: most elements did not move at all. What is left then is smaller than noise would be, and
is not taken for it.
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
_NOISY = 0.5
"""Share of the expected noise that a remainder must have to pass for noise."""
_SURE = 4.0
"""Largest b_ij that the edge is put higher by: noise gets there with a chance of exp(-8)."""


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
    cut: bool = False
    """Singular values were left out because they are of the size of rounding."""

    @property
    def rank(self) -> int:
        """Singular values kept."""
        return 0 if self.factors is None else self.factors.rank

    @property
    def share(self) -> float:
        """|delta W - B A| / |delta W|; 0 for a difference that is zero."""
        return self.discarded / self.norm if self.norm else 0.0


@dataclass(frozen=True)
class Noise:
    """What rounding does to a matrix."""

    norm: float = 0.0
    """Expected Frobenius norm."""
    edge: float = 0.0
    """What its singular values stay below."""

    def times(self, factor: float) -> "Noise":
        """Noise that is `factor` times as strong."""
        return Noise(self.norm * factor, self.edge * factor)


def rounding(weight_OI: Tensor) -> Noise:
    """What rounding to `weight_OI`'s dtype has added to it.

    Variance of each element: ulp^2 / 12, ulp = eps 2^floor(log2 |w|).
    """
    _, exponent_OI = torch.frexp(weight_OI.float())
    ulp_OI = torch.finfo(weight_OI.dtype).eps * torch.exp2(exponent_OI.double() - 1)
    variance_OI = ulp_OI.square_().div_(12)
    rows, columns = (float(variance_OI.sum(dim).max()) for dim in (1, 0))
    edge = math.sqrt(rows) + math.sqrt(columns) + _SURE * math.sqrt(float(variance_OI.max()))
    return Noise(math.sqrt(float(variance_OI.sum())), edge)


def nearest(
    delta_OI: Tensor,
    *,
    rank: int | None = None,
    tolerance: float | None = None,
    noise: Noise | None = None,
) -> Nearest:
    """The low-rank update nearest to `delta_OI` (O, I), computed in float64 (float32 if large).

    `rank`: at most that many singular values. `tolerance`: as few as leave out at most this share
    of the Frobenius norm. Neither: those above the edge of `noise` where the
    rest is as large as noise is, at most MOST, and never more than save numbers over the full
    matrix.
    Mutates nothing. Raises LayerError for numbers that are not finite, or limits out of range.
    """
    if rank is not None and rank < 1:
        raise LayerError(f"rank {rank} is below 1")
    if tolerance is not None and not 0 < tolerance < 1:
        raise LayerError(f"tolerance {tolerance} is not between 0 and 1")
    rows, columns = delta_OI.shape
    if rows > columns:
        return _turned(nearest(delta_OI.T, rank=rank, tolerance=tolerance, noise=noise))
    norm = float(delta_OI.double().norm())
    if not math.isfinite(norm):
        raise LayerError("numbers that are not finite")
    known = noise or Noise()
    if norm == 0.0:
        return Nearest(None, 0.0, 0.0, known.norm)
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
    above = int((sigma_K[:kept] > known.edge).sum())
    left = math.sqrt(max(0.0, norm**2 - float(sigma_K[:above].double().square().sum())))
    cut = rank is None and tolerance is None and above < kept and left >= _NOISY * known.norm
    kept = above if cut else kept
    if kept == 0:
        return Nearest(None, norm, norm, known.norm, cut)
    u_OR = u_OK[:, :kept]
    projected_RI = u_OR.T @ delta_OI.to(u_OR.dtype)
    discarded = float((delta_OI.double() - (u_OR @ projected_RI).double()).norm())
    root_R = sigma_K[:kept].sqrt()
    factors = Factors(
        (projected_RI / root_R[:, None]).float().contiguous(),
        (u_OR * root_R).float().contiguous(),
        1.0,
    )
    return Nearest(factors, norm, discarded, known.norm, cut)


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
