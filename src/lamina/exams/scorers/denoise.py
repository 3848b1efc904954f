"""denoise: how far a stack is off saying what noise is in held-out images, at fixed noises."""

from collections.abc import Sequence
from math import isfinite

from lamina.core.errors import CheckError
from lamina.core.scores import ItemScore
from lamina.data.exams import ExamItem
from lamina.exams.examinee import Examinee, Progress, painter
from lamina.exams.scorers.scorer import Scorer


def score(
    items: Sequence[ExamItem], examinee: Examinee, max_new_tokens: int, progress: Progress
) -> tuple[ItemScore, ...]:
    """Value: summed mean squared errors; weight: how many noises they are of.

    Noises and times are the image's own, so that two stacks are compared question by question.
    Raises: CheckError when an error is not finite.
    """
    examples = [item.example for item in items if item.example]
    found = painter(examinee).denoising(examples, progress)
    bad = [n for n, each in enumerate(found, start=1) if not isfinite(each.nll)]
    if bad:
        raise CheckError(
            "the stack's loss is not a finite number",
            faults=[f"question {number}" for number in bad],
            hint="the stack computes infinities or NaN; try dtype float32 or a lower learning rate",
        )
    return tuple(ItemScore(value=each.nll, weight=each.tokens) for each in found)


def fault(item: ExamItem) -> str | None:
    """An image is needed."""
    return None if item.example and item.example.image else "no image"


DENOISE = Scorer(
    "denoise",
    "denoising loss",
    higher_is_better=False,
    generates=False,
    fault=fault,
    score=score,
    of_images=True,
)
