"""exact: the answer is one of the accepted texts, up to case, white space and a full stop."""

import unicodedata
from collections.abc import Sequence

from lamina.core.scores import ItemScore
from lamina.data.exams import ExamItem
from lamina.exams.examinee import Examinee, Progress
from lamina.exams.scorers.scorer import ACCURACY, Scorer, score_generated
from lamina.tokens.tools import visible_text


def score(
    items: Sequence[ExamItem], examinee: Examinee, max_new_tokens: int, progress: Progress
) -> tuple[ItemScore, ...]:
    """1 where the normalised answer equals a normalised accepted text."""
    return score_generated(items, examinee, max_new_tokens, progress, is_right)


def is_right(item: ExamItem, answer: str) -> bool:
    """Whether `answer`, its reasoning block aside, is one of the accepted texts."""
    return normalise(visible_text(answer)) in map(normalise, item.accept)


def normalise(text: str) -> str:
    """NFC, case-folded, white space stripped and collapsed, without one full stop at the end."""
    folded = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return folded.removesuffix(".").rstrip()


def fault(item: ExamItem) -> str | None:
    """There must be an answer to accept."""
    return None if item.accept else "no accepted answer"


EXACT = Scorer("exact", ACCURACY, higher_is_better=True, generates=True, fault=fault, score=score)
