import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.core.digest import canonical_json, digest_bytes
from lamina.core.errors import UsageError
from lamina.core.scores import Comparison
from lamina.gate.verdict import Policy, Unexamined, Verdict, holm, verdict


def comparison(name, p_worse, p_better=1.0, metric="accuracy", delta=-0.1):
    return Comparison(
        exam=f"{name}/{metric}",
        layer=name,
        exam_digest=digest_bytes(name.encode()),
        metric=metric,
        before=0.8,
        after=0.8 + delta,
        delta=delta,
        ci=(delta - 0.05, delta + 0.05),
        p_worse=p_worse,
        p_better=p_better,
        n=100,
        higher_is_better=metric == "accuracy",
    )


def withheld(name):
    return Unexamined(exam=f"{name}/loss", layer=name, exam_digest=digest_bytes(name.encode()))


def test_holm_agrees_with_a_worked_example():
    # at .05 only the first and the last are rejected: .005 <= .05/4, .01 <= .05/3, .03 > .05/2
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))


def test_holm_steps_down_and_stops_at_the_first_exam_that_is_not_rejected():
    # thresholds .0125, .01667, .025, .05: the third fails, so the fourth stays although .04 <= .05
    names = {"a": 0.01, "b": 0.016, "c": 0.03, "d": 0.04}
    result = verdict([comparison(name, p) for name, p in names.items()])
    assert [c.layer for c in result.worse] == ["a", "b"]
    assert not result.passed


def test_a_bonferroni_survivor_can_still_fall_to_the_step_down():
    result = verdict([comparison("a", 0.001), comparison("b", 0.04)])
    assert [c.layer for c in result.worse] == ["a", "b"]  # .04 > .05 / 2, but .04 <= .05 / 1


@pytest.mark.parametrize(("delta", "passed"), [(-0.0031, True), (-0.0033, False), (-0.1, False)])
def test_a_stack_that_is_proved_equal_may_differ_by_rounding(delta, passed):
    found = [comparison("a", 1e-6, delta=delta)]
    assert verdict(found, Policy(rounding=2**-8)).passed is passed
    assert not verdict(found).passed


@pytest.mark.parametrize(
    ("p_values", "passed"),
    [
        ([0.05], False),
        ([0.0500001], True),
        ([0.025, 1.0], False),
        ([0.0250001, 1.0], True),
        ([], True),
        ([1.0, 1.0], True),
        ([0.0], False),
    ],
)
def test_a_p_value_equal_to_its_threshold_is_worse(p_values, passed):
    result = verdict([comparison(f"e{i}", p) for i, p in enumerate(p_values)])
    assert result.passed is passed
    assert bool(result.worse) is not passed


def test_alpha_is_the_policys():
    exam = [comparison("a", 0.03)]
    assert not verdict(exam, Policy(alpha=0.05)).passed
    assert verdict(exam, Policy(alpha=0.01)).passed
    with pytest.raises(UsageError, match="alpha"):
        Policy.parse({"alpha": 0}, "policy")
    with pytest.raises(UsageError, match="did you mean 'alpha'"):
        Policy.parse({"alhpa": 0.1}, "policy")


def test_a_drop_that_may_be_chance_passes():
    assert verdict([comparison("a", 0.4, delta=-0.3)]).passed


def test_reasons_name_exam_layer_and_both_values():
    result = verdict([comparison("support", 0.001), comparison("german", 0.0002, metric="loss")])
    assert [c.layer for c in result.worse] == ["german", "support"]  # smallest p first
    assert result.reasons[1] == (
        "support/accuracy (layer support): accuracy went from 80.0% to 70.0% "
        "(-10.0 points, 95% -15.0 to -5.0, n = 100, adjusted p = 0.001)"
    )
    assert "loss went from 0.800 to 0.700 (-0.100, " in result.reasons[0]


def test_an_unexamined_exam_is_said_and_blocks_only_if_asked():
    result = verdict([comparison("a", 0.5)], unexamined=[withheld("secret")])
    assert result.passed
    assert [u.layer for u in result.unexamined] == ["secret"]
    assert result.notes == (
        "secret/loss (layer secret) was not examined: its questions are withheld",
    )
    strict = verdict(
        [comparison("a", 0.5)], Policy(block_unexamined=True), unexamined=[withheld("secret")]
    )
    assert not strict.passed
    assert strict.reasons == result.notes
    assert strict.notes == ()


@pytest.mark.parametrize(
    ("p_better", "passed"), [((0.02,), True), ((0.2,), False), ((0.03, 0.9), False), ((), False)]
)
def test_a_gain_can_be_required(p_better, passed):
    own = [comparison(f"own{i}", 1.0, p, delta=0.1) for i, p in enumerate(p_better)]
    assert verdict([], own=own).passed
    result = verdict([], Policy(require_own_gain=True), own=own)
    assert result.passed is passed
    assert bool(result.reasons) is not passed


def test_own_exams_do_not_dilute_the_correction():
    own = [comparison(f"own{i}", 1.0) for i in range(50)]
    assert not verdict([comparison("a", 0.04)], own=own).passed


def test_a_verdict_is_json_and_comes_back():
    result = verdict([comparison("a", 0.001)], unexamined=[withheld("b")])
    recorded = result.model_dump(mode="json")
    assert Verdict.parse(canonical_json(recorded), "verdict") == result


probabilities = st.lists(st.floats(0, 1), max_size=8)


@given(probabilities, st.floats(0.001, 0.5))
def test_adjusted_values_decide_as_the_step_down_procedure_does(p_values, alpha):
    rejected = set()
    ordered = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, index in enumerate(ordered):
        if (len(p_values) - rank) * p_values[index] > alpha:
            break
        rejected.add(index)
    assert {i for i, p in enumerate(holm(p_values)) if p <= alpha} == rejected


@given(probabilities)
def test_adjusted_values_never_fall_below_raw_ones_nor_above_bonferroni(p_values):
    for raw, adjusted in zip(p_values, holm(p_values), strict=True):
        assert raw <= adjusted <= min(1.0, len(p_values) * raw)


@given(probabilities.filter(len), st.randoms())
def test_the_order_of_the_exams_does_not_matter(p_values, random):
    exams = [comparison(f"e{i}", p) for i, p in enumerate(p_values)]
    shuffled = random.sample(exams, len(exams))
    first, second = verdict(exams), verdict(shuffled)
    assert {c.layer for c in first.worse} == {c.layer for c in second.worse}
    assert first.passed == second.passed


def test_the_gate_stays_light():
    code = (
        "import sys, lamina.gate.verdict\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'scipy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
