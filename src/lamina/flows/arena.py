"""`lamina arena`: a stack beside another one, or beside any endpoint, on the same questions.

Quality in pairs, with intervals; seconds an answer; and what a thousand answers cost.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any

from lamina.core.errors import CheckError, DataError, UsageError
from lamina.core.report import Reporter
from lamina.core.scores import Comparison, ItemScore
from lamina.data.exams import ExamItem
from lamina.exams.examinee import Likelihood, Progress, Prompt
from lamina.exams.report import comparisons, interval_text, score_of, value_text
from lamina.exams.runner import ExamResult
from lamina.exams.statistics import Estimate
from lamina.exams.statistics import score as estimate
from lamina.exams.tasks import NO_LAYER, Exam, load
from lamina.flows.contestants import (
    Contestant,
    EndpointContestant,
    Said,
    StackContestant,
    stays_here,
)
from lamina.flows.questions import carried, exams_in, from_file
from lamina.flows.suiting import check_alike, check_talks
from lamina.stack.resolve import resolve
from lamina.store.layout import Store

HOUR, MILLION = 3600.0, 1e6
SURE = 0.025
"""One-sided p-value up to which a difference counts: of both sides together one in twenty."""
MOST_FAULTS = 0.2
"""Share of the questions that a contestant may fail to answer at all before the match is void."""


@dataclass(frozen=True)
class Prices:
    """What answers cost, in one currency of the user's own; None where it is not known."""

    hour: float | None = None
    """Of this machine."""
    million_in: float | None = None
    """Of a million tokens of prompts, at the endpoint."""
    million_out: float | None = None
    """Of a million tokens of answers."""


@dataclass(frozen=True)
class Match:
    """What is asked, and how."""

    exam: str | None = None
    """Name of one exam that the stack carries, or a file; None: all that it carries."""
    limit: int | None = None
    """Questions of each exam, at most."""
    at_once: int = 1
    """Questions under way at a time."""
    send_private: bool = False
    """Whether withheld questions may be sent to another machine."""
    prices: Prices = field(default_factory=Prices)


@dataclass(frozen=True)
class Side:
    """One contestant's match."""

    label: str
    host: str | None
    results: tuple[ExamResult, ...]
    said: tuple[Said, ...]
    """Of all exams, in order."""
    at_once: int
    cost: float | None
    """Of a thousand answers."""

    @property
    def answered(self) -> list[Said]:
        """Without those that failed."""
        return [each for each in self.said if each.fault is None]

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "contestant": self.label,
            "host": self.host,
            "questions": len(self.said),
            "unanswered": len(self.said) - len(self.answered),
            "seconds": self.seconds(),
            "tokens_in": _total(each.tokens_in for each in self.answered),
            "tokens_out": _total(each.tokens_out for each in self.answered),
            "cost_per_thousand": self.cost,
        }

    def seconds(self) -> dict[str, float]:
        """From asking to the last token: mean, and what half and 95% of answers took at most."""
        times = [each.seconds for each in self.answered]
        cuts = quantiles(times, n=20, method="inclusive") if len(times) > 1 else times * 19
        return {"mean": fmean(times), "p50": cuts[9], "p95": cuts[18]}


@dataclass(frozen=True)
class Outcome:
    """Both sides, the stack first, and how they compare."""

    sides: tuple[Side, Side]
    comparisons: tuple[Comparison, ...]
    """`before` is the other side's, `after` the stack's."""
    skipped: tuple[str, ...]
    """Exams that cannot be asked this way, and why."""

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        exams = []
        for ours, theirs in zip(*(side.results for side in self.sides), strict=True):
            scores = [score_of(result).model_dump(mode="json") for result in (ours, theirs)]
            exams.append({"exam": ours.exam.name, "layer": ours.exam.layer, "scores": scores})
        return {
            "contestants": [side.to_json() for side in self.sides],
            "exams": exams,
            "comparisons": [item.model_dump(mode="json") for item in self.comparisons],
            "skipped": list(self.skipped),
        }

    def render(self) -> str:
        """For people."""
        found = {item.exam_digest: item for item in self.comparisons}
        lines = []
        for ours, theirs in zip(*(side.results for side in self.sides), strict=True):
            lines.append(f"{ours.exam.name}, {len(ours.items)} questions")
            for side, result in zip(self.sides, (ours, theirs), strict=True):
                score = _estimate(result)
                lines.append(f"  {side.label}: {_score_text(result, score)}")
            if other := found.get(ours.exam.digest):
                ci = interval_text(other.metric, other.ci)
                lines.append(f"  {self.sides[0].label} is {_judged(other)}: difference {ci}")
        for side in self.sides:
            took = side.seconds()
            lines.append(
                f"{side.label}: {took['p50']:.2f} s an answer (95%: {took['p95']:.2f}), "
                f"{_cost_text(side)}"
            )
            if missing := len(side.said) - len(side.answered):
                faults = sorted({each.fault for each in side.said if each.fault})
                lines.append(f"  {missing} of {len(side.said)} not answered: {faults[0]}")
        return "\n".join([*lines, *self.skipped])


