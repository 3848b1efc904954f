"""Exams and an examinee to results, question by question; what is on record is not asked again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lamina.core.errors import DataError
from lamina.core.scores import ItemScore
from lamina.exams.examinee import Examinee
from lamina.exams.tasks import Exam

ItemScores = tuple[ItemScore, ...]
Cached = Callable[[Exam], ItemScores | None]
"""Looks up what this stack answered before, by `Exam.key` and whatever else decides the answers."""
Record = Callable[[Exam, ItemScores], None]
"""Puts a fresh result on record."""
ExamProgress = Callable[[Exam, int, int], None]
"""Called with (exam, questions done, questions in all)."""


@dataclass(frozen=True)
class ExamResult:
    """One stack's result on one exam, in the exam's order."""

    exam: Exam
    items: ItemScores


def run(
    exams: Sequence[Exam],
    examinee: Callable[[], Examinee],
    *,
    cached: Cached,
    record: Record,
    progress: ExamProgress,
) -> list[ExamResult]:
    """Put every exam to the examinee, in order; each result is recorded as soon as it is there.

    Exams with one key are asked once. Exams without questions that have no cached result are
    left out of the results: `unexamined` lists them. `examinee` is called at most once, and not
    at all where every result is on record, so that nothing is loaded for nothing.
    Raises: DataError for questions that a scorer cannot use, or a recorded result of another
    length; CheckError when the stack's loss is not finite.
    """
    known: dict[tuple[str, str, int], ItemScores] = {}
    sitting: Examinee | None = None
    results = []
    for exam in exams:
        items = known[exam.key] if exam.key in known else _recorded(exam, cached)
        if items is None and exam.items is not None:
            sitting = sitting or examinee()
            items = _sit(exam, sitting, progress)
            record(exam, items)
        if items is not None:
            known[exam.key] = items
            results.append(ExamResult(exam, items))
    return results


def unexamined(exams: Sequence[Exam], results: Sequence[ExamResult]) -> tuple[Exam, ...]:
    """The exams that have no result."""
    examined = {result.exam.key for result in results}
    return tuple(exam for exam in exams if exam.key not in examined)


def _recorded(exam: Exam, cached: Cached) -> ItemScores | None:
    items = cached(exam)
    if items is not None and len(items) != exam.spec.rows:
        raise DataError(
            f"the recorded result of exam {exam.name} has {len(items)} answers "
            f"to {exam.spec.rows} questions",
            hint="examine the stack afresh: lamina exam STACK --fresh",
        )
    return items


def _sit(exam: Exam, examinee: Examinee, progress: ExamProgress) -> ItemScores:
    questions = exam.items or ()

    def report(done: int, total: int) -> None:
        progress(exam, done, total)

    return exam.scorer.examine(questions, examinee, exam.spec.max_new_tokens, report)
