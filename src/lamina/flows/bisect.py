"""`lamina bisect`: which layer of a stack made an exam worse, and on which questions.

The stack is examined layer by layer from the base up, and without each of its layers in turn: at
most 2n + 1 stacks of n layers, fewer where results are on record. A layer is named only where the
paired test finds it after Holm's correction over the layers (see `gate.verdict`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from lamina.core.digest import short
from lamina.core.errors import CheckError, UsageError
from lamina.core.manifests import StackedLayer
from lamina.core.report import Reporter
from lamina.core.scores import Comparison
from lamina.exams.examinee import Prompt
from lamina.exams.report import comparisons, interval_text, value_text
from lamina.exams.runner import ExamResult
from lamina.exams.tasks import Exam
from lamina.flows.compare import ask, shown
from lamina.flows.examine import sit
from lamina.flows.questions import carried, from_file
from lamina.flows.suiting import check_scorers
from lamina.gate.verdict import Policy, holm
from lamina.stack.resolve import ResolvedLayer, ResolvedStack, of_config, resolve
from lamina.store.layout import Store

ALPHA = Policy().alpha
"""Chance of naming a layer of an exam that no layer made worse."""
Results = Mapping[tuple[str, str, int], ExamResult]
"""One stack's results by `Exam.key`."""
Ask = Callable[[ResolvedStack, Sequence[Prompt]], Sequence[str]]
WIDEST = 100
"""Most characters of a question or answer in the text for people."""
SHOWN = 3
"""Most questions shown for one layer and exam: those that lost most."""


@dataclass(frozen=True)
class Question:
    """A question that one stack answers worse than another."""

    prompt: Prompt
    text: str
    good: str | None
    """Answer of the stack without the layer; None where the exam generates none."""
    bad: str | None
    """Answer of the stack with it."""
    good_value: float
    bad_value: float

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {key: value for key, value in self.__dict__.items() if key != "prompt"}

    def render(self, metric: str) -> list[str]:
        """For people."""
        good, bad = (value_text(metric, v) for v in (self.good_value, self.bad_value))
        return [
            f"    ? {_line(self.text)}",
            f"      without it {good}{_said(self.good)}",
            f"      with it {bad}{_said(self.bad)}",
        ]


def _said(answer: str | None) -> str:
    return f": {_line(answer)}" if answer is not None else ""


def _line(text: str) -> str:
    """A text on one line, its end cut off where that is too long."""
    words = " ".join(text.split())
    return words if len(words) <= WIDEST else words[: WIDEST - 1] + "…"


@dataclass(frozen=True)
class Finding:
    """A layer, and what adding it or leaving it out changes."""

    layer: ResolvedLayer
    comparison: Comparison
    """Adding: from without to with. Leaving out: from with to without."""
    adjusted: float
    """The one-sided p-value after Holm's correction over the layers."""
    good: ResolvedStack
    """The stack without it."""
    bad: ResolvedStack
    lost: int
    """Questions that are answered worse with the layer."""
    questions: tuple[Question, ...]
    """Some of those, the worst first."""

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "layer": self.layer.digest,
            "name": self.layer.config.name,
            "author": self.layer.config.author,
            "comparison": self.comparison.model_dump(mode="json"),
            "adjusted_p": self.adjusted,
            "lost": self.lost,
            "questions": [question.to_json() for question in self.questions],
        }

    def render(self, words: str) -> list[str]:
        """For people: `words`, the layer and its author, the change, the questions."""
        found, config = self.comparison, self.layer.config
        who = f" by {config.author}" if config.author else ""
        before, after = (value_text(found.metric, v) for v in (found.before, found.after))
        lines = [
            f"  {words} {config.name} @{short(self.layer.digest)}{who}: {found.metric} goes from "
            f"{before} to {after}, change {interval_text(found.metric, found.ci)}, "
            f"adjusted p = {self.adjusted:.2g}"
        ]
        if self.questions:
            lines.append(f"  {self.lost} of {found.n} questions are answered worse with it:")
        return lines + [line for q in self.questions for line in q.render(found.metric)]


