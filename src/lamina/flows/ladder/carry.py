"""Climbing the ladder: the first rung whose result keeps what the layer gained, and harms nothing.

A result passes when (1) no exam of the new parents is significantly worse with the layer on top
(the gate), and (2) on each of the layer's own exams that it once gained on, at least the share
`keep` of that gain is left: (new stack - old parents) / (old stack - old parents), in what the
scorer counts: questions, or nats of whole answers, which compares across tokenizers too. So it
does not matter whether the layer brings it or the new parents have learned it meanwhile.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lamina.core.errors import UsageError
from lamina.core.manifests import (
    CARRIED_TYPE,
    COST_TYPE,
    CarriedEvidence,
    CostEvidence,
    Descriptor,
    Kept,
)
from lamina.core.manifests import Rung as RungName
from lamina.exams.report import comparisons, score_of
from lamina.exams.runner import ExamResult
from lamina.exams.tasks import Exam
from lamina.flows import runs
from lamina.flows.examine import parent_of, sit
from lamina.flows.ladder.registry import RUNGS
from lamina.flows.ladder.rung import Move, Moved
from lamina.flows.questions import carried
from lamina.gate.verdict import verdict
from lamina.stack.resolve import ResolvedStack

KEEP = 0.95
"""Share of a layer's gain that must be left, unless somebody asks for another."""


@dataclass(frozen=True, eq=False)
class Carried:
    """A layer over its new parents, and how it got there."""

    name: str
    layer: Descriptor
    stack: ResolvedStack
    evidence: CarriedEvidence
    passed: bool

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        found = self.evidence
        return {
            "name": self.name,
            "layer": self.layer.digest,
            "passed": self.passed,
            "rung": found.rung,
            "source": found.source,
            "retained": found.retained,
            "exams": [kept.model_dump(mode="json") for kept in found.exams],
            "tried": [{"rung": rung, "why_not": why} for rung, why in found.tried],
            "seconds": found.seconds,
            "examine_seconds": found.examine_seconds,
            "retrain_seconds": found.retrain_seconds,
        }

    def render(self) -> str:
        """For people: one line, and one for each cheaper rung."""
        found = self.evidence
        line = f"{self.name}: {found.rung}, {share_text(found.retained)} of its gain kept"
        line += f", {found.seconds:.1f} s"
        if found.retrain_seconds:
            line += f" ({found.seconds / found.retrain_seconds:.1%} of training it anew)"
        line += f", examined in {found.examine_seconds:.0f} s"
        return "\n".join([line, *(f"  not {rung}: {why}" for rung, why in found.tried)])


def share_text(retained: float | None) -> str:
    """A share for people."""
    return "no gain to keep: -" if retained is None else f"{retained:.0%}"


@dataclass(frozen=True)
class _Judged:
    kept: tuple[Kept, ...]
    reasons: tuple[str, ...]

    @property
    def least(self) -> float:
        return min((k.retained for k in self.kept if k.retained is not None), default=1.0)


def carry(move: Move, rungs: Sequence[RungName], keep: float = KEEP) -> Carried:
    """Try rungs in order; the first that passes, else the one that kept most, marked not passed.

    Raises UsageError when no rung applies at all, TrainInterrupted.
    """
    working = examining = 0.0
    tried: list[tuple[RungName, str]] = []
    best: tuple[RungName, Moved, _Judged] | None = None
    for rung in rungs:
        move.reporter.say(f"{move.layer.config.name}: trying to {rung}")
        began = time.monotonic()
        moved = RUNGS[rung](move)
        working += time.monotonic() - began
        if isinstance(moved, str):
            tried.append((rung, moved))
            continue
        began = time.monotonic()
        judged = _judge(move, moved, keep)
        examining += time.monotonic() - began
        if best is None or judged.least > best[2].least or not judged.reasons:
            _drop(move, best)
            best = rung, moved, judged
        else:
            _drop(move, (rung, moved, judged))
        if not judged.reasons:
            break
        tried.append((rung, "; ".join(judged.reasons)))
    if best is None:
        raise UsageError(
            f"{move.layer.config.name} cannot be carried to {move.onto.label}",
            faults=[f"{rung}: {why}" for rung, why in tried],
        )
    return _recorded(move, best, tried, (working, examining))


