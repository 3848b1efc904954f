"""loss: how surprised the stack is by the held-out answers, in nats per token."""

from collections.abc import Sequence
from math import isfinite

from lamina.core.errors import CheckError, DataError
from lamina.core.scores import ItemScore
from lamina.data.exams import ExamItem
from lamina.exams.examinee import Examinee, Progress
from lamina.exams.scorers.scorer import Scorer


def score(
    items: Sequence[ExamItem], examinee: Examinee, max_new_tokens: int, progress: Progress
) -> tuple[ItemScore, ...]:
    """Value: summed negative log-likelihood of the supervised tokens; weight: how many they are.

    A question too long for the stack, which leaves no supervised token, has weight 0 and does not
    count. `max_new_tokens` does not matter.
    Raises: DataError when none counts; CheckError when the stack's loss is not finite.
    """
    examples = [item.example for item in items if item.example]
    likelihoods = examinee.log_likelihood(examples, progress)
    if not any(likelihood.tokens for likelihood in likelihoods):
        raise DataError(
            f"none of {len(items)} questions leaves a token to score",
            hint="give the exam questions that fit into the stack's context",
        )
    bad = [n for n, likelihood in enumerate(likelihoods, start=1) if not isfinite(likelihood.nll)]
    if bad:
        raise CheckError(
            "the stack's loss is not a finite number",
            faults=[f"question {number}" for number in bad],
            hint="the stack computes infinities or NaN; try dtype float32 or a lower learning rate",
        )
    return tuple(ItemScore(value=found.nll, weight=found.tokens) for found in likelihoods)


def fault(item: ExamItem) -> str | None:
    """A loss needs the whole row."""
    return None if item.example else "no full example"


LOSS = Scorer("loss", "loss", higher_is_better=False, generates=False, fault=fault, score=score)
