"""Learning-rate schedule and the step plan of a run: pure functions of recipe and data size."""

import math

from lamina.core.recipe import Recipe

EVALS_A_RUN = 10
EVAL_SHARE = 0.1
"""Held-out losses may take about this share of a run's arithmetic."""
FORWARD_SHARE = 1 / 3
"""A forward pass costs about a third of a training step on the same tokens."""
LEAST_WARMUP = 3


def planned_steps(recipe: Recipe, batches_per_epoch: int) -> int:
    """Optimiser steps of the schedule."""
    if recipe.steps is not None:
        return recipe.steps
    return max(1, round(recipe.epochs * batches_per_epoch))


def warmup_steps(recipe: Recipe, steps: int) -> int:
    """Steps of linear warm-up; at least three where the run is long enough."""
    if recipe.warmup_steps is not None:
        return min(recipe.warmup_steps, steps)
    return min(steps, max(round(recipe.warmup * steps), min(LEAST_WARMUP, steps // 4)))


def learning_rate(recipe: Recipe, step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then cosine from the peak to `final_lr` x the peak.

    `step` counts from 0; step < warmup gives lr * (step + 1) / warmup.
    """
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return recipe.lr * (recipe.final_lr + (1 - recipe.final_lr) * cosine)


def eval_interval(recipe: Recipe, steps: int, eval_tokens: int) -> int:
    """Steps between two held-out losses."""
    if recipe.eval_every is not None:
        return recipe.eval_every
    affordable = eval_tokens * FORWARD_SHARE / (EVAL_SHARE * recipe.batch_tokens)
    return max(1, math.ceil(steps / EVALS_A_RUN), math.ceil(affordable))


def steps_in_time(seconds_left: float, seconds_per_step: float, done: int, at_most: int) -> int:
    """Steps that fit, counting those done; at least one more."""
    return max(done + 1, min(at_most, done + int(seconds_left / max(seconds_per_step, 1e-9))))
