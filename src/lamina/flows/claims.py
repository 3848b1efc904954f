"""What a contributor claims, beside what was measured here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lamina.core.evidence import ScoresEvidence
from lamina.core.proposals import Claim, Measured
from lamina.exams.report import score_of, value_text
from lamina.exams.runner import ExamResult
from lamina.flows.examine import engine_of


@dataclass(frozen=True)
class Compared:
    """All exams that could be sat here, and what speaks against the claims."""

    measured: tuple[Measured, ...]
    reasons: tuple[str, ...]
    looks: tuple[str, ...]


def compare(
    claims: Sequence[Claim],
    told: Sequence[ScoresEvidence],
    results: Sequence[ExamResult],
    beneath: Mapping[tuple[str, str], float],
) -> Compared:
    """Each claim against the measured value.

    The same engine scores every question alike, to the bit, on the same kind of machine. Otherwise
    the claim has to lie within the 95% interval of what was measured; one that is better than that
    is a reason to refuse. `told`: the contributor's results question by question; `beneath`:
    (exam, digest) -> the value of the stack beneath, measured here.
    """
    by_exam = {(claim.exam, claim.exam_digest): claim for claim in claims}
    measured: list[Measured] = []
    reasons: list[str] = []
    looks: list[str] = []
    for result in results:
        score = score_of(result)
        claim = by_exam.pop((score.exam, score.exam_digest), None)
        same = _identical(result, told) if claim else None
        found = Measured(
            exam=score.exam,
            layer=score.layer,
            exam_digest=score.exam_digest,
            metric=score.metric,
            value=score.value,
            ci=score.ci,
            n=score.n,
            beneath=beneath.get((score.exam, score.exam_digest)),
            claimed=claim.value if claim else None,
            identical=same,
        )
        measured.append(found)
        if claim is None:
            continue
        problem = _problem(claim, found, higher_is_better=score.higher_is_better)
        if problem is not None:
            (reasons if problem[0] else looks).append(problem[1])
    for claim in by_exam.values():
        why = "its questions are withheld" if claim.withheld else "no layer here carries it"
        looks.append(f"{claim.exam}: what it claims cannot be measured here, {why}")
    return Compared(tuple(measured), tuple(reasons), tuple(looks))


def _identical(result: ExamResult, told: Sequence[ScoresEvidence]) -> bool | None:
    """Whether every question scored as told; None where nothing was told, or by another engine."""
    items = tuple((item.value, item.weight, item.answer) for item in result.items)
    spec = result.exam.spec
    same = [
        each.items
        for each in told
        if each.engine == engine_of(each.scorer)
        and (each.exam_digest, each.scorer) == (spec.items, spec.scorer)
    ]
    return items in same if same else None


def _problem(claim: Claim, found: Measured, *, higher_is_better: bool) -> tuple[bool, str] | None:
    """(whether it refuses, the sentence), None where the claim holds."""
    low, high = found.ci
    if low <= claim.value <= high:
        return None
    stated, here = (value_text(claim.metric, value) for value in (claim.value, found.value))
    range_ = " to ".join(value_text(claim.metric, value) for value in found.ci)
    text = (
        f"{claim.exam}: claims {claim.metric} {stated}, measured {here} ({range_}, n = {found.n})"
    )
    better = claim.value > high if higher_is_better else claim.value < low
    return (True, f"{text}: it does not do what is claimed") if better else (False, text)