def arena(
    store: Store,
    text: str,
    against: str,
    match: Match,
    reporter: Reporter,
    *,
    model: str | None = None,
    key: str | None = None,
) -> Outcome:
    """Put the same questions to the stack `text` and to `against`, a stack or a URL.

    Both are asked greedily, each question by itself. A question that either side could not answer
    at all counts for neither. Raises UsageError, DataError, CheckError when a side fails to answer
    a large share, MissingPartError.
    """
    stack = resolve(store, text)
    remote = against.startswith(("http://", "https://"))
    other = None if remote else resolve(store, against)
    check_talks(stack, "an arena", None if remote else f"lamina exam {text} --against {against}")
    if other is not None:
        check_alike(stack, other, "give two stacks that talk")
    exams, skipped = _exams(store, carried(store, stack.layers), match)
    ours: StackContestant | None = None
    theirs: Contestant | None = None
    try:
        if other is None:
            theirs = EndpointContestant(against, model, key)
            host = theirs.host or ""
            _may_be_sent(exams, host, match)
            reporter.say(f"{sum(len(e.items or ()) for e in exams)} questions are sent to {host}")
            ours = StackContestant(store, stack)
        else:
            ours = StackContestant(store, stack)
            shared = ours.engine if other.base.digest == stack.base.digest else None
            theirs = StackContestant(store, other, shared)
        sides = [_play(each, exams, match, reporter) for each in (ours, theirs)]
    finally:
        for each in (theirs, ours):
            if each is not None:
                each.close()
    return _judge(sides[0], sides[1], skipped)


def _exams(store: Store, all_: Sequence[Exam], match: Match) -> tuple[list[Exam], tuple[str, ...]]:
    chosen = list(all_)
    if match.exam is not None:
        chosen = [exam for exam in all_ if exam.name == match.exam]
        if not chosen:
            try:
                chosen = _of_file(match.exam)
            except (DataError, UsageError, OSError) as error:
                known = ", ".join(sorted({exam.name for exam in all_})) or "none"
                raise UsageError(
                    f"{match.exam} is no exam of this stack, and no file of questions",
                    faults=[*getattr(error, "faults", ()), f"its exams: {known}"],
                ) from error
    unique = {exam.key: exam for exam in chosen}.values()
    skipped = [f"left out: {e.name}, {why}" for e in unique if (why := _why_not(e))]
    asked = [_cut(exam, match.limit) for exam in unique if not _why_not(exam)]
    if not asked:
        raise UsageError(
            "there is no question to ask", faults=skipped,
            hint="give a file of questions: --exam FILE",
        )  # fmt: skip
    return asked, tuple(skipped)


def _of_file(path: str) -> list[Exam]:
    """The exams of a file; where none of them generates, its answers are to be met exactly."""
    found = from_file(path)
    if any(exam.scorer.generates for exam in found):
        return found
    exact = exams_in(path, Path(path).stem, ["exact"])
    return [load(spec, NO_LAYER, data) for spec, data in exact]


def _why_not(exam: Exam) -> str | None:
    if exam.items is None:
        return "its questions are withheld"
    if not exam.scorer.generates:
        return "it looks at likelihoods, which endpoints do not give"
    return None


def _cut(exam: Exam, limit: int | None) -> Exam:
    if limit is None or exam.items is None or len(exam.items) <= limit:
        return exam
    spec = exam.spec.model_copy(update={"rows": limit})
    return Exam(spec, exam.layer, exam.items[:limit])


def _may_be_sent(exams: Sequence[Exam], host: str, match: Match) -> None:
    private = [exam.name for exam in exams if exam.spec.private]
    if private and not stays_here(host) and not match.send_private:
        raise UsageError(
            f"these exams are withheld, and would be sent to {host}",
            faults=private,
            hint="choose another with --exam, or send them all the same: --send-private",
        )


