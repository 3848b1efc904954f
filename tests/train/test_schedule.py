"""The schedule as pure functions, edges included."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.core.errors import UsageError
from lamina.core.recipe import Recipe
from lamina.train.schedule import (
    LIMITED_WARMUP,
    decay_start,
    eval_interval,
    learning_rate,
    planned_steps,
    steps_for_time,
    warmup_steps,
)


def test_steps_come_from_epochs_unless_they_are_given():
    assert planned_steps(Recipe(epochs=2.5), 10) == 25
    assert planned_steps(Recipe(epochs=0.001), 10) == 1
    assert planned_steps(Recipe(epochs=3, steps=7), 10) == 7


@pytest.mark.parametrize(
    ("recipe", "steps", "expected"),
    [
        (Recipe(warmup=0.05), 1, 0),
        (Recipe(warmup=0.05), 4, 1),
        (Recipe(warmup=0.05), 20, 3),  # at least three where there is room
        (Recipe(warmup=0.1), 100, 10),
        (Recipe(warmup=1.0), 8, 8),
        (Recipe(warmup_steps=0), 100, 0),
        (Recipe(warmup_steps=50), 10, 50),
        (Recipe(max_minutes=1), 100, LIMITED_WARMUP),
        (Recipe(max_minutes=1), 2, 2),
    ],
)
def test_warmup(recipe, steps, expected):
    assert warmup_steps(recipe, steps) == expected


def test_rises_to_the_peak_and_falls_to_the_end():
    recipe = Recipe(lr=0.4, final_lr=0.25)
    rates = [learning_rate(recipe, step, 12, 4) for step in range(13)]
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rates[4] == pytest.approx(0.4)
    assert rates[8] == pytest.approx(0.4 * (0.25 + 0.75 * 0.5))
    assert rates[12] == pytest.approx(0.1)
    assert rates[4:] == sorted(rates[4:], reverse=True)


@given(st.integers(1, 200), st.floats(0, 1), st.floats(0, 1), st.data())
def test_every_rate_is_positive_and_at_most_the_peak(steps, warmup, final, data):
    recipe = Recipe(lr=0.01, warmup=warmup, final_lr=final)
    warm = warmup_steps(recipe, steps)
    assert 0 <= warm <= steps
    rate = learning_rate(recipe, data.draw(st.integers(0, steps - 1)), steps, warm)
    assert math.isfinite(rate)
    assert 0 <= rate <= 0.01 * (1 + 1e-12)


def test_one_step_learns_at_the_peak():
    assert learning_rate(Recipe(lr=0.5), 0, 1, warmup_steps(Recipe(), 1)) == 0.5


def test_held_out_losses_stay_affordable():
    recipe = Recipe(batch_tokens=1000)
    assert eval_interval(recipe, 100, 0) == 10  # ten a run
    assert eval_interval(recipe, 5, 0) == 1
    # a forward over 3,000 tokens costs one and a half steps of 1000, so at most every 30th step
    assert eval_interval(recipe, 120, 3_000) == 30
    assert eval_interval(recipe, 100, 3_000) == 34  # 34, 68, 100: none just before the last
    assert eval_interval(recipe, 20, 3_000) == 20
    assert eval_interval(Recipe(eval_every=3), 100, 30_000) == 3


@given(st.integers(1, 3000), st.integers(0, 50_000))
def test_held_out_losses_end_with_the_run(steps, tokens):
    """All but the last are an even interval apart, and they stay affordable."""
    every = eval_interval(Recipe(batch_tokens=1000), steps, tokens)
    assert 1 <= every <= steps
    taken = math.ceil(steps / every)
    assert taken <= 10 or every == 1
    left = steps - (taken - 1) * every
    assert left > every - taken  # the last is not crowded: rounding alone shortens it
    if taken > 1:
        assert every * 1000 * 0.05 >= tokens / 2


def test_a_trapezoid():
    recipe = Recipe(lr=0.4, schedule="trapezoid", decay=0.5, final_lr=0.0)
    rates = [learning_rate(recipe, step, 8, 2) for step in range(8)]
    assert rates == pytest.approx([0.2, 0.4, 0.4, 0.4, 0.4, 0.3, 0.2, 0.1])
    assert learning_rate(recipe, 1000, None, 2) == 0.4  # at its peak while the end is unknown


def test_the_length_is_fixed_when_the_time_before_the_decay_is_spent():
    recipe = Recipe(max_minutes=1.0, decay=0.25)
    assert steps_for_time(recipe, 30, 0.74, 1000) is None
    assert steps_for_time(recipe, 30, 0.76, 1000) == 40
    assert steps_for_time(recipe, 750, 0.1, 1000) == 1000  # the rows end before the time does
    assert steps_for_time(recipe, 1, 5.0, 1000) == 2  # one more step, always
    assert steps_for_time(recipe, 1, 5.0, 1) == 1  # but never more than there are


@given(st.floats(0.01, 0.99), st.integers(1, 400), st.integers(1, 500))
def test_steps_taken_before_the_length_was_known_were_at_the_right_rate(decay, last, at_most):
    """What makes a time-limited run reproducible: fixing the length changes no past rate."""
    limited = Recipe(max_minutes=1.0, decay=decay)
    warm = warmup_steps(limited, at_most)
    taken, steps = 0, None
    while steps is None:
        taken += 1
        steps = steps_for_time(limited, taken, 1.0 if taken == last else 0.0, at_most)
    assert taken <= steps <= at_most
    fields = limited.model_dump() | {"max_minutes": None, "schedule": "trapezoid"}
    resolved = Recipe(**fields | {"steps": steps, "warmup_steps": warm})
    assert warmup_steps(resolved, steps) == warm
    for step in range(taken):
        then = learning_rate(limited, step, None, warm)
        assert learning_rate(resolved, step, steps, warm) == then


def test_a_cosine_cannot_leave_its_length_open():
    for fields in ({"schedule": "cosine"}, {"decay": 1.0}):
        with pytest.raises(UsageError, match="max_minutes needs a trapezoid"):
            Recipe.parse({"max_minutes": 1.0} | fields, "the recipe")


def test_held_out_losses_of_a_trapezoid_do_not_depend_on_its_length():
    recipe = Recipe(schedule="trapezoid", batch_tokens=1000)
    intervals = {eval_interval(recipe, steps, 3_000) for steps in (0, 7, 10_000)}
    assert intervals == {30}
    assert eval_interval(recipe, 0, 0) == 5
    assert decay_start(Recipe(decay=0.3), 10) == 7
