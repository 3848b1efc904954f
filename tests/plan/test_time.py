"""What a run is made of, and the fit of what its parts take."""

from dataclasses import replace

import pytest

from lamina.plan.time import (
    CHECKPOINT_SECONDS,
    SETTLING,
    Calibration,
    Interval,
    Run,
    Tokens,
    amounts,
    estimate,
    fit,
    from_peak,
    from_rates,
    of_passes,
    pass_amounts,
)
from lamina.train import loop

RUN = Run(
    layers=6,
    trained_layers=6,
    factors=1000,
    weights=5000,
    steps=10,
    learned=Tokens(10, 4000, 900_000, 1500),
    looked=Tokens(2, 300, 40_000, 90),
    encoded=700,
    exam=Tokens(1, 200, 30_000, 60),
    exam_loads=2,
    exam_folds=1,
)


def calibration(**rates: float) -> Calibration:
    return Calibration(key="k", created="2026-01-01T00:00:00+00:00", seconds=20.0, rates=rates)


def test_constants_are_those_of_the_code() -> None:
    assert CHECKPOINT_SECONDS == loop.CHECKPOINT_SECONDS


def test_passes_are_added_up() -> None:
    found = of_passes([[(3, 1), (5, 2)], [(4, 4)]])
    assert found == Tokens(passes=2, tokens=12, squares=9 + 25 + 16, supervised=7)
    assert found.times(3) == Tokens(6, 36, 150, 21)


def test_the_fit_finds_the_rates_that_made_the_times() -> None:
    true = {"layer pass": 2e-3, "layer token": 4e-5, "attention": 1e-8, "factors": 2e-11,
            "head": 3e-4}  # fmt: skip
    points, seconds = [], []
    for rows, length, supervised, factors in [
        (4, 16, 30, 10**6), (4, 128, 250, 10**6), (1, 512, 250, 10**6), (8, 128, 100, 10**6),
        (8, 128, 900, 10**6), (1, 1024, 500, 10**6), (4, 128, 250, 4 * 10**6),
    ]:  # fmt: skip
        at = Tokens(1, rows * length, rows * length**2, supervised)
        points.append(pass_amounts(at, 4, factors))
        seconds.append(sum(true[name] * amount for name, amount in points[-1].items()))
    rates, misfit = fit(points, seconds)
    assert rates == pytest.approx(true, rel=1e-6)
    assert misfit < 1e-9


def test_no_rate_is_negative_however_noisy_the_times() -> None:
    points = [{"a": 1.0, "b": n} for n in (1.0, 2.0, 3.0)]
    rates, misfit = fit(points, [3.0, 2.0, 1.0])
    assert min(rates.values()) >= 0
    assert misfit > 0.1


def test_each_part_costs_its_amount() -> None:
    found = estimate(RUN, calibration(start=3.0, load=2.0, head=7.0))
    assert found.phases["start"] == 3.0
    assert found.phases["load"] == 2.0  # once before training
    assert found.phases["exam"] == 4.0  # and for both stacks that sit the exam
    assert found.phases["steps"] == 0.0  # no rate is called so: a pass's parts say whose they are
    assert found.phases["landing"] == pytest.approx(3.0 * SETTLING)
    assert found.seconds == pytest.approx(9.0 + 3.0 * SETTLING)
    steps = estimate(RUN, calibration(**{"train: head": 0.01, "train: layer token": 1e-3}))
    assert steps.phases["steps"] == pytest.approx(1500 * 0.01 + 6 * 4000 * 1e-3)
    exam = estimate(RUN, calibration(**{"exam: head": 0.5}))
    assert exam.seconds == exam.phases["exam"] == 30.0


def test_layers_computed_twice_cost_a_forward_more() -> None:
    rates = calibration(**{"train: layer token": 3e-3, "look: layer token": 1e-3})
    once, twice = estimate(RUN, rates), estimate(replace(RUN, checkpointing=True), rates)
    assert twice.seconds - once.seconds == pytest.approx(6 * 4000 * 1e-3)


def test_what_lies_below_the_first_trained_layer_is_computed_once() -> None:
    rates = calibration(**{"train: layer token": 3e-3, "look: layer token": 1e-3})
    half = replace(RUN, trained_layers=3, below=Tokens(20, 500, 0, 0), looked=Tokens())
    assert estimate(half, rates).seconds == pytest.approx(3 * 4000 * 3e-3 + 3 * 500 * 1e-3)


def test_long_runs_write_more_checkpoints() -> None:
    rates = calibration(save=1e-3, **{"train: head": 0.1})  # 150 s of steps
    assert estimate(RUN, rates).phases["checkpoints"] == pytest.approx((2 + 5) * 1000 * 1e-3)


def test_old_rows_cost_only_where_there_are_some() -> None:
    assert not any(amounts(RUN)["old rows"].values())
    asked = amounts(replace(RUN, protect=True, guarded=Tokens(1, 100, 10_000, 0)))
    assert asked["old rows"]["directions"] == 6
    assert asked["steps"]["guard"] == 10 * 1000


def test_a_busier_machine_takes_longer() -> None:
    rates = calibration(start=3.0).model_copy(update={"pulse": 0.01})
    assert estimate(RUN, rates, 0.02).seconds == pytest.approx(2 * 3.0 * (1 + SETTLING))
    assert estimate(RUN, rates).seconds == pytest.approx(3.0 * (1 + SETTLING))


def test_a_spec_sheet_gives_an_interval() -> None:
    found = from_peak(6e12, 1e12, (0.2, 0.5))
    assert found == Interval(12.0, 30.0)
    assert found.low < found.middle < found.high
    assert found.times(2) == Interval(24.0, 60.0)
    assert from_rates(6e12, [1e12, 3e12, 2e12]) == Interval(2.0, 6.0)