def _play(side: Contestant, exams: Sequence[Exam], match: Match, reporter: Reporter) -> Side:
    results, said = [], []
    for exam in exams:
        asking = _Asking(side, match.at_once, _telling(reporter, side.label, exam.name))
        items: Sequence[ExamItem] = exam.items or ()
        scores = exam.scorer.examine(
            items, asking, exam.spec.max_new_tokens, lambda done, total: None
        )
        results.append(ExamResult(exam, _without_faults(scores, asking.said)))
        said += asking.said
        faults = [each.fault for each in said if each.fault]
        if len(faults) > MOST_FAULTS * len(said):
            raise CheckError(
                f"{side.label} did not answer {len(faults)} of {len(said)} questions",
                faults=sorted(set(faults)),
            )
    return Side(
        side.label, side.host, tuple(results), tuple(said), match.at_once,
        _cost(said, match, here=side.host is None),
    )  # fmt: skip


def _telling(reporter: Reporter, label: str, exam: str) -> Callable[[int, int], None]:
    def tell(done: int, total: int) -> None:
        text = f"asking {label}, {exam}: {done}/{total}"
        reporter.event({"event": "examining", "text": text, "last": done == total})

    return tell


class _Asking:
    """A contestant as an examinee: questions one by one, what was said kept."""

    def __init__(self, side: Contestant, at_once: int, progress: Progress) -> None:
        self._side, self._at_once, self._progress = side, at_once, progress
        self.said: list[Said] = []

    def answer(
        self, prompts: Sequence[Prompt], max_new_tokens: int, progress: Progress
    ) -> list[str]:
        """In order."""
        with ThreadPoolExecutor(self._at_once) as pool:
            try:
                for said in pool.map(lambda p: self._side.ask(p, max_new_tokens), prompts):
                    self.said.append(said)
                    self._progress(len(self.said), len(prompts))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return [each.text for each in self.said]

    def log_likelihood(self, examples: Any, progress: Progress) -> list[Likelihood]:
        """Nobody is asked for it."""
        raise UsageError("likelihoods are not asked in an arena")

    def choice_scores(self, prompt: Prompt, choices: Any) -> list[Likelihood]:
        """Nobody is asked for it."""
        raise UsageError("likelihoods are not asked in an arena")


def _without_faults(scores: Sequence[ItemScore], said: Sequence[Said]) -> tuple[ItemScore, ...]:
    """A question that was not answered at all does not count."""
    return tuple(
        score.model_copy(update={"weight": 0.0, "value": 0.0}) if each.fault else score
        for score, each in zip(scores, said, strict=True)
    )


def _judge(ours: Side, theirs: Side, skipped: tuple[str, ...]) -> Outcome:
    return Outcome((ours, theirs), comparisons(theirs.results, ours.results), skipped)


def _cost(said: Sequence[Said], match: Match, *, here: bool) -> float | None:
    """Of a thousand answers: this machine's time, or the endpoint's tokens."""
    answered = [each for each in said if each.fault is None]
    prices = match.prices
    if not answered:
        return None
    if here:
        if prices.hour is None:
            return None
        hours = sum(each.seconds for each in answered) / match.at_once / HOUR
        return 1000 * prices.hour * hours / len(answered)
    tokens_in = _total(each.tokens_in for each in answered)
    tokens_out = _total(each.tokens_out for each in answered)
    known = (prices.million_in, prices.million_out, tokens_in, tokens_out)
    if any(each is None for each in known):
        return None
    assert prices.million_in is not None
    assert prices.million_out is not None
    assert tokens_in is not None
    assert tokens_out is not None
    spent = prices.million_in * tokens_in + prices.million_out * tokens_out
    return 1000 * spent / MILLION / len(answered)


def _total(counts: Any) -> int | None:
    """Their sum; None where one is not known."""
    found = list(counts)
    return None if any(each is None for each in found) else sum(found)


def _estimate(result: ExamResult) -> Estimate:
    return estimate(result.items)


def _score_text(result: ExamResult, score: Estimate) -> str:
    metric = result.exam.scorer.metric
    return f"{value_text(metric, score.value)} {interval_text(metric, score.ci)}, n = {score.n}"


def _judged(item: Comparison) -> str:
    if item.p_better <= SURE:
        return "better"
    return "worse" if item.p_worse <= SURE else "not told apart"


def _cost_text(side: Side) -> str:
    if side.cost is None:
        return "price of a thousand answers not known"
    return f"{side.cost:.4g} a thousand answers"
