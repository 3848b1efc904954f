"""Whether a name may move: no inherited exam significantly worse, after Holm's correction.

The rule. Sort the m inherited exams' one-sided p-values p(1) <= ... <= p(m) of "after is worse".
Exam (k) got significantly worse if p(j) <= alpha / (m - j + 1) for every j <= k (Holm, Scand. J.
Statist. 6 (1979) 65): the chance that the gate stops a stack that is worse nowhere is at most
alpha, however many exams it inherits. "At most": a p-value that equals its threshold counts as
worse. Every comparison handed in counts in m, also those that cannot be worse (p = 1).
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from lamina.core.digest import Digest
from lamina.core.scores import Comparison
from lamina.core.values import Value

_ACCURACY = "accuracy"


class Policy(Value):
    """When the gate says no."""

    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Chance of a false alarm, over all inherited exams together."""
    block_unexamined: bool = False
    """Say no when an inherited exam could not be put to the stack. False: say so, but let pass."""
    rounding: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Changes of at most this share of the value before are not counted as worse: for a stack that
    is proved to be the one it replaces, up to rounding."""
    require_own_gain: bool = False
    """Say no unless the new layer got significantly better on at least one exam of its own."""


class Unexamined(Value):
    """An inherited exam that could not be put to the stack."""

    exam: str
    layer: str
    exam_digest: Digest
    why: str = "its questions are withheld"


class Verdict(Value):
    """What the gate says. `model_dump(mode="json")` of it goes on record with a moved name."""

    passed: bool
    policy: Policy
    worse: tuple[Comparison, ...] = ()
    """Inherited exams that got significantly worse, smallest p-value first."""
    unexamined: tuple[Unexamined, ...] = ()
    reasons: tuple[str, ...] = ()
    """Why it did not pass, one sentence each; empty when it passed."""
    notes: tuple[str, ...] = ()
    """What to know although it does not block."""


def verdict(
    inherited: Sequence[Comparison],
    policy: Policy | None = None,
    *,
    own: Sequence[Comparison] = (),
    unexamined: Sequence[Unexamined] = (),
) -> Verdict:
    """Judge a stack by its comparisons with the stack it would replace or stands on.

    `inherited`: one comparison for each inherited exam. `own`: those of the new layer's exams,
    looked at only where the policy asks for a gain. Pure: equal arguments, equal verdicts.
    """
    policy = policy or Policy()
    adjusted = holm([1.0 if _rounded(c, policy) else c.p_worse for c in inherited])
    order = sorted(range(len(inherited)), key=lambda i: (adjusted[i], inherited[i].p_worse))
    bad = [i for i in order if adjusted[i] <= policy.alpha]
    reasons = [_worse_text(inherited[i], adjusted[i]) for i in bad]
    missing = [f"{_label(u)} was not examined: {u.why}" for u in unexamined]
    if policy.block_unexamined:
        reasons += missing
    if policy.require_own_gain:
        reasons += _without_gain(own, policy.alpha)
    return Verdict(
        passed=not reasons,
        policy=policy,
        worse=tuple(inherited[i] for i in bad),
        unexamined=tuple(unexamined),
        reasons=tuple(reasons),
        notes=() if policy.block_unexamined else tuple(missing),
    )


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm's adjusted p-values, in the order given: max over j <= k of (m - j + 1) p(j), at most 1.

    An adjusted value is at most alpha exactly where the step-down procedure rejects at alpha.
    """
    adjusted = [1.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, running)
    return tuple(adjusted)


def _rounded(item: Comparison, policy: Policy) -> bool:
    return bool(policy.rounding) and abs(item.delta) <= policy.rounding * abs(item.before)


def _without_gain(own: Sequence[Comparison], alpha: float) -> list[str]:
    """The reason for a missing gain: none of the layer's own exams is better after Holm."""
    if any(p <= alpha for p in holm([c.p_better for c in own])):
        return []
    if not own:
        return ["a gain on the layer's own exam is required, but none was compared"]
    names = ", ".join(_label(c) for c in own)
    return [f"a gain on the layer's own exam is required: no significant one on {names}"]


def _label(item: Comparison | Unexamined) -> str:
    return f"{item.exam} (layer {item.layer})"


def _worse_text(item: Comparison, adjusted: float) -> str:
    share = item.metric == _ACCURACY
    before, after = (f"{v:.1%}" if share else f"{v:.3f}" for v in (item.before, item.after))
    scale, digits, unit = (100, 1, " points") if share else (1, 3, "")
    delta, low, high = (f"{scale * v:+.{digits}f}" for v in (item.delta, *item.ci))
    return (
        f"{_label(item)}: {item.metric} went from {before} to {after} "
        f"({delta}{unit}, 95% {low} to {high}, n = {item.n}, adjusted p = {adjusted:.2g})"
    )
