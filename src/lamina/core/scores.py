"""Scores and paired comparisons as plain values: what exams produce and the gate reads."""

from typing import Annotated

from pydantic import Field

from lamina.core.digest import Digest
from lamina.core.values import Value


class ItemScore(Value):
    """One question's result. An exam's value is sum(value) / sum(weight).

    Accuracy: value 0 or 1, weight 1. Loss: value the summed negative log-likelihood in nats,
    weight the number of supervised tokens.
    """

    value: float
    weight: Annotated[float, Field(ge=0)] = 1.0
    """0: the question could not be put to this stack (too long for it) and does not count."""
    answer: str | None = None
    """What the stack answered, where the scorer generates."""


class Score(Value):
    """One stack's result on one exam."""

    exam: str
    layer: str
    """Name of the layer that carries the exam; '-' for an exam given by file."""
    exam_digest: Digest
    metric: str
    value: float
    ci: tuple[float, float]
    """95% interval."""
    n: int
    """Questions that count."""
    higher_is_better: bool


class Comparison(Value):
    """One exam, two stacks, the same questions: paired."""

    exam: str
    layer: str
    exam_digest: Digest
    metric: str
    before: float
    after: float
    delta: float
    """after - before."""
    ci: tuple[float, float]
    """95% interval of delta."""
    p_worse: Annotated[float, Field(ge=0, le=1)]
    """One-sided p-value of "after is worse than before"."""
    p_better: Annotated[float, Field(ge=0, le=1)]
    n: int
    higher_is_better: bool
