"""What a new version of a layer must answer for: the older version's exam, less what it replaced.

New rows may ask an old question and give another answer (a version number changed). The old
question is then out of date: the new version's exam leaves it out, and the gate must not hold it
against the new version.
"""

from collections.abc import Sequence

from lamina.core.digest import digest_bytes
from lamina.data.exams import ExamItem, to_jsonl
from lamina.exams.tasks import Exam
from lamina.flows.descent import kin
from lamina.flows.questions import carried
from lamina.stack.resolve import ResolvedLayer
from lamina.store.layout import Store


def inherited(
    store: Store, replaced: Sequence[ResolvedLayer], by: Sequence[ResolvedLayer]
) -> list[Exam]:
    """The exams of `replaced` layers that still hold when layers `by` take their place.

    A layer with a new version among `by`, carried or not, answers for the questions that the new
    version still carries; every other layer for all of its questions.
    """
    successors = {old: layer for layer in by for old in kin(store, layer)}
    successors |= {layer.digest: layer for layer in by}
    found: list[Exam] = []
    for layer in replaced:
        exams = carried(store, [layer])
        successor = successors.get(layer.digest)
        if successor is None or successor.digest == layer.digest:
            found += exams
            continue
        theirs = carried(store, [successor])
        found += [kept for exam in exams if (kept := still_asked(exam, theirs)) is not None]
    return found


def still_asked(exam: Exam, successors: Sequence[Exam]) -> Exam | None:
    """The exam with the questions that `successors` still ask; None when they ask none of them.

    An exam whose questions are withheld, on either side, stays as it is.
    """
    same = [e for e in successors if e.spec.scorer == exam.spec.scorer]
    if exam.items is None or any(e.key == exam.key or e.items is None for e in same):
        return exam
    asked = {item for e in same for item in map(_line, e.items or ())}
    items = tuple(item for item in exam.items if _line(item) in asked)
    if len(items) == len(exam.items):
        return exam
    if not items:
        return None
    spec = exam.spec.model_copy(update={"items": digest_bytes(to_jsonl(items)), "rows": len(items)})
    return Exam(spec, exam.layer, items)


def _line(item: ExamItem) -> bytes:
    return to_jsonl([item])
