"""What more rows should bring to a stack, by the fine-tuning law fitted to its own versions.

A point is a version of the name: rows that its top layer has learned from, and the held-out loss
on record for that version's stack. What counts, and why:

- The same questions for all points: results of `loss` exams on record, question by question, over
  the questions that all these versions answered. `loss_after` of a layer's cost does not count: it
  is over the first few held-out rows, which are others in each version, and the best of several
  looks.
- Finished trainings only. Held-out losses while one run goes on do not count: its learning rate
  has not come down yet, so they lie above what a run of that length reaches (arXiv:2203.15556,
  section 3; arXiv:2405.18392), and a run's later passes see the same rows again.
- The same stack beneath and the same recipe (rank, scale, linears, rates, passes): else X in the
  law is another, or the curve.
- Rows are different rows. An update counts all that its older versions learned from.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lamina.core.digest import Digest
from lamina.core.errors import UsageError
from lamina.core.evidence import SCORES_TYPE
from lamina.core.manifests import LayerConfig
from lamina.flows import descent
from lamina.flows.evidence import recorded
from lamina.flows.lineage import Lineage, Version
from lamina.flows.questions import exam_bytes
from lamina.flows.spending import versions_until
from lamina.plan.tuning import LEAST_POINTS, Fit, Gain, Point, fit
from lamina.stack.resolve import ResolvedLayer
from lamina.store.layout import Store

RUN_NOISE = 0.005
"""Nats by which trainings that differ in their seed alone are assumed to differ on the same
questions. Three of smollm2-135m on 94 rows scattered by 0.001 (docs/log.md); five times that, as
three runs of one size say little of others."""
LEAST_QUESTIONS = 8
"""Fewer shared questions than this are no measurement of a loss."""
_SAME = ("rank", "ranks", "scaling", "alpha", "targets", "lr", "lr_ratio", "epochs", "above")
"""Keys of a recipe that have to agree."""
_HELP = (
    "train the name on growing parts of its rows with one recipe and the same questions: "
    "lamina train … --exam questions.jsonl --scorer loss, on a quarter, on half, on all"
)

Answers = Mapping[object, tuple[float, float]]
"""question -> (summed loss, tokens)."""


@dataclass(frozen=True)
class Prospect:
    """What so many more rows should bring."""

    label: str
    points: tuple[tuple[str, Point], ...]
    """(version, rows and loss)."""
    left_out: tuple[tuple[str, str], ...]
    """(version, why it is no point)."""
    questions: int
    noise: float
    gain: Gain
    beta: tuple[float, float, float]
    """(2.5%, median, 97.5%)."""

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        gain = self.gain
        return {
            "more_rows": gain.rows,
            "lowers_loss_by": gain.value,
            "half_of_95": gain.half,
            "ci": [gain.low, gain.high],
            "far": gain.far,
            "questions": self.questions,
            "noise": self.noise,
            "beta": list(self.beta),
            "points": [
                {"version": name, "rows": p.rows, "loss": p.loss} for name, p in self.points
            ],
            "left_out": [{"version": name, "why": why} for name, why in self.left_out],
        }

    def render(self) -> str:
        """For people."""
        gain, (name, last) = self.gain, self.points[-1]
        lines = [
            f"{gain.rows:,.0f} more rows should lower the held-out loss by {gain.value:.4f} "
            f"± {gain.half:.4f} nats a token (95%: {gain.low:.4f} to {gain.high:.4f})",
            f"  from {last.loss:.4f} with {last.rows:,.0f} rows ({name}), over {self.questions} "
            f"questions that all of {len(self.points)} versions answered; "
            "Zhang et al., arXiv:2402.17193",
        ]
        if gain.far:
            lines.append("  that is far beyond what was measured: take it as a direction")
        lines += [f"  {name} is no point: {why}" for name, why in self.left_out]
        return "\n".join(lines)


def prospect(store: Store, text: str, more: float) -> Prospect:
    """What `more` rows should bring to the stack that `text` means.

    Raises UsageError where its versions give fewer than three points, saying what would give them.
    """
    lineage = Lineage.of(store)
    versions = versions_until(store, lineage, text)
    if not versions:
        raise UsageError("a digest has no versions to learn a law from", hint="give a name")
    counted, left_out = _comparable(store, versions)
    answers = _answers(store, counted, [layer for _, layer in counted])
    chosen, questions = _shared(counted, answers)
    left_out += [
        (str(version.name), "too few questions that the others answered too")
        for version, _ in counted
        if version not in [each for each, _ in chosen]
    ]
    points = [
        (str(version.name), Point(_rows(store, layer), _loss(answers[version.stack], questions)))
        for version, layer in chosen
    ]
    noise = math.hypot(RUN_NOISE, _spread([answers[v.stack] for v, _ in chosen], questions))
    found = _fitted(points, left_out, noise)
    ordered = tuple(sorted(points, key=lambda each: each[1].rows))
    gain = found.gain(more)
    label = str(versions[-1].name)
    return Prospect(label, ordered, tuple(left_out), len(questions), noise, gain, found.exponent())


def _fitted(
    points: Sequence[tuple[str, Point]], left_out: Sequence[tuple[str, str]], noise: float
) -> Fit:
    different = len({point.rows for _, point in points})
    if different < LEAST_POINTS:
        raise UsageError(
            f"what more rows bring is told by {LEAST_POINTS} trainings on different numbers of "
            f"rows, and {different} of this name can be compared",
            faults=[
                *(f"{name}: {p.rows:,.0f} rows, loss {p.loss:.4f}" for name, p in points),
                *(f"{name}: {why}" for name, why in left_out),
            ],
            hint=_HELP,
        )
    return fit([point for _, point in points], max(noise, RUN_NOISE))


def _comparable(
    store: Store, versions: Sequence[Version]
) -> tuple[list[tuple[Version, ResolvedLayer]], list[tuple[str, str]]]:
    """Versions of one recipe over one stack with their top layers, and why others are not."""
    top = descent.version(store, versions[-1].top)
    if top is None:
        raise UsageError(f"{versions[-1].name} has no layer here")
    counted, left_out = [], []
    for version in versions:
        layer = descent.version(store, version.top)
        why = "its layer is not in this store"
        if layer is not None:
            why = _why_not(
                store, layer, top, same=version.digests[:-1] == versions[-1].digests[:-1]
            )
        if layer is None or why:
            left_out.append((str(version.name), why))
        else:
            counted.append((version, layer))
    return counted, left_out


def _why_not(store: Store, layer: ResolvedLayer, top: ResolvedLayer, *, same: bool) -> str:
    config, newest = layer.config, top.config
    if config.origin not in ("trained", "updated"):
        return f"it was {config.origin}, not trained on rows"
    if config.base != newest.base or not same:
        return "it stands on other layers"
    trainings, whole = descent.trainings(store, layer)
    if not whole or any(each.config.data is None for each in trainings):
        return "not all that it learned from is on record"
    differ = [key for key in _SAME if _key(config, key) != _key(newest, key)]
    return f"another recipe: {', '.join(differ)}" if differ else ""


def _key(config: LayerConfig, key: str) -> object:
    return getattr(config, key) if key in ("rank", "alpha") else getattr(config.recipe, key, None)


def _rows(store: Store, layer: ResolvedLayer) -> float:
    trainings, _ = descent.trainings(store, layer)
    return float(sum(each.config.data.rows for each in trainings if each.config.data))


def _answers(
    store: Store,
    counted: Sequence[tuple[Version, ResolvedLayer]],
    layers: Sequence[ResolvedLayer],
) -> dict[Digest, Answers]:
    """Losses of each version's stack by question; withheld questions by exam and place."""
    lines: dict[str, list[object]] = {}
    for layer in layers:
        for index, spec in enumerate(layer.config.exams):
            if spec.scorer == "loss" and spec.items not in lines:
                data = exam_bytes(store, layer, index)
                places: list[object] = [(spec.items, place) for place in range(spec.rows)]
                lines[spec.items] = places if data is None else list(data.splitlines())
    stacks = {version.stack for version, _ in counted}
    found: dict[Digest, Answers] = {}
    for stack, records in recorded(store, SCORES_TYPE, stacks).items():
        answers: dict[object, tuple[float, float]] = {}
        for record in records:
            asked = lines.get(record["exam_digest"], [])
            if record["scorer"] == "loss" and len(asked) == len(record["items"]):
                answers |= {
                    line: (float(value), float(weight))
                    for line, (value, weight, _) in zip(asked, record["items"], strict=True)
                    if weight and math.isfinite(value)
                }
        found[stack] = answers
    return {version.stack: found.get(version.stack, {}) for version, _ in counted}


