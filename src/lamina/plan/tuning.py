"""What more rows would bring: the fine-tuning law, fitted to a lineage's own results.

L(X, D) = A X^-alpha D^-beta + E, nats a token, after fine-tuning on D rows (Zhang et al. 2024,
arXiv:2402.17193, equation 1); X is the size of the model, of its pretraining data or of the
adapter. Along one lineage X does not change, so A X^-alpha is one number K and
L(D) = K D^-beta + E.

Few points say little of three unknowns, so nothing is fitted to a single best curve: the answer is
what all curves say that the points allow. In place of K and E a curve is written by its values at
the least and most rows measured, u and v:

    L(D) = u + (v - u) g(D),    g(D) = (D1^-beta - D^-beta) / (D1^-beta - Dn^-beta)

for which flat priors mean the same whatever beta is. Priors: log beta uniform over BETAS; u and v
flat where v <= u; the variance of a point about its curve scaled-inverse-chi-squared,
`noise`^2 with the weight of TRUST points (Gelman et al., Bayesian Data Analysis, 3rd ed., 14.2).
Given beta all else is a linear regression in closed form; beta is summed over a grid. That E is
not negative is not asked for: it would bend curves that are still straight in log D where they are
measured (of intervals meant to hold the truth 95 times in 100, 73 did where E was near 0).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lamina.core.errors import UsageError

Floats = NDArray[np.float64]

LEAST_POINTS = 3
"""Different numbers of rows without which three unknowns cannot be told apart."""
BETAS = (0.02, 2.0)
"""Zhang et al. find 0.03 to 0.2 for adapters and prompts, up to 0.5 for full fine-tuning."""
GRID, REFINED, DRAWS = 160, 3, 20_000
TRUST = 4.0
"""How many points the stated noise weighs against the scatter of the points themselves."""
NEGLIGIBLE = 1e-9
"""Betas that are so much less likely than the likeliest are left out."""
LEAST_KEPT = 100
"""Draws that have to fall with more rows; else the points do not."""
FAR = 2.0
"""Beyond this multiple of the most rows measured a prediction is far from what it knows."""


class Point(NamedTuple):
    """One measurement."""

    rows: float
    """Different rows learned from."""
    loss: float
    """Held-out, nats a token."""


class Gain(NamedTuple):
    """By how much more rows should lower the loss, nats a token."""

    rows: float
    """So many more."""
    value: float
    """Median."""
    low: float
    """2.5%."""
    high: float
    """97.5%."""
    far: bool
    """Whether that is beyond `FAR` times what was measured."""

    @property
    def half(self) -> float:
        """The y of "x ± y": half of the 95% interval."""
        return (self.high - self.low) / 2


@dataclass(frozen=True, eq=False)
class Fit:
    """Curves that the points allow, by chance: one a draw."""

    points: tuple[Point, ...]
    k: Floats
    beta: Floats
    e: Floats
    sigma: Floats
    """Scatter of a point about its curve, nats a token."""

    @property
    def most(self) -> float:
        """Most rows measured."""
        return max(point.rows for point in self.points)

    def losses(self, rows: float) -> Floats:
        """L(D) of every draw."""
        return self.e + self.k * rows**-self.beta

    def gain(self, more: float, since: float | None = None) -> Gain:
        """What `more` rows bring beyond `since` (None: the most measured)."""
        if not 0 < more < math.inf:
            raise UsageError(f"how many more rows: a positive number, not {more}")
        start = self.most if since is None else since
        low, value, high = _middle(self.losses(start) - self.losses(start + more))
        return Gain(more, value, low, high, start + more > FAR * self.most)

    def measured(self, rows: float, seed: int = 0) -> tuple[float, float, float]:
        """(2.5%, median, 97.5%) of what a training on so many rows would measure: the curve, and a
        point's scatter about it."""
        scatter = np.random.default_rng(seed).normal(size=len(self.sigma)) * self.sigma
        low, value, high = _middle(self.losses(rows) + scatter)
        return low, value, high

    def exponent(self) -> tuple[float, float, float]:
        """(2.5%, median, 97.5%) of beta."""
        return _middle(self.beta)


