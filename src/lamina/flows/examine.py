"""Examining stacks: exams of every layer, results on record, the gate's verdict."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lamina.core.digest import digest_json
from lamina.core.energy import Meter
from lamina.core.errors import ReadOnlyStoreError, UnknownNameError
from lamina.core.evidence import SCORES_TYPE, ScoresEvidence
from lamina.core.manifests import StackConfig
from lamina.core.names import Name
from lamina.core.report import Reporter
from lamina.core.scores import Comparison, ItemScore
from lamina.exams.examinee import Examinee
from lamina.exams.report import Matrix, comparisons, interval_text, matrix, score_of, value_text
from lamina.exams.runner import ExamResult, run
from lamina.exams.tasks import Exam
from lamina.flows import runs, succession
from lamina.flows.questions import carried, from_file
from lamina.flows.questions import probe_prompts as probe_prompts
from lamina.flows.suiting import check_scorers, check_successor
from lamina.gate.verdict import Policy, Unexamined, Verdict, verdict
from lamina.stack.resolve import ResolvedStack, of_config, of_descriptor, resolve
from lamina.store.layout import Store

ENGINE = digest_json({"dtype": "bfloat16", "sampling": "greedy", "version": 2})
"""What besides stack and questions decides an answer. Raise the version when sampling or scoring
changes."""


PAINTING = digest_json({"dtype": "float32", "noise": "fixed", "version": 1})
"""The same of what is asked of images."""
_OF_IMAGES = frozenset({"denoise", "retrieve", "colour"})


def engine_of(scorer: str) -> str:
    """What decides an answer that this scorer judges, besides stack and questions."""
    return PAINTING if scorer in _OF_IMAGES else ENGINE


@dataclass(frozen=True)
class Examination:
    """A stack's results beside another's, and what the gate makes of it."""

    stack: str
    label: str
    results: tuple[ExamResult, ...]
    comparisons: tuple[Comparison, ...]
    verdict: Verdict
    compared_with: str | None = None
    previous: str | None = None
    """Stack that the name pointed at when this was examined."""

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "stack": self.stack,
            "scores": [
                {
                    "exam": score.exam,
                    "layer": score.layer,
                    "metric": score.metric,
                    "value": score.value,
                    "ci": list(score.ci),
                    "n": score.n,
                }
                for score in map(score_of, self.results)
            ],
            "compared_with": self.compared_with,
            "comparisons": [item.model_dump(mode="json") for item in self.comparisons],
            "gate": self.verdict.model_dump(mode="json"),
        }

    def render(self) -> str:
        """For people: a line an exam, then what the gate says."""
        found = {(c.exam, c.exam_digest): c for c in self.comparisons}
        lines = [f"{self.label}: {len(self.results)} exams"]
        for score in map(score_of, self.results):
            line = (
                f"  {score.exam}: {score.metric} {value_text(score.metric, score.value)} "
                f"{interval_text(score.metric, score.ci)}, n = {score.n}"
            )
            other = found.get((score.exam, score.exam_digest))
            if other:
                line += (
                    f"; was {value_text(other.metric, other.before)}, change "
                    f"{interval_text(other.metric, other.ci)}"
                )
            lines.append(line)
        lines += [f"  {reason}" for reason in (*self.verdict.reasons, *self.verdict.notes)]
        return "\n".join(lines)


# -- sitting them ----------------------------------------------------------------------------------


def sit(
    store: Store,
    stack: ResolvedStack,
    exams: Sequence[Exam],
    reporter: Reporter,
    *,
    fresh: bool = False,
) -> list[ExamResult]:
    """Results of one stack; what is on record is not asked again unless `fresh`.

    Results that came from elsewhere count only where the questions are withheld.
    """
    own, all_ = (on_record(store, stack.digest, own=own) for own in (True, False))

    def cached(exam: Exam) -> tuple[ItemScore, ...] | None:
        if exam.items is None:
            found = all_.get(_key(exam))
        else:
            found = None if fresh else own.get(_key(exam))
        if found is None:
            return None
        return tuple(ItemScore(value=v, weight=w, answer=a) for v, w, a in found.items)

    clock = _Clock()

    def record(exam: Exam, items: tuple[ItemScore, ...]) -> None:
        evidence = ScoresEvidence(
            created=runs.now().isoformat(),
            exam_digest=exam.digest,
            scorer=exam.spec.scorer,
            max_new_tokens=exam.spec.max_new_tokens,
            engine=engine_of(exam.spec.scorer),
            items=tuple(
                (item.value, item.weight, None if exam.spec.private else item.answer)
                for item in items
            ),  # results travel; an answer to a withheld question may give it away
            **clock.lap(),
        )
        try:
            stored = store.put_stack(stack.config.base, stack.config.layers)
            store.put_evidence(SCORES_TYPE, evidence, stored)
        except ReadOnlyStoreError:
            reporter.say("the store is read-only: this result is not recorded")

    def progress(exam: Exam, done: int, total: int) -> None:
        text = f"examining {stack.label} on {exam.name}: {done}/{total}"
        reporter.event({"event": "examining", "text": text, "last": done == total})

    def examinee() -> Examinee:
        # torch: what is on record is looked up without it
        from lamina.flows.modality import examinee_of
        from lamina.stack.compile import gpu_at_hand

        clock.begin(gpu_at_hand())
        return examinee_of(store, stack)

    return run(
        exams,
        examinee,
        cached=cached,
        record=record,
        progress=progress,
    )


class _Clock:
    """What each exam of a sitting took; the first also what loading the stack took."""

    def __init__(self) -> None:
        self._meter: Meter | None = None
        self._at, self._joules = 0.0, 0.0

    def begin(self, gpu: str | None) -> None:
        """From now on."""
        self._at, self._meter = time.perf_counter(), Meter.of_machine(gpu)

    def lap(self) -> dict[str, float | None]:
        """`seconds` and `joules` since the last one."""
        assert self._meter is not None, "nothing was asked"
        now, joules = time.perf_counter(), self._meter.reading().joules
        took = {
            "seconds": round(now - self._at, 3),
            "joules": None if joules is None else round(joules - self._joules, 1),
        }
        self._at, self._joules = now, joules or 0.0
        return took


def on_record(store: Store, stack: str, *, own: bool) -> dict[tuple[str, str, int], ScoresEvidence]:
    """What a stack has answered, by questions, scorer and longest answer."""
    return {
        (item.exam_digest, item.scorer, item.max_new_tokens): item
        for item in store.evidence(stack, SCORES_TYPE, ScoresEvidence, own=own)
        if item.engine == engine_of(item.scorer)
    }


def unanswered(store: Store, stack: ResolvedStack, exams: Sequence[Exam]) -> list[Exam]:
    """The exams, each once, whose questions are at hand and that the stack has not sat here."""
    known = on_record(store, stack.digest, own=True)
    asked = {_key(exam): exam for exam in exams if exam.items is not None}
    return [exam for key, exam in asked.items() if key not in known]


def _key(exam: Exam) -> tuple[str, str, int]:
    return exam.digest, exam.spec.scorer, exam.spec.max_new_tokens


def parent_of(store: Store, stack: ResolvedStack) -> ResolvedStack | None:
    """The stack without its top layer; None for a bare base."""
    if not stack.layers:
        return None
    beneath = StackConfig(base=stack.config.base, layers=stack.config.layers[:-1])
    return of_config(store, beneath, label=f"{stack.label}~1", force=True)


def examine_stack(
    store: Store,
    text: str,
    reporter: Reporter,
    *,
    against: str | None = None,
    files: Sequence[str] = (),
    fresh: bool = False,
) -> Examination:
    """Every exam of every layer and of `files`, compared with the parent or `against`."""
    stack, other, exams = asked_of(store, text, against, files)
    results = sit(store, stack, exams, reporter, fresh=fresh)
    before = sit(store, other, exams, reporter, fresh=fresh) if other else []
    inherited = exams if against else carried(store, stack.layers[:-1])
    return _examination(stack, results, before, inherited, other)


def asked_of(
    store: Store, text: str, against: str | None = None, files: Sequence[str] = ()
) -> tuple[ResolvedStack, ResolvedStack | None, list[Exam]]:
    """A stack, what it is compared with, and the exams that both sit. Raises UsageError where one
    of the two cannot be asked them."""
    stack = resolve(store, text)
    other = resolve(store, against) if against else parent_of(store, stack)
    given = [exam for f in files for exam in from_file(f)]
    check_scorers(stack, [exam.spec.scorer for exam in given])
    exams = carried(store, stack.layers) + given
    if other is not None:
        check_scorers(other, [exam.spec.scorer for exam in exams])
    return stack, other, exams


def examine_for_gate(
    store: Store,
    stack: ResolvedStack,
    beneath: ResolvedStack | None,
    name: str,
    reporter: Reporter,
    policy: Policy | None = None,
) -> Examination:
    """Everything the gate needs to let `name` move to `stack`.

    Inherited are the exams of the stack beneath, compared with it, and the exams of the stack
    that the name points at now, compared with that one; where a layer has a new version, without
    the questions that it replaced.
    """
    previous = current(store, name)
    own = carried(store, stack.layers)
    results = sit(store, stack, own, reporter)
    beneath = beneath or parent_of(store, stack)
    before = sit(store, beneath, own, reporter) if beneath else []
    inherited = carried(store, beneath.layers) if beneath else []
    examination = _examination(stack, results, before, inherited, beneath, previous, policy)
    if previous is None or previous in (stack.digest, beneath.digest if beneath else None):
        return examination
    replaced = of_descriptor(store, store.describe(previous), label=name, force=True)
    check_successor(stack, replaced)
    theirs = succession.inherited(store, replaced.layers, stack.layers)
    now = sit(store, stack, theirs, reporter)
    then = sit(store, replaced, theirs, reporter)
    return _joined(examination, now, then, [*inherited, *theirs], policy)


def current(store: Store, name: str) -> str | None:
    """Digest of the stack that a name points at now, None where there is none."""
    try:
        return store.resolve(Name(name)).digest
    except UnknownNameError:
        return None


def _examination(
    stack: ResolvedStack,
    results: Sequence[ExamResult],
    before: Sequence[ExamResult],
    inherited: Sequence[Exam],
    other: ResolvedStack | None,
    previous: str | None = None,
    policy: Policy | None = None,
) -> Examination:
    found = comparisons(before, results)
    return Examination(
        stack=stack.digest,
        label=stack.label,
        results=tuple(results),
        comparisons=found,
        verdict=_judge(found, inherited, before, results, policy),
        compared_with=other.digest if other else None,
        previous=previous,
    )


def _joined(
    first: Examination,
    now: Sequence[ExamResult],
    then: Sequence[ExamResult],
    inherited: Sequence[Exam],
    policy: Policy | None,
) -> Examination:
    """The same examination with the comparisons against the replaced stack added."""
    found = (*first.comparisons, *comparisons(then, now))
    keys = {result.exam.key for result in first.results}
    return Examination(
        stack=first.stack,
        label=first.label,
        results=(*first.results, *(r for r in now if r.exam.key not in keys)),
        comparisons=found,
        verdict=_judge(found, inherited, then, (*first.results, *now), policy),
        compared_with=first.compared_with,
        previous=first.previous,
    )


def _judge(
    found: Sequence[Comparison],
    inherited: Sequence[Exam],
    before: Sequence[ExamResult],
    after: Sequence[ExamResult],
    policy: Policy | None,
) -> Verdict:
    wanted = {(exam.digest, exam.name) for exam in inherited}
    compared = {(c.exam_digest, c.exam) for c in found}
    sat = {result.exam.key for result in after}
    return verdict(
        [c for c in found if (c.exam_digest, c.exam) in wanted],
        policy,
        own=[c for c in found if (c.exam_digest, c.exam) not in wanted],
        unexamined=[
            Unexamined(exam=exam.name, layer=exam.layer, exam_digest=exam.digest)
            for exam in inherited
            if exam.key not in sat or (before and (exam.digest, exam.name) not in compared)
        ],
    )


def matrix_of(store: Store, stacks: Sequence[ResolvedStack], reporter: Reporter) -> Matrix:
    """Every stack on every exam that any of them carries."""
    exams = [exam for stack in stacks for exam in carried(store, stack.layers)]
    rows = [(stack.label, sit(store, stack, exams, reporter)) for stack in stacks]
    return matrix(rows, exams)