@dataclass(frozen=True)
class ExamFindings:
    """One exam over a stack's layers."""

    exam: Exam
    metric: str
    added: tuple[float, ...]
    """Value of the base, then with each layer added, lowest first."""
    without: tuple[float, ...]
    """Value of the stack without each layer, lowest first."""
    breaks: Finding | None
    """The first layer whose addition made it significantly worse."""
    helps: Finding | None
    """The layer whose removal helps most significantly."""

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "exam": self.exam.name,
            "layer": self.exam.layer,
            "exam_digest": self.exam.digest,
            "metric": self.metric,
            "added": list(self.added),
            "without": list(self.without),
            "breaks": self.breaks.to_json() if self.breaks else None,
            "helps": self.helps.to_json() if self.helps else None,
        }

    def render(self, layers: Sequence[ResolvedLayer]) -> str:
        """For people."""
        names = ["base", *(layer.config.name for layer in layers)]
        values = [value_text(self.metric, value) for value in self.added]
        steps = " > ".join(f"{n} {v}" for n, v in zip(names, values, strict=True))
        lines = [f"{self.exam.name} ({self.metric}): {steps}"]
        if self.breaks:
            lines += self.breaks.render("made worse by adding")
        if self.helps:
            same = self.breaks is not None and self.breaks.layer == self.helps.layer
            helps = replace(self.helps, questions=()) if same else self.helps
            lines += helps.render("made better by leaving out")
        if not self.breaks and not self.helps:
            lines.append("  no layer made this exam worse")
        return "\n".join(lines)


@dataclass(frozen=True)
class Bisection:
    """What each layer of a stack did to each exam."""

    stack: ResolvedStack
    examined: int
    """Different stacks that were examined, on record or now."""
    exams: tuple[ExamFindings, ...]
    unexamined: tuple[str, ...]
    """Exams whose questions are withheld."""

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "stack": self.stack.digest,
            "layers": [
                {"layer": layer.digest, "name": layer.config.name, "author": layer.config.author}
                for layer in self.stack.layers
            ],
            "examined": self.examined,
            "exams": [each.to_json() for each in self.exams],
            "unexamined": list(self.unexamined),
        }

    def render(self) -> str:
        """For people."""
        blocks = [each.render(self.stack.layers) for each in self.exams]
        blocks += [f"{name}: not examined, its questions are withheld" for name in self.unexamined]
        return "\n\n".join(blocks)


def bisect(store: Store, text: str, reporter: Reporter, *, wanted: Sequence[str] = ()) -> Bisection:
    """Find the layers that made exams worse: all that the stack carries, or those `wanted`.

    `wanted`: names of exams that the stack carries, or files of questions. Raises UsageError where
    there is no layer, no exam or no exam of that name; CheckError where a layer makes the stack
    compute infinities; DataError.
    """
    stack = resolve(store, text, force=True)
    if not stack.layers:
        raise UsageError(f"{text} has no layers to choose from", hint="give a stack: lamina list")
    exams = list({exam.key: exam for exam in _exams(store, stack, wanted)}.values())
    if not exams:
        raise UsageError(f"{text} carries no exam", hint="give questions of your own with --exam")
    with_, without = _stacks(store, stack)
    sat: dict[str, Results] = {}
    for each in (*with_, *without):
        if each.digest not in sat:
            sat[each.digest] = _sit(store, each, exams, reporter)
    asked = [exam for exam in exams if all(exam.key in results for results in sat.values())]
    found = [_search(exam, stack.layers, with_, without, sat) for exam in asked]
    findings = _answered(found, lambda s, prompts: ask(store, s, prompts, reporter))
    missing = tuple(exam.name for exam in exams if exam not in asked)
    return Bisection(stack, len(sat), findings, missing)


def _exams(store: Store, stack: ResolvedStack, wanted: Sequence[str]) -> list[Exam]:
    """The exams that a stack carries, or those picked from them or read from files."""
    known = carried(store, stack.layers)
    if not wanted:
        return known
    picked: list[Exam] = []
    faults = []
    for text in wanted:
        named = [exam for exam in known if exam.name == text]
        if not named and not Path(text).is_file():
            faults.append(f"{text!r} is no exam of {stack.label} and no file")
        picked += named or (from_file(text) if Path(text).is_file() else [])
    if faults:
        names = ", ".join(dict.fromkeys(exam.name for exam in known))
        raise UsageError("no such exam", faults=faults, hint=f"it carries: {names or 'none'}")
    check_scorers(stack, [exam.spec.scorer for exam in picked])
    return picked


def _stacks(
    store: Store, stack: ResolvedStack
) -> tuple[tuple[ResolvedStack, ...], tuple[ResolvedStack, ...]]:
    """(the base and then each layer added; the stack without each layer), lowest first."""
    layers = stack.config.layers
    names = [layer.config.name for layer in stack.layers]

    def of(chosen: Iterable[StackedLayer], label: str) -> ResolvedStack:
        config = stack.config.model_copy(update={"layers": tuple(chosen)})
        return of_config(store, config, label=label, force=True)

    added = [of((), "the base")]
    added += [of(layers[:n], " + ".join(["base", *names[:n]])) for n in range(1, len(layers) + 1)]
    without = [
        of((*layers[:n], *layers[n + 1 :]), f"{stack.label} without {names[n]}")
        for n in range(len(layers))
    ]
    return tuple(added), tuple(without)


