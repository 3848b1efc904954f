import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lamina.core.errors import DataError, UsageError
from lamina.core.scores import ItemScore
from lamina.exams.statistics import compare, mcnemar, newcombe, score, wilson

SIMULATIONS = 1500


def items(values, weights=None):
    weights = np.ones(len(values)) if weights is None else weights
    return [ItemScore(value=v, weight=w) for v, w in zip(values, weights, strict=True)]


def table(both, first, second, neither):
    """Two binary results with these counts of pairs."""
    before = [1] * (both + first) + [0] * (second + neither)
    after = [1] * both + [0] * first + [1] * second + [0] * neither
    return items(before), items(after)


# -- textbook values -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_agrees_with_newcombes_table(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_paired_interval_and_mcnemar_agree_with_the_airway_example():
    # Fagerland, Lydersen and Laake (2014): airway hyper-responsiveness of 21 children before and
    # after a transplantation; square-and-add interval -0.507 to -0.026, exact McNemar p = 0.070
    assert newcombe(1, 7, 1, 12) == pytest.approx((-0.507, -0.026), abs=5e-4)
    result = compare(*table(1, 7, 1, 12), higher_is_better=True)
    assert result.delta == pytest.approx(-6 / 21)
    assert 2 * result.p_worse == pytest.approx(0.0703, abs=5e-5)


@pytest.mark.parametrize(("n", "k"), [(8, 7), (10, 10), (5, 0), (200, 117), (1, 1)])
def test_mcnemar_is_the_exact_binomial_tail(n, k):
    assert mcnemar(n, k) == pytest.approx(stats.binomtest(k, n, alternative="greater").pvalue)


def test_equal_weights_give_the_ordinary_paired_t_test():
    rng = np.random.default_rng(1)
    before, after = rng.normal(2, 1, 25), rng.normal(2.2, 1, 25)
    result = compare(items(before), items(after), higher_is_better=False)
    expected = stats.ttest_rel(after, before, alternative="greater")
    assert result.p_worse == pytest.approx(expected.pvalue)
    assert result.p_better == pytest.approx(1 - expected.pvalue)
    interval = stats.ttest_rel(after, before).confidence_interval()
    assert result.ci == pytest.approx((interval.low, interval.high))


def test_value_is_a_ratio_of_sums_not_a_mean_of_ratios():
    assert score(items([10.0, 1.0], [1, 10])).value == pytest.approx(1.0)


def test_mean_of_equal_weights_has_the_ordinary_t_interval():
    values = np.random.default_rng(2).gamma(2.0, size=12)
    half = stats.t.ppf(0.975, 11) * stats.sem(values)
    assert score(items(values)).ci == pytest.approx((values.mean() - half, values.mean() + half))


# -- coverage and calibration ----------------------------------------------------------------------


def covered(ci, truth):
    return ci[0] <= truth <= ci[1]


@pytest.mark.parametrize(("p", "n"), [(0.5, 60), (0.8, 100), (0.3, 150)])
def test_accuracy_intervals_cover_95_percent(p, n):
    probabilities = stats.binom.pmf(np.arange(n + 1), n, p)  # exact: no simulation needed
    hits = [covered(wilson(k, n), p) for k in range(n + 1)]
    assert 0.93 <= float(np.dot(probabilities, hits)) <= 0.97


def ratio_sample(rng, n, mean=1.5):
    """Losses of answers of 5 to 60 tokens: summed, and their token counts."""
    weights = rng.integers(5, 60, n).astype(float)
    return rng.normal(mean, 0.4, n) * weights, weights


@pytest.mark.parametrize("n", [15, 80])
def test_loss_intervals_cover_95_percent(n):
    rng = np.random.default_rng(n)
    hits = sum(covered(score(items(*ratio_sample(rng, n))).ci, 1.5) for _ in range(SIMULATIONS))
    assert 0.93 <= hits / SIMULATIONS <= 0.97


@pytest.mark.parametrize("shift", [0.0, 0.15])
def test_paired_loss_intervals_cover_95_percent(shift):
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(SIMULATIONS):
        before, weights = ratio_sample(rng, 30)
        after = before + weights * rng.normal(shift, 0.2, 30)
        result = compare(items(before, weights), items(after, weights), higher_is_better=False)
        hits += covered(result.ci, shift)
    assert 0.93 <= hits / SIMULATIONS <= 0.97


@pytest.mark.parametrize(
    "cells", [(0.5, 0.15, 0.15, 0.2), (0.45, 0.3, 0.1, 0.15), (0.3, 0.1, 0.4, 0.2)]
)
def test_paired_accuracy_intervals_cover_95_percent(cells):
    rng = np.random.default_rng(3)
    tables = rng.multinomial(100, cells, size=4000)
    hits = sum(covered(newcombe(*map(int, row)), cells[2] - cells[1]) for row in tables)
    assert 0.93 <= hits / len(tables) <= 0.97


def test_loss_p_values_are_uniform_when_nothing_changed():
    rng = np.random.default_rng(11)
    p_values = []
    for _ in range(SIMULATIONS):
        before, weights = ratio_sample(rng, 40)
        after = before + weights * rng.normal(0, 0.2, 40)
        both = items(before, weights), items(after, weights)
        p_values.append(compare(*both, higher_is_better=False).p_worse)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


