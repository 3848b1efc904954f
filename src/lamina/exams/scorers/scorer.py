"""What a scorer is, and what those that judge generated answers share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lamina.core.errors import DataError
from lamina.core.recipe import ScorerName
from lamina.core.scores import ItemScore
from lamina.data.exams import ExamItem
from lamina.exams.examinee import Examinee, Progress, Prompt

ACCURACY = "accuracy"


class ScoreFunction(Protocol):
    """Puts questions that fit to an examinee and scores its answers."""

    def __call__(
        self,
        items: Sequence[ExamItem],
        examinee: Examinee,
        max_new_tokens: int,
        progress: Progress,
    ) -> tuple[ItemScore, ...]:
        """One score a question, in order."""


@dataclass(frozen=True)
class Scorer:
    """A way to turn answers into values. A new one is one file with one such value."""

    name: ScorerName
    metric: str
    """What sum(value) / sum(weight) is called."""
    higher_is_better: bool
    generates: bool
    """Answers are generated, so `max_new_tokens` matters."""
    fault: Callable[[ExamItem], str | None]
    """Why it cannot use a question, None where it can."""
    score: ScoreFunction
    of_images: bool = False
    """Stacks that draw are asked, not those that talk."""
    tells: Callable[[Sequence[ExamItem]], bool] = bool
    """Whether questions that it can use, taken together, have a result."""

    def usable(self, items: Sequence[ExamItem]) -> tuple[ExamItem, ...]:
        """The questions that it can use, in order: what an exam should be made of. None where they
        would have no result."""
        found = tuple(item for item in items if self.fault(item) is None)
        return found if self.tells(found) else ()

    def examine(
        self,
        items: Sequence[ExamItem],
        examinee: Examinee,
        max_new_tokens: int,
        progress: Progress,
    ) -> tuple[ItemScore, ...]:
        """Put the questions to an examinee: one score a question, in order.

        Raises: DataError naming every question that it cannot use, before any is put; what `score`
        raises.
        """
        faults = [
            f"question {number}: {fault}"
            for number, fault in enumerate(map(self.fault, items), start=1)
            if fault
        ]
        if faults:
            raise DataError(
                f"the scorer {self.name!r} cannot use {len(faults)} of {len(items)} questions",
                faults=faults,
                hint="correct the questions, or choose another scorer for them",
            )
        return self.score(items, examinee, max_new_tokens, progress)


def score_generated(
    items: Sequence[ExamItem],
    examinee: Examinee,
    max_new_tokens: int,
    progress: Progress,
    is_right: Callable[[ExamItem, str], bool],
) -> tuple[ItemScore, ...]:
    """Let the examinee answer every question; value 1 where `is_right`, else 0."""
    prompts = [Prompt(item.prompt, item.tools) for item in items]
    answers = examinee.answer(prompts, max_new_tokens, progress)
    return tuple(
        ItemScore(value=float(is_right(item, answer)), answer=answer)
        for item, answer in zip(items, answers, strict=True)
    )