def _drop(move: Move, lost: tuple[RungName, Moved, _Judged] | None) -> None:
    """Let `collect` sweep a layer that is not taken, unless a run of its own keeps it."""
    if lost is not None and lost[0] in ("copy", "project"):
        move.store.remove_root(lost[1].layer.digest)


def _recorded(
    move: Move,
    best: tuple[RungName, Moved, _Judged],
    tried: Sequence[tuple[RungName, str]],
    seconds: tuple[float, float],
) -> Carried:
    rung, moved, judged = best
    evidence = CarriedEvidence(
        created=runs.now().isoformat(),
        rung=rung,
        source=move.layer.digest,
        source_stack=move.old.digest,
        exams=judged.kept,
        retained=min((k.retained for k in judged.kept if k.retained is not None), default=None),
        tried=tuple(item for item in tried if item[0] != rung),
        seconds=round(seconds[0], 2),
        examine_seconds=round(seconds[1], 2),
        retrain_seconds=retrain_seconds(move),
    )
    move.store.put_evidence(CARRIED_TYPE, evidence, moved.layer)
    name = move.layer.config.name
    return Carried(name, moved.layer, moved.stack, evidence, not judged.reasons)


def retrain_seconds(move: Move) -> float | None:
    """What training the layer took, its own or the one it was carried from; None if unknown."""
    for digest in (move.layer.digest, *(s.layer for s in move.layer.config.sources)):
        if move.store.has(digest):
            costs = move.store.evidence(digest, COST_TYPE, CostEvidence)
            if costs:
                return costs[-1].seconds
    return None


# -- judging -------------------------------------------------------------------------------------


def _judge(move: Move, moved: Moved, keep: float) -> _Judged:
    store, reporter = move.store, move.reporter
    own = carried(store, [move.layer])
    inherited = carried(store, move.onto.layers)
    beneath = parent_of(store, move.old)
    assert beneath is not None  # its top is the layer
    was, was_without = sit(store, move.old, own, reporter), sit(store, beneath, own, reporter)
    now = sit(store, moved.stack, [*own, *inherited], reporter)
    now_without = sit(store, move.onto, inherited, reporter)
    kept = tuple(
        Kept(
            exam=exam.name,
            layer=exam.layer,
            metric=exam.scorer.metric,
            before=score_of(found[0]).value,
            after=score_of(found[2]).value,
            retained=_retained(exam, found),
        )
        for exam in own
        if (found := _three(exam, was, was_without, now)) is not None
    )
    theirs = {exam.key for exam in inherited}
    worse = verdict(
        [
            c
            for c, result in zip(
                comparisons(now_without, now), _both(now_without, now), strict=True
            )
            if result.exam.key in theirs
        ]
    )
    lost = [
        f"{k.exam}: {k.retained:.0%} of the gain kept, {keep:.0%} asked"
        for k in kept
        if k.retained is not None and k.retained < keep
    ]
    return _Judged(kept, (*lost, *worse.reasons))


def _both(before: Sequence[ExamResult], after: Sequence[ExamResult]) -> list[ExamResult]:
    """The results of `after` that `comparisons` compares."""
    sat = {result.exam.key for result in before}
    return [result for result in after if result.exam.key in sat]


Three = tuple[ExamResult, ExamResult, ExamResult]


def _three(exam: Exam, *sat: Sequence[ExamResult]) -> Three | None:
    """One exam's results on three stacks; None when it could not be put to all."""
    found = [next((r for r in results if r.exam.key == exam.key), None) for results in sat]
    first, second, third = found
    if first is None or second is None or third is None:
        return None
    return first, second, third


def _retained(exam: Exam, three: Three) -> float | None:
    """(new - old without) / (old with - old without), over the questions that all could take."""
    rows = zip(*(result.items for result in three), strict=True)
    counted = [items for items in rows if all(item.weight > 0 for item in items)]
    sign = 1 if exam.scorer.higher_is_better else -1
    with_, without, new = (
        sign * sum(items[place].value for items in counted) for place in range(3)
    )
    gain = with_ - without
    return round((new - without) / gain, 4) if gain > 0 else None