def _sit(store: Store, stack: ResolvedStack, exams: Sequence[Exam], reporter: Reporter) -> Results:
    try:
        return {result.exam.key: result for result in sit(store, stack, exams, reporter)}
    except CheckError as error:
        top = stack.layers[-1].config if stack.layers else None
        last = f"; the layer added last is {top.name} by {top.author or 'nobody'}" if top else ""
        raise CheckError(
            f"{stack.label}: {error.message}{last}", faults=error.faults, hint=error.hint
        ) from None


# -- the search ------------------------------------------------------------------------------------


def _search(
    exam: Exam,
    layers: Sequence[ResolvedLayer],
    with_: Sequence[ResolvedStack],
    without: Sequence[ResolvedStack],
    sat: Mapping[str, Results],
) -> ExamFindings:
    """The layer that breaks an exam, and the one whose removal helps."""
    whole = with_[-1]
    steps = [_compared(sat, exam, a, b) for a, b in pairwise(with_)]
    removals = [_compared(sat, exam, whole, other) for other in without]
    worse = holm([step.p_worse for step in steps])
    better = holm([removal.p_better for removal in removals])
    first = next((n for n, p in enumerate(worse) if p <= ALPHA), None)
    best = min(
        range(len(layers)), key=lambda n: (better[n], removals[n].p_better, -abs(removals[n].delta))
    )
    breaks = helps = None
    if first is not None:
        pair = with_[first], with_[first + 1]
        breaks = _finding(exam, layers[first], steps[first], worse[first], *pair, sat)
    if better[best] <= ALPHA:
        pair = without[best], whole
        helps = _finding(exam, layers[best], removals[best], better[best], *pair, sat)
    return ExamFindings(
        exam=exam,
        metric=exam.scorer.metric,
        added=(steps[0].before, *(step.after for step in steps)),
        without=tuple(removal.after for removal in removals),
        breaks=breaks,
        helps=helps,
    )


def _compared(
    sat: Mapping[str, Results], exam: Exam, before: ResolvedStack, after: ResolvedStack
) -> Comparison:
    (found,) = comparisons([sat[before.digest][exam.key]], [sat[after.digest][exam.key]])
    return found


def _finding(
    exam: Exam,
    layer: ResolvedLayer,
    comparison: Comparison,
    adjusted: float,
    good: ResolvedStack,
    bad: ResolvedStack,
    sat: Mapping[str, Results],
) -> Finding:
    lost = _lost(sat[good.digest][exam.key], sat[bad.digest][exam.key])
    return Finding(layer, comparison, adjusted, good, bad, len(lost), lost[:SHOWN])


def _lost(good: ExamResult, bad: ExamResult) -> tuple[Question, ...]:
    """The questions that the bad stack answers worse, those that lost most first."""
    lost: list[tuple[float, Question]] = []
    for item, one, other in zip(good.exam.items or (), good.items, bad.items, strict=False):
        if not one.weight or not other.weight:
            continue
        values = one.value / one.weight, other.value / other.weight
        loss = values[0] - values[1] if good.exam.scorer.higher_is_better else values[1] - values[0]
        prompt = Prompt(item.prompt, item.example.tools if item.example else item.tools)
        plain = item.example.text if item.example else None
        text = shown(prompt) if prompt.messages else plain or ""
        lost.append((loss, Question(prompt, text, one.answer, other.answer, *values)))
    lost.sort(key=lambda pair: -pair[0])
    return tuple(question for loss, question in lost if loss > 0)


def _answered(found: Sequence[ExamFindings], ask: Ask) -> tuple[ExamFindings, ...]:
    """The findings with answers to the questions whose exam generated none: asked now.

    Each stack is asked once for all of them.
    """
    stacks: dict[str, ResolvedStack] = {}
    waiting: dict[str, dict[Prompt, None]] = {}
    for finding in (f for each in found for f in (each.breaks, each.helps) if f is not None):
        silent = [q.prompt for q in finding.questions if q.good is None and q.prompt.messages]
        for stack in (finding.good, finding.bad) if silent else ():
            stacks[stack.digest] = stack
            waiting.setdefault(stack.digest, {}).update(dict.fromkeys(silent))
    answers = {
        digest: dict(zip(prompts, ask(stacks[digest], list(prompts)), strict=True))
        for digest, prompts in waiting.items()
    }

    def filled(finding: Finding | None) -> Finding | None:
        if finding is None:
            return None
        good, bad = (answers.get(stack.digest, {}) for stack in (finding.good, finding.bad))
        questions = tuple(
            q if q.good is not None else replace(q, good=good.get(q.prompt), bad=bad.get(q.prompt))
            for q in finding.questions
        )
        return replace(finding, questions=questions)

    return tuple(
        replace(each, breaks=filled(each.breaks), helps=filled(each.helps)) for each in found
    )