@pytest.mark.parametrize("changed", [3, 10, 41])
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_exact_p_values_never_reject_more_often_than_they_say(changed, alpha):
    lost = np.arange(changed + 1)
    probabilities = stats.binom.pmf(lost, changed, 0.5)
    rejected = [mcnemar(changed, int(k)) <= alpha for k in lost]
    assert float(np.dot(probabilities, rejected)) <= alpha + 1e-12


def test_a_real_loss_of_accuracy_is_found():
    result = compare(*table(60, 20, 5, 15), higher_is_better=True)
    assert result.p_worse < 0.005
    assert result.ci[1] < 0 < result.p_better


# -- laws ------------------------------------------------------------------------------------------

binary = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)
losses = st.lists(
    st.tuples(st.floats(0, 50), st.floats(0, 50), st.integers(1, 30), st.integers(1, 30)),
    min_size=1,
    max_size=30,
)


@given(binary)
def test_swapping_two_accuracies_mirrors_the_comparison(pairs):
    before, after = items([a for a, _ in pairs]), items([b for _, b in pairs])
    there, back = (compare(*p, higher_is_better=True) for p in ((before, after), (after, before)))
    assert there.delta == -back.delta
    assert there.ci == pytest.approx((-back.ci[1], -back.ci[0]))
    assert (there.p_worse, there.p_better) == (back.p_better, back.p_worse)
    assert there.ci[0] <= there.delta <= there.ci[1]


@given(losses)
@settings(max_examples=60)
def test_swapping_two_losses_mirrors_the_comparison(rows):
    before = items([r[0] for r in rows], [r[2] for r in rows])
    after = items([r[1] for r in rows], [r[3] for r in rows])
    there, back = (compare(*p, higher_is_better=False) for p in ((before, after), (after, before)))
    assert there.delta == -back.delta
    assert there.ci == pytest.approx((-back.ci[1], -back.ci[0]))
    assert there.p_worse == pytest.approx(back.p_better)
    assert there.ci[0] <= there.delta <= there.ci[1]


@given(losses)
@settings(max_examples=60)
def test_better_and_worse_change_places_with_the_direction(rows):
    before = items([r[0] for r in rows], [r[2] for r in rows])
    after = items([r[1] for r in rows], [r[3] for r in rows])
    up = compare(before, after, higher_is_better=True)
    down = compare(before, after, higher_is_better=False)
    assert (up.p_worse, up.p_better) == (down.p_better, down.p_worse)


@given(st.integers(1, 300), st.data())
def test_wilson_stays_inside_and_holds_the_value(n, data):
    k = data.draw(st.integers(0, n))
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1


# -- edges -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[1, 0, 1], [0.3, 2.5, 7.0], [4.2]])
def test_equal_results_differ_by_nothing(values):
    result = compare(items(values), items(values), higher_is_better=True)
    assert result[2:] == (0.0, (0.0, 0.0), 1.0, 1.0, len(values))
    assert result.before == result.after == pytest.approx(np.mean(values))


def test_one_loss_proves_nothing():
    result = compare(items([2.0]), items([9.0]), higher_is_better=False)
    assert (result.delta, result.p_worse, result.p_better) == (7.0, 1.0, 1.0)
    assert score(items([2.0])) == (2.0, (2.0, 2.0), 1)


def test_one_common_shift_is_judged_by_signs():
    before, after = items([0.1, 0.2, 0.7]), items([0.6, 0.7, 1.2])
    result = compare(before, after, higher_is_better=False)
    assert (result.p_worse, result.p_better) == (0.125, 1.0)
    assert result.ci == pytest.approx((0.5, 0.5))


def test_unequal_numbers_of_questions_are_refused():
    with pytest.raises(UsageError, match="3 results cannot be paired with 2"):
        compare(items([1, 1, 0]), items([1, 1]), higher_is_better=True)


def test_questions_of_weight_zero_do_not_count_on_either_side():
    before = items([3.0, 0.0, 4.0, 5.0], [2, 0, 2, 2])
    after = items([2.0, 9.0, 0.0, 4.5], [2, 2, 0, 2])
    assert score(before) == score([before[0], before[2], before[3]])
    result = compare(before, after, higher_is_better=False)
    pairs = ([before[0], before[3]], [after[0], after[3]])
    assert result == compare(*pairs, higher_is_better=False)
    assert (result.n, result.before, result.after) == (2, 2.0, 1.625)


@pytest.mark.parametrize("nothing", [[], items([0.0, 0.0], [0, 0])])
def test_no_question_that_counts_is_refused(nothing):
    with pytest.raises(DataError, match="without a question that counts"):
        score(nothing)
    with pytest.raises(DataError, match="without a question that counts"):
        compare(nothing, nothing, higher_is_better=True)


def test_values_that_are_not_finite_are_refused_and_named():
    with pytest.raises(DataError, match="question 2: nan") as caught:
        compare(items([1.0, 2.0]), items([1.0, float("nan")]), higher_is_better=False)
    assert len(caught.value.faults) == 1
