"""Learning-rate schedule and the step plan of a run: pure functions of recipe and data size."""

import math

from lamina.core.recipe import Recipe

EVALS_A_RUN = 10
EVAL_SHARE = 0.05
"""Held-out losses may take about this share of a run's arithmetic."""
FORWARD_SHARE = 1 / 2
"""A forward pass costs about half of a training step on the same tokens: there are no gradients of
the base's weights."""
LEAST_WARMUP = 3
LIMITED_WARMUP = 6
"""Steps of warm-up of a run whose length is decided while it runs, unless the recipe says."""
LEAST_EVAL_STEPS = 5
"""Steps between two held-out losses of such a run, at least."""


def planned_steps(recipe: Recipe, batches_per_epoch: int) -> int:
    """Optimiser steps of the schedule; with a time limit, the most there can be."""
    if recipe.steps is not None:
        return recipe.steps
    return max(1, round(recipe.epochs * batches_per_epoch))


def warmup_steps(recipe: Recipe, steps: int) -> int:
    """Steps of linear warm-up; at least three where the run is long enough.

    `recipe.warmup_steps` stands even where the run is shorter: it then ends on the way up.
    """
    if recipe.warmup_steps is not None:
        return recipe.warmup_steps
    if recipe.max_minutes is not None:
        return min(LIMITED_WARMUP, steps)
    return min(steps, max(round(recipe.warmup * steps), min(LEAST_WARMUP, steps // 4)))


def learning_rate(recipe: Recipe, step: float, steps: int | None, warmup: int) -> float:
    """Linear warm-up, then the recipe's shape from the peak to `final_lr` x the peak.

    `step` counts from 0; step < warmup gives lr * (step + 1) / warmup, at most lr. It need not be
    whole: where a pass leaves rows out, each of its steps is a larger part of the pass. `steps`
    is None while a time limit has not fixed it yet: a trapezoid is then still at its peak.
    """
    if step < warmup:
        return recipe.lr * min(1.0, (step + 1) / warmup)
    if recipe.shape == "cosine":
        progress = (step - warmup) / max(1, (steps or math.inf) - warmup)
        share = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    elif steps is None:
        share = 1.0
    else:
        share = min(1.0, (steps - step) / max(1, steps - decay_start(recipe, steps)))
    return recipe.lr * (recipe.final_lr + (1 - recipe.final_lr) * share)


def decay_start(recipe: Recipe, steps: int) -> int:
    """First step at which a trapezoid comes down."""
    return round((1 - recipe.decay) * steps)


def steps_for_time(recipe: Recipe, done: int, share_of_time: float, at_most: int) -> int | None:
    """The number of steps of a time-limited run, once it can be told; None before.

    It is fixed when the time before the decay is spent (or the rows before it are): the steps
    done by then are the constant part, and the decay gets its share on top.
    """
    if share_of_time < 1 - recipe.decay and done < decay_start(recipe, at_most):
        return None
    return min(at_most, max(done + 1, round(done / (1 - recipe.decay))))


def eval_interval(recipe: Recipe, steps: int, eval_tokens: int) -> int:
    """Steps between two held-out losses.

    A trapezoid's length may be unknown, so there it follows from the data alone. Elsewhere the
    steps are divided evenly: none is taken just before the last.
    """
    if recipe.eval_every is not None:
        return recipe.eval_every
    affordable = math.ceil(eval_tokens * FORWARD_SHARE / (EVAL_SHARE * recipe.batch_tokens))
    if recipe.shape == "trapezoid":
        return max(LEAST_EVAL_STEPS, affordable)
    every = max(1, math.ceil(steps / EVALS_A_RUN), affordable)
    return max(1, math.ceil(steps / max(1, steps // every)))
