"""Published scaling laws: what loss a model trained from nothing reaches, and what it takes.

L(N, D) = E + A / N^alpha + B / D^beta, nats a token, for N parameters and D tokens (Hoffmann et
al., "Chinchilla", arXiv:2203.15556, equation 2). Training takes C = 6 N D operations (Kaplan et
al., arXiv:2001.08361, section 2.1). Laws of one corpus and one architecture: for another base they
say an order of magnitude, not a price.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from lamina.core.errors import UsageError

PER_PARAMETER_AND_TOKEN = 6
"""Operations of training a weight on a token: C = 6 N D."""


class Optimum(NamedTuple):
    """A training run that no other split of its budget beats."""

    parameters: float
    tokens: float

    @property
    def flops(self) -> float:
        """C = 6 N D."""
        return PER_PARAMETER_AND_TOKEN * self.parameters * self.tokens


class Errors(NamedTuple):
    """Published standard errors of a law's coefficients."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta."""

    name: str
    source: str
    E: float
    """The loss that nothing lowers, nats a token."""
    A: float
    B: float
    alpha: float
    beta: float
    errors: Errors | None = None
    """None where none are published."""

    @property
    def exponents(self) -> tuple[float, float]:
        """(a, b) of N ~ C^a, D ~ C^b on the compute-optimal frontier: a + b = 1."""
        total = self.alpha + self.beta
        return self.beta / total, self.alpha / total


HOFFMANN = Law(
    "Hoffmann et al. 2022", "arXiv:2203.15556, equation 10", 1.69, 406.4, 410.7, 0.34, 0.28
)
"""As printed."""
HOFFMANN_TEX = Law(
    "Hoffmann et al. 2022, with the digits of its source",
    "arXiv:2203.15556, TeX source; quoted by arXiv:2404.10102",
    1.6934, 406.4, 410.7, 0.3392, 0.2849,
)  # fmt: skip
"""The same with the exponents before they were rounded, which moves the optimum by a third."""
EPOCH = Law(
    "Besiroglu et al. 2024", "arXiv:2404.10102, table 1", 1.8172, 482.01, 2085.43, 0.3478, 0.3658,
    Errors(0.03, 124.58, 1293.23, 0.02, 0.02),
)  # fmt: skip
"""The refit of Hoffmann et al.'s runs, which agrees with their other two approaches."""
LAWS = (HOFFMANN, HOFFMANN_TEX, EPOCH)


def loss(law: Law, parameters: float, tokens: float) -> float:
    """Nats a token. Raises UsageError unless both are positive and finite."""
    _positive(parameters=parameters, tokens=tokens)
    return law.E + law.A / math.pow(parameters, law.alpha) + law.B / math.pow(tokens, law.beta)


def loss_error(law: Law, parameters: float, tokens: float) -> float | None:
    """Standard error of `loss`, to first order; None where the law comes without errors.

    dL = dE + dA/N^a - A ln(N)/N^a da + dB/D^b - B ln(D)/D^b db, the five taken as independent. A
    and alpha, B and beta are not (they were fitted together, and no covariances are published), so
    this overstates what is unknown within the range of the runs fitted.
    """
    if law.errors is None:
        return None
    _positive(parameters=parameters, tokens=tokens)
    by_size, by_data = parameters**-law.alpha, tokens**-law.beta
    return math.hypot(
        law.errors.E,
        law.errors.A * by_size,
        law.errors.alpha * law.A * by_size * math.log(parameters),
        law.errors.B * by_data,
        law.errors.beta * law.B * by_data * math.log(tokens),
    )


def optimal(law: Law, flops: float) -> Optimum:
    """The N and D with the least loss for C = 6 N D operations.

    Lagrange: alpha A N^-alpha = beta B D^-beta, hence N = G (C/6)^a and D = (C/6)^b / G with
    G = (alpha A / (beta B))^(1/(alpha + beta)), a = beta/(alpha + beta), b = 1 - a
    (arXiv:2203.15556, equation 4). Raises UsageError unless the budget is positive and finite.
    """
    _positive(flops=flops)
    a, b = law.exponents
    g = (law.alpha * law.A / (law.beta * law.B)) ** (1 / (law.alpha + law.beta))
    product = flops / PER_PARAMETER_AND_TOKEN
    return Optimum(g * product**a, product**b / g)


def optimal_for(law: Law, parameters: float) -> Optimum:
    """The run for which a model of this size is the best one: the same condition, N given:
    D = (beta B N^alpha / (alpha A))^(1/beta). Raises UsageError unless it is positive and finite.
    """
    _positive(parameters=parameters)
    ratio = law.beta * law.B / (law.alpha * law.A)
    return Optimum(parameters, (ratio * parameters**law.alpha) ** (1 / law.beta))


def optimal_tokens_error(law: Law, parameters: float) -> float | None:
    """Standard error of ln D in `optimal_for`, to first order, errors taken as independent (see
    `loss_error`): exp(error) is the factor by which D may be off. None without published errors.
    """
    if law.errors is None:
        return None
    log_tokens = math.log(optimal_for(law, parameters).tokens)
    by_alpha = (math.log(parameters) - 1 / law.alpha) / law.beta
    by_beta = (1 / law.beta - log_tokens) / law.beta
    return math.hypot(
        law.errors.A / law.A / law.beta,
        law.errors.B / law.B / law.beta,
        law.errors.alpha * by_alpha,
        law.errors.beta * by_beta,
    )


# -- the frontier without a loss -------------------------------------------------------------------


@dataclass(frozen=True)
class Frontier:
    """D = tokens (N / parameters)^power: which sizes and tokens belong together."""

    name: str
    source: str
    parameters: float
    tokens: float
    power: float

    @property
    def exponents(self) -> tuple[float, float]:
        """(a, b) of N ~ C^a, D ~ C^b."""
        return 1 / (1 + self.power), self.power / (1 + self.power)

    def optimal_for(self, parameters: float) -> Optimum:
        """As `optimal_for`. Raises UsageError unless the size is positive and finite."""
        _positive(parameters=parameters)
        return Optimum(parameters, self.tokens * (parameters / self.parameters) ** self.power)


_TEN_BILLION, _TEN_TRILLION = (1e10, 205.1e9), (1e13, 216.2e12)
"""Two rows of the table, (parameters, tokens), with the most digits."""
APPROACH_1 = Frontier(
    "Hoffmann et al. 2022, approach 1",
    "arXiv:2203.15556, table 3",
    *_TEN_BILLION,
    power=math.log(_TEN_TRILLION[1] / _TEN_BILLION[1])
    / math.log(_TEN_TRILLION[0] / _TEN_BILLION[0]),
)
"""The law behind the published table of optimal sizes, and the one that lamina prices a run from
nothing with: 20 tokens a parameter where its bases are, a fifth less than the refit asks for. The
line through two of its rows gives the others within their rounding, but for the one that is
Gopher's budget, whose numbers don't multiply.
Its exponents, 0.498 and 0.502, are approach 1's (0.50 and 0.50, 10th to 90th percentile 0.488 to
0.502 and 0.501 to 0.512, table 2). Neither printed set of `Law` coefficients gives that table, nor
the columns of table A3 that bear its name (a = 0.459 there, 0.457 by its own TeX coefficients)."""


def _positive(**given: float) -> None:
    faults = [f"{name} is {value!r}" for name, value in given.items() if not 0 < value < math.inf]
    if faults:
        raise UsageError("a scaling law takes positive numbers", faults=faults)
