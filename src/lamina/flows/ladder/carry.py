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

from lamina.core.errors import TrainInterrupted, UsageError
from lamina.core.evidence import CARRIED_TYPE, CarriedEvidence, Kept
from lamina.core.manifests import Descriptor
from lamina.core.manifests import Rung as RungName
from lamina.exams.report import comparisons, score_of
from lamina.exams.runner import ExamResult
from lamina.exams.tasks import Exam
from lamina.flows import runs
from lamina.flows.descent import cost_of
from lamina.flows.examine import parent_of, sit
from lamina.flows.ladder.registry import RUNGS
from lamina.flows.ladder.rung import Move, Moved, heed
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
    lost: tuple[str, ...] = ()
    """Gains of its own of which it kept less than was asked."""
    harmed: tuple[str, ...] = ()
    """Exams of the new parents that it makes worse."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it did not pass."""
        return (*self.lost, *self.harmed)

    @property
    def passed(self) -> bool:
        """It keeps what it was asked to, and harms nothing."""
        return not self.reasons

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        found = self.evidence
        return {
            "name": self.name,
            "layer": self.layer.digest,
            "passed": self.passed,
            "reasons": list(self.reasons),
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
        """For people: one line, one for each reason against it, one for each rung not taken."""
        found = self.evidence
        line = f"{self.name}: {found.rung}, {share_text(found.retained)} of its gain kept"
        line += f", {found.seconds:.1f} s"
        if found.retrain_seconds:
            line += f" ({found.seconds / found.retrain_seconds:.1%} of training it anew)"
        line += f", examined in {found.examine_seconds:.0f} s"
        against = [f"  {why}" for why in self.reasons]
        return "\n".join([line, *against, *(f"  not {rung}: {why}" for rung, why in found.tried)])


def share_text(retained: float | None) -> str:
    """A share for people."""
    return "no gain to keep: -" if retained is None else f"{retained:.0%}"


@dataclass(frozen=True)
class _Judged:
    kept: tuple[Kept, ...]
    lost: tuple[str, ...]
    harmed: tuple[str, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        return (*self.lost, *self.harmed)

    @property
    def least(self) -> float:
        return min((k.retained for k in self.kept if k.retained is not None), default=1.0)


_Climbed = tuple[RungName, Moved, _Judged]


def carry(move: Move, rungs: Sequence[RungName], keep: float = KEEP) -> Carried:
    """Try rungs in order; the first that passes, else the one that kept most, marked not passed.

    Raises UsageError when no rung applies at all, TrainInterrupted.
    """
    working = examining = 0.0
    tried: list[tuple[RungName, str]] = []
    climbed: list[_Climbed] = []
    for rung in rungs:
        heed(move.should_stop, move.command)
        move.reporter.say(f"{move.layer.config.name}: trying to {rung}")
        began = time.monotonic()
        moved = _tried(move, rung)
        working += time.monotonic() - began
        if isinstance(moved, str):
            tried.append((rung, moved))
            continue
        began = time.monotonic()
        judged = _judge(move, moved, keep)
        examining += time.monotonic() - began
        climbed.append((rung, moved, judged))
        if not judged.reasons:
            break
        tried.append((rung, "; ".join(judged.reasons)))
    if not climbed:
        raise UsageError(
            f"{move.layer.config.name} cannot be carried to {move.onto.label}",
            faults=[f"{rung}: {why}" for rung, why in tried],
        )
    best = max(climbed, key=lambda each: (not each[2].reasons, each[2].least))
    for _, moved, _ in climbed:
        if moved.layer.digest != best[1].layer.digest:  # let `collect` sweep it
            move.store.remove_root(moved.layer.digest)
    return _recorded(move, best, tried, (working, examining))


def _tried(move: Move, rung: RungName) -> Moved | str:
    """What a rung makes, or why it does not apply. Stopped, it is the move that goes on."""
    try:
        return RUNGS[rung](move)
    except TrainInterrupted as stopped:
        raise TrainInterrupted(stopped.message, hint=f"go on with: {move.command}") from None


def _recorded(
    move: Move,
    best: _Climbed,
    tried: Sequence[tuple[RungName, str]],
    seconds: tuple[float, float],
) -> Carried:
    rung, moved, judged = best
    cost = cost_of(move.store, move.layer)
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
        retrain_seconds=cost.seconds if cost else None,
    )
    move.store.put_evidence(CARRIED_TYPE, evidence, moved.layer)
    name = move.layer.config.name
    return Carried(name, moved.layer, moved.stack, evidence, judged.lost, judged.harmed)


# -- judging -------------------------------------------------------------------------------------


def _judge(move: Move, moved: Moved, keep: float) -> _Judged:
    store, reporter = move.store, move.reporter
    own = carried(store, [move.layer])
    inherited = carried(store, move.onto.layers)
    beneath = parent_of(store, move.old)
    assert beneath is not None  # its top is the layer
    asked = (
        (move.old, own),
        (beneath, own),
        (moved.stack, [*own, *inherited]),
        (move.onto, inherited),
    )
    found: list[list[ExamResult]] = []
    for stack, exams in asked:
        heed(move.should_stop, move.command)
        found.append(sit(store, stack, exams, reporter))
    was, was_without, now, now_without = found
    kept = tuple(
        Kept(
            exam=exam.name,
            layer=exam.layer,
            metric=exam.scorer.metric,
            before=score_of(three[0]).value,
            after=score_of(three[2]).value,
            retained=_retained(exam, three),
        )
        for exam in own
        if (three := _three(exam, was, was_without, now)) is not None
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
    lost = tuple(
        f"{k.exam}: {k.retained:.0%} of the gain kept, {keep:.0%} asked"
        for k in kept
        if k.retained is not None and k.retained < keep
    )
    return _Judged(kept, lost, tuple(worse.reasons))


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
