"""Intervals for one stack's result, and paired tests between two stacks on the same questions.

All intervals are 95%. Questions of weight 0 do not count, and in a pair neither side's does. A
result is binary when every weight is 1 and every value is 0 or 1 (accuracies); anything else
(losses) is a ratio estimate sum(value) / sum(weight).

References:
    Wilson, JASA 22 (1927) 209.  McNemar, Psychometrika 12 (1947) 153, in its exact binomial form.
    Newcombe, Statistics in Medicine 17 (1998) 2635, method 10, recommended for paired proportions
    by Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014) 2850.
    Cochran, Sampling Techniques (1977), chapter 6, for the linearised variance of a ratio.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from lamina.core.errors import DataError, UsageError
from lamina.core.scores import ItemScore

LEVEL = 0.95
_TAIL = (1 + LEVEL) / 2
_ROUNDING = 1e-12
"""Relative size below which a spread is rounding of float64 sums, not a spread."""


class Estimate(NamedTuple):
    """sum(value) / sum(weight) and its interval."""

    value: float
    ci: tuple[float, float]
    n: int
    """Questions that count."""


class Paired(NamedTuple):
    """How much a second result differs from a first one on the same questions."""

    before: float
    after: float
    delta: float
    """after - before."""
    ci: tuple[float, float]
    p_worse: float
    """One-sided p-value of "after is worse"."""
    p_better: float
    """One-sided p-value of "after is better"."""
    n: int
    """Questions that count in both."""


class _Result(NamedTuple):
    values_N: NDArray[np.float64]
    weights_N: NDArray[np.float64]

    @property
    def n(self) -> int:
        return len(self.values_N)

    @property
    def binary(self) -> bool:
        return bool(np.all(self.weights_N == 1) and np.all(np.isin(self.values_N, (0.0, 1.0))))

    @property
    def ratio(self) -> float:
        return float(self.values_N.sum() / self.weights_N.sum())

    def residuals(self) -> NDArray[np.float64]:
        """(N,) each question's linearised share in the ratio's error; their mean is 0."""
        errors_N = self.values_N - self.ratio * self.weights_N
        return np.asarray(errors_N / self.weights_N.mean(), dtype=np.float64)

    def only(self, counts_N: NDArray[np.bool_]) -> "_Result":
        """Those questions only. Raises DataError where that leaves none."""
        if not counts_N.any():
            raise DataError(
                "an exam without a question that counts has no result",
                hint="give it questions that fit into the stack's context",
            )
        return _Result(self.values_N[counts_N], self.weights_N[counts_N])


def score(items: Sequence[ItemScore]) -> Estimate:
    """Value and interval of one exam's result.

    Binary: Wilson's score interval. Otherwise: the linearised t interval of a ratio with n - 1
    degrees of freedom; good from about ten questions on, too narrow below that when a few long
    questions carry most of the weight. One question that is not binary gives no interval: both
    ends are then its value.
    Raises: DataError without a question that counts, or for a value that is not finite.
    """
    result = _result(items)
    result = result.only(result.weights_N > 0)
    if result.binary:
        ci = wilson(int(result.values_N.sum()), result.n)
        return Estimate(result.ratio, ci, result.n)
    half = _t_half_width(result.residuals(), result.ratio)
    return Estimate(result.ratio, (result.ratio - half, result.ratio + half), result.n)


def compare(
    before: Sequence[ItemScore], after: Sequence[ItemScore], higher_is_better: bool
) -> Paired:
    """Compare two results of the same questions in the same order.

    Both binary: McNemar's exact test on the questions that changed, and Newcombe's interval.
    Otherwise: the t test on the difference of the linearised residuals, n - 1 degrees of freedom.
    With few questions the t test leans on their differences being roughly normal; one question
    that is not binary proves nothing (both p-values 1). Equal results give delta 0, interval
    (0, 0) and both p-values 1: on these questions the two stacks are the same. Where every
    question moved by one and the same amount the sign test's 2^-n stands in. Weights may differ,
    but a loss per token compares two stacks only if both count tokens alike.
    Raises: UsageError for different numbers of questions; DataError as `score` does.
    """
    if len(before) != len(after):
        raise UsageError(
            f"{len(before)} results cannot be paired with {len(after)}",
            hint="compare two results of the same exam",
        )
    first, second = _result(before), _result(after)
    counts_N = (first.weights_N > 0) & (second.weights_N > 0)
    first, second = first.only(counts_N), second.only(counts_N)
    difference = _difference(first, second)
    p_worse, p_better = difference.p_lower, difference.p_higher
    if not higher_is_better:
        p_worse, p_better = p_better, p_worse
    return Paired(
        first.ratio, second.ratio, difference.delta, difference.ci, p_worse, p_better, first.n
    )


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion, without continuity correction."""
    z = float(special.ndtri(_TAIL))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def mcnemar(n: int, k: int) -> float:
    """P(X >= k) for X ~ Binomial(n, 1/2): k of n changed questions changed this way."""
    return float(special.bdtrc(k - 1, n, 0.5)) if k > 0 else 1.0


