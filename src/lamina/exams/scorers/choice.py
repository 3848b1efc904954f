"""choice: the right one of several given answers is the most likely one, per token.

Each choice's negative log-likelihood is divided by its number of tokens, the end-of-turn marker
included, so that short choices have no head start. Equal likelihoods: the first one counts.
"""

from collections.abc import Sequence

from lamina.core.scores import ItemScore
from lamina.data.exams import ExamItem
from lamina.exams.examinee import Examinee, Progress, Prompt
from lamina.exams.scorers.scorer import ACCURACY, Scorer


def score(
    items: Sequence[ExamItem], examinee: Examinee, max_new_tokens: int, progress: Progress
) -> tuple[ItemScore, ...]:
    """1 where the right choice is the likeliest; the answer is the choice. Generates nothing."""
    scores = []
    for done, item in enumerate(items, start=1):
        scores.append(_score_one(item, examinee))
        progress(done, len(items))
    return tuple(scores)


def _score_one(item: ExamItem, examinee: Examinee) -> ItemScore:
    found = examinee.choice_scores(Prompt(item.prompt, item.tools), item.choices)
    likelihoods = [likelihood.per_token for likelihood in found]
    best = min(range(len(item.choices)), key=likelihoods.__getitem__)
    return ItemScore(value=float(best == item.right), answer=item.choices[best])


def fault(item: ExamItem) -> str | None:
    """There must be something to choose, and a right choice."""
    if len(item.choices) < 2:
        return "fewer than two choices"
    if item.right is None or not 0 <= item.right < len(item.choices):
        return f"right is {item.right}, but there are {len(item.choices)} choices"
    return None


CHOICE = Scorer(
    "choice", ACCURACY, higher_is_better=True, generates=False, fault=fault, score=score
)
