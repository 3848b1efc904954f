r"""numeric: the answer's number equals an accepted number, exactly.

Where the number is looked for, in this order; the first place that holds one decides:
    the first number after the last `####` (GSM8K), the first inside the last `\boxed{...}`, the
    last in the whole answer.

What a number is:
    `-1,234.50`, `+3`, `.5`, `6.02e23`; thousands may be grouped by commas, and only in threes;
    `1/2` and `\frac{1}{2}` are fractions;
    currency signs and a percent sign are units and are dropped: `$50`, `50%` and `50` are equal,
    `50%` and `0.5` are not;
    a minus counts as a sign only where no word, digit or closing bracket stands before it.
Numbers are compared as exact rationals: `0.50`, `1/2` and `5e-1` are equal, `0.333` and `1/3` are
not; there is no tolerance.
"""

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from fractions import Fraction

from lamina.core.scores import ItemScore
from lamina.data.exams import ExamItem
from lamina.exams.examinee import Examinee, Progress
from lamina.exams.scorers.scorer import ACCURACY, Scorer, score_generated
from lamina.tokens.tools import visible_text

_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)\]}}])[-+])?(?:[$€£¥]\s?)?(?<![\w.])(?P<inner>(?<=[$€£¥])[-+])?"
    rf"(?:\\[dt]?frac\{{\s*(?P<top>{_UNSIGNED})\s*\}}\{{\s*(?P<bottom>{_UNSIGNED})\s*\}}"
    rf"|(?P<whole>{_UNSIGNED})(?P<exponent>[eE][-+]?\d{{1,3}}(?![\d.]))?"
    rf"(?:\s?/\s?(?P<divisor>{_UNSIGNED}))?)"
)
_MINUS_SIGNS = str.maketrans({"−": "-", "–": "-", "﹣": "-", "－": "-"})
_ANSWER_MARK = "####"
_BOX = r"\boxed{"
_LONGEST = 20_000
"""Characters looked at, counted from the end; an answer is far shorter."""


def score(
    items: Sequence[ExamItem], examinee: Examinee, max_new_tokens: int, progress: Progress
) -> tuple[ItemScore, ...]:
    """1 where the answer's number equals the number of an accepted text."""
    return score_generated(items, examinee, max_new_tokens, progress, is_right)


def is_right(item: ExamItem, answer: str) -> bool:
    """Whether `answer` ends in one of the accepted numbers."""
    found = number_in(visible_text(answer))
    return found is not None and found in map(number_in, item.accept)


def number_in(text: str) -> Fraction | None:
    """The number that a text gives as its answer, or None (see the top of this file)."""
    text = text[-_LONGEST:].translate(_MINUS_SIGNS)
    if _ANSWER_MARK in text:
        first = next(_numbers(text.rpartition(_ANSWER_MARK)[2]), None)
        if first is not None:
            return first
    if _BOX in text:
        first = next(_numbers(_boxed(text)), None)
        if first is not None:
            return first
    found = list(_numbers(text))
    return found[-1] if found else None


def fault(item: ExamItem) -> str | None:
    """Every accepted answer must hold a number."""
    if not item.accept:
        return "no accepted answer"
    without = [text for text in item.accept if number_in(text) is None]
    return f"no number in the accepted answer {without[0][:60]!r}" if without else None


def _boxed(text: str) -> str:
    """What the last box holds, up to its own closing bracket or the end of the text."""
    inside = text.rpartition(_BOX)[2]
    depth = 1
    for position, character in enumerate(inside):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return inside[:position]
    return inside


def _numbers(text: str) -> Iterator[Fraction]:
    for match in _NUMBER.finditer(text):
        yield _value(match)


def _value(match: re.Match[str]) -> Fraction:
    top = _exact(match["top"] or match["whole"] + (match["exponent"] or ""))
    bottom = _exact(match["bottom"] or match["divisor"] or "1")
    negative = "-" in (match["sign"] or "") + (match["inner"] or "")
    size = top / bottom if bottom else top  # "5/0" is no fraction: its 5 counts
    return -size if negative else size


def _exact(text: str) -> Fraction:
    return Fraction(Decimal(text.replace(",", "")))


NUMERIC = Scorer(
    "numeric", ACCURACY, higher_is_better=True, generates=True, fault=fault, score=score
)