def fit(points: Sequence[Point], noise: float, seed: int = 0) -> Fit:
    """Curves that the points allow, given that a point is off by about `noise` nats.

    The same points give the same curves. Raises UsageError for fewer than LEAST_POINTS different
    numbers of rows, for numbers that are none, and where the loss does not fall with rows.
    """
    _check(points, noise)
    ordered = tuple(sorted(points))
    given = _Given.of(ordered, noise, np.geomspace(*BETAS, GRID))
    for _ in range(REFINED):  # the same grid again, over the betas that matter
        likely = np.flatnonzero(given.weights > NEGLIGIBLE)
        ends = given.betas[max(likely[0] - 1, 0)], given.betas[min(likely[-1] + 1, GRID - 1)]
        given = _Given.of(ordered, noise, np.geomspace(*ends, GRID))
    random = np.random.default_rng(seed)
    drawn = random.choice(GRID, DRAWS, p=given.weights / given.weights.sum())
    beta = given.betas[drawn]
    sigma = np.sqrt(given.scales[drawn] / random.chisquare(given.freedom, DRAWS))
    around = np.einsum("nij,nj->ni", given.roots[drawn], random.normal(size=(DRAWS, 2)))
    u, v = (given.best[drawn] + sigma[:, None] * around).T
    low, high = ordered[0].rows, ordered[-1].rows
    k = (u - v) / (low**-beta - high**-beta)
    e = u - k * low**-beta
    kept = k >= 0
    if kept.sum() < LEAST_KEPT:
        raise UsageError(
            "the held-out loss does not fall with more rows: there is no law to go by",
            faults=[f"{point.rows:g} rows: {point.loss:.4f}" for point in ordered],
        )
    return Fit(ordered, k[kept], beta[kept], e[kept], sigma[kept])


class _Given(NamedTuple):
    """What the points say of (u, v) and the variance for each of G betas."""

    betas: Floats
    """(G,)."""
    best: Floats
    """(G, 2): (u, v) of least squares."""
    roots: Floats
    """(G, 2, 2): lower roots of their covariance over the variance."""
    scales: Floats
    """(G,): sums of squares that the variance is drawn by."""
    freedom: float
    weights: Floats
    """(G,): the chance of the points given beta, over the largest."""

    @classmethod
    def of(cls, points: Sequence[Point], noise: float, betas: Floats) -> "_Given":
        """A linear regression a beta."""
        rows = np.array([point.rows for point in points])
        losses_P = np.array([point.loss for point in points])
        at_GP = rows[None] ** -betas[:, None]
        g_GP = (at_GP[:, :1] - at_GP) / (at_GP[:, :1] - at_GP[:, -1:])
        design = np.stack([1 - g_GP, g_GP], axis=2)
        precision = np.swapaxes(design, 1, 2) @ design
        covariance = np.linalg.inv(precision)
        best = np.einsum("gij,gpj,p->gi", covariance, design, losses_P)
        left = losses_P - np.einsum("gpi,gi->gp", design, best)
        scales = TRUST * noise**2 + np.square(left).sum(axis=1)
        freedom = TRUST + len(points) - 2
        logs = -0.5 * (np.linalg.slogdet(precision)[1] + freedom * np.log(scales))
        return cls(
            betas, best, np.linalg.cholesky(covariance), scales, freedom, np.exp(logs - logs.max())
        )


def _check(points: Sequence[Point], noise: float) -> None:
    faults = [
        f"{point.rows!r} rows, loss {point.loss!r}"
        for point in points
        if not (0 < point.rows < math.inf and 0 <= point.loss < math.inf)
    ]
    if faults or not 0 < noise < math.inf:
        raise UsageError("points and noise are positive numbers", faults=faults)
    different = len({point.rows for point in points})
    if different < LEAST_POINTS:
        raise UsageError(
            f"a law takes trainings on {LEAST_POINTS} different numbers of rows, "
            f"and there are {different}",
            hint="train the same name with the same recipe on a quarter and on half of the rows",
        )


def _middle(draws: Floats) -> tuple[float, float, float]:
    low, median, high = np.quantile(draws, (0.025, 0.5, 0.975))
    return float(low), float(median), float(high)