def newcombe(both: int, first: int, second: int, neither: int) -> tuple[float, float]:
    """Interval of p_second - p_first for paired proportions (Newcombe's method 10).

    The four counts are the questions right in both, in the first only, in the second only, in
    neither. Wilson's intervals of the two proportions are joined by squaring and adding, with
    the correlation of the pairs, corrected for continuity where it is positive.
    """
    n = both + first + second + neither
    p1, p2 = (both + first) / n, (both + second) / n
    (low1, high1), (low2, high2) = wilson(both + first, n), wilson(both + second, n)
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    cross = float(both * neither - first * second)
    if cross > 0:
        cross = max(cross - n / 2, 0.0)
    phi = cross / math.sqrt(margins) if margins else 0.0

    def distance(side2: float, side1: float) -> float:
        return math.sqrt(max(0.0, side2**2 - 2 * phi * side2 * side1 + side1**2))

    delta = p2 - p1
    lower = delta - distance(p2 - low2, high1 - p1)
    upper = delta + distance(high2 - p2, p1 - low1)
    return max(-1.0, lower), min(1.0, upper)


class _Difference(NamedTuple):
    delta: float
    ci: tuple[float, float]
    p_lower: float
    """One-sided p-value of "the second is lower"."""
    p_higher: float


def _difference(first: _Result, second: _Result) -> _Difference:
    same_values = np.array_equal(first.values_N, second.values_N)
    if same_values and np.array_equal(first.weights_N, second.weights_N):
        return _Difference(0.0, (0.0, 0.0), 1.0, 1.0)
    return (_binary if first.binary and second.binary else _ratio)(first, second)


def _binary(first: _Result, second: _Result) -> _Difference:
    was, now = first.values_N == 1, second.values_N == 1
    both, lost = int(np.sum(was & now)), int(np.sum(was & ~now))
    won, neither = int(np.sum(~was & now)), int(np.sum(~was & ~now))
    changed = lost + won
    return _Difference(
        (won - lost) / first.n,
        newcombe(both, lost, won, neither),
        mcnemar(changed, lost),
        mcnemar(changed, won),
    )


def _ratio(first: _Result, second: _Result) -> _Difference:
    n, delta = first.n, second.ratio - first.ratio
    if n == 1:
        return _Difference(delta, (delta, delta), 1.0, 1.0)
    scale = max(abs(first.ratio), abs(second.ratio))
    half = _t_half_width(second.residuals() - first.residuals(), scale)
    if half == 0.0:  # every question moved by the same amount: all the t test lacks is a spread
        by_signs = 0.5**n
        lower, higher = (by_signs, 1.0) if delta < 0 else (1.0, by_signs)
        return _Difference(delta, (delta, delta), lower, higher)
    t = delta * float(special.stdtrit(n - 1, _TAIL)) / half
    ci = (delta - half, delta + half)
    return _Difference(delta, ci, float(special.stdtr(n - 1, t)), float(special.stdtr(n - 1, -t)))


def _t_half_width(residuals_N: NDArray[np.float64], scale: float) -> float:
    """Half the t interval of a mean of residuals; 0 for one, or where their spread is rounding."""
    n = len(residuals_N)
    spread = math.sqrt(float(np.square(residuals_N).sum()))
    if n == 1 or spread <= _ROUNDING * abs(scale) * math.sqrt(n):
        return 0.0
    return float(special.stdtrit(n - 1, _TAIL)) * spread / math.sqrt(n * (n - 1))


def _result(items: Sequence[ItemScore]) -> _Result:
    values_N = np.array([item.value for item in items], dtype=np.float64)
    weights_N = np.array([item.weight for item in items], dtype=np.float64)
    bad = np.flatnonzero(~(np.isfinite(values_N) & np.isfinite(weights_N)))
    if len(bad):
        raise DataError(
            "an exam's result is not finite",
            faults=[f"question {index + 1}: {items[index].value}" for index in bad.tolist()],
            hint="the stack computes infinities or NaN; try dtype float32",
        )
    return _Result(values_N, weights_N)
