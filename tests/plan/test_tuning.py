"""The fine-tuning law, fitted to points whose law is known."""

import numpy as np
import pytest

from lamina.core.errors import UsageError
from lamina.plan.tuning import FAR, Point, fit

NOISE = 0.005
TRUE = ((3.0, 0.35, 0.6), (1.2, 0.15, 0.2), (12.0, 0.8, 1.1), (2.0, 0.1, 0.0), (1.0, 0.5, 0.9))
"""(K, beta, E)."""
SHARES = (50, 100, 200, 400)


def law(k, beta, e):
    return lambda rows: e + k * rows**-beta


def points(true, rows, noise=0.0, seed=0):
    random = np.random.default_rng(seed)
    return [Point(n, law(*true)(n) + noise * random.normal()) for n in rows]


@pytest.mark.parametrize("true", TRUE, ids=str)
def test_many_exact_points_give_the_law_back(true):
    found = fit(points(true, [2**n for n in range(3, 18)]), 1e-4)
    low, middle, high = found.exponent()
    assert low <= true[1] <= high
    assert middle == pytest.approx(true[1], rel=0.05)
    for rows in (100, 1000, 100_000):
        assert np.median(found.losses(rows)) == pytest.approx(law(*true)(rows), abs=2e-3)


@pytest.mark.parametrize("true", TRUE, ids=str)
@pytest.mark.parametrize("count", [3, 4])
def test_intervals_from_few_points_hold_what_they_promise(true, count):
    """Of 100 lineages at least 90 have the true gain, and the next measurement, inside 95%."""
    gains, nexts = 0, 0
    more, after = 400, 800
    for seed in range(100):
        made = points(true, SHARES[-count:], NOISE, seed)
        found = fit(made, NOISE, seed)
        gain = found.gain(more)
        wanted = law(*true)(400) - law(*true)(800)
        gains += gain.low <= wanted <= gain.high
        low, _, high = found.measured(after)
        measured = law(*true)(after) + NOISE * np.random.default_rng(1000 + seed).normal()
        nexts += low <= measured <= high
    assert gains >= 90
    assert nexts >= 90


def test_intervals_are_not_empty_talk():
    """With four points and noise of 0.005 a fall of 0.042 to come is known to 0.02."""
    true = TRUE[2]
    found = fit(points(true, SHARES, NOISE), NOISE).gain(400)
    wanted = law(*true)(400) - law(*true)(800)
    assert found.value == pytest.approx(wanted, abs=0.02)
    assert found.half < 0.02


def test_more_points_and_less_noise_narrow_it():
    few = fit(points(TRUE[0], SHARES[:3], NOISE), NOISE).gain(200)
    rows = (25, 50, 75, 100, 125, 150, 175, 200)
    many = fit(points(TRUE[0], rows, NOISE), NOISE).gain(200)
    exact = fit(points(TRUE[0], rows, NOISE / 20), NOISE / 20).gain(200)
    assert exact.half < many.half < few.half


def test_the_same_points_in_any_order_give_the_same_answer():
    made = points(TRUE[0], SHARES, NOISE)
    one, other = fit(made, NOISE).gain(100), fit(made[::-1], NOISE).gain(100)
    assert one == other


def test_a_gain_is_never_negative_and_grows_with_rows():
    found = fit(points(TRUE[0], SHARES, NOISE), NOISE)
    gains = [found.gain(more) for more in (10, 100, 1000)]
    assert all(0 <= gain.low <= gain.value <= gain.high for gain in gains)
    assert gains[0].value < gains[1].value < gains[2].value
    assert [gain.far for gain in gains] == [False, False, True]
    assert not found.gain(FAR * 400 - 400).far
    assert found.gain(100, since=50).value > found.gain(100).value


def test_several_trainings_on_the_same_rows_tell_the_scatter():
    quiet = [Point(n, law(*TRUE[0])(n)) for n in SHARES for _ in range(4)]
    loud = [Point(p.rows, p.loss + (-1) ** i * 0.05) for i, p in enumerate(quiet)]
    assert np.median(fit(loud, NOISE).sigma) > 5 * np.median(fit(quiet, NOISE).sigma)


def test_too_few_points_are_refused_with_what_would_help():
    for made in ([], points(TRUE[0], [50, 100]), points(TRUE[0], [50, 100, 100, 100])):
        with pytest.raises(UsageError, match="3 different") as refused:
            fit(made, NOISE)
        assert "quarter" in refused.value.hint


def test_a_loss_that_rises_has_no_law():
    with pytest.raises(UsageError, match="does not fall"):
        fit([Point(50, 1.0), Point(100, 1.5), Point(200, 2.0)], NOISE)


def test_what_is_no_number_is_refused():
    good = points(TRUE[0], SHARES)
    for bad in (Point(0, 1.0), Point(100, float("nan")), Point(float("inf"), 1.0), Point(9, -1.0)):
        with pytest.raises(UsageError):
            fit([*good, bad], NOISE)
    for noise in (0.0, float("inf"), -1.0):
        with pytest.raises(UsageError):
            fit(good, noise)
    for more in (0, -1, float("inf")):
        with pytest.raises(UsageError):
            fit(good, NOISE).gain(more)