def _shared(
    counted: Sequence[tuple[Version, ResolvedLayer]], answers: Mapping[Digest, Answers]
) -> tuple[list[tuple[Version, ResolvedLayer]], list[object]]:
    """The newest versions that share enough questions, as many of them as possible."""
    chosen = [each for each in counted if answers[each[0].stack]]
    questions: list[object] = []
    while chosen:
        first, *rest = (answers[version.stack] for version, _ in chosen)
        questions = [line for line in first if all(line in other for other in rest)]
        if len(questions) >= LEAST_QUESTIONS:
            return chosen, questions
        chosen = chosen[1:]
    return [], []


def _loss(answers: Answers, questions: Sequence[object]) -> float:
    value = sum(answers[line][0] for line in questions)
    return value / sum(answers[line][1] for line in questions)


def _spread(all_of: Sequence[Answers], questions: Sequence[object]) -> float:
    """Standard error of a version's loss about the others', over the questions asked (V, Q)."""
    if not questions:
        return 0.0
    value_VQ = np.array([[answers[line][0] for line in questions] for answers in all_of])
    weight_Q = np.array([all_of[0][line][1] for line in questions])
    each_VQ = value_VQ / weight_Q
    loss_V = value_VQ.sum(axis=1) / weight_Q.sum()
    left_VQ = each_VQ - each_VQ.mean(axis=0) - (loss_V - loss_V.mean())[:, None]
    return float(np.sqrt(np.square(weight_Q * left_VQ).sum(axis=1).mean()) / weight_Q.sum())
