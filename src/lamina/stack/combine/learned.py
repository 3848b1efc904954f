"""learned: the sum with the weights that answer some examples best; one weight a layer.

Nothing is trained but these few numbers, so a few examples of each layer's kind are enough.

References: Prabhakar et al., "LoRA Soups", arXiv:2410.13025 (there one weight a linear);
Liu and Nocedal, "On the limited memory BFGS method", Mathematical Programming 45 (1989) 503.
"""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lamina.core.errors import TrainError, UsageError
from lamina.lowrank.maths import LayerFactors
from lamina.stack.combine.concat import concat
from lamina.stack.combine.method import (
    PLAIN,
    LossAndGradients,
    Merged,
    Method,
    Options,
    by_module,
)

MOST_TRIES = 12
"""Weights that are tried: each is a pass over the examples, forward and backward."""
_FLAT = 1e-3
"""Nats a token for each unit of weight: no slope worth descending."""


def learned(
    layers: Sequence[LayerFactors], weights: Sequence[float], options: Options = PLAIN
) -> Merged:
    """`concat` with weights learned from `weights` on, by `options.loss_and_gradients`. Exact.

    Raises LayerError (see `by_module`), UsageError without a loss, TrainError when the loss is not
    finite.
    """
    by_module(layers, weights)
    if options.loss_and_gradients is None:
        raise UsageError("learned weights need examples", hint="give --examples FILE")
    found = descend(weights, options.loss_and_gradients, progress=options.progress)
    return concat(layers, found, options)


def descend(
    start: Sequence[float],
    loss_and_gradients: LossAndGradients,
    *,
    tries: int = MOST_TRIES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[float, ...]:
    """The best weights seen while L-BFGS descends from `start`, with at most `tries` of them.

    The gradient is exact and the weights are few, so that a method that learns the curvature needs
    a quarter of the tries that Adam does. Deterministic where the loss is. Float64. Raises
    TrainError when a loss or gradient is not finite.
    """
    point = torch.tensor(list(start), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [point],
        max_iter=tries,
        max_eval=tries,
        tolerance_grad=_FLAT,
        tolerance_change=_FLAT,
        line_search_fn="strong_wolfe",
    )
    best, least, done = tuple(start), math.inf, 0

    def closure() -> float:
        nonlocal best, least, done
        if done == tries:  # a line search ends where it likes
            raise _Enough
        now = tuple(point.tolist())
        loss, gradients = loss_and_gradients(now)
        if not all(map(math.isfinite, (loss, *gradients))):
            raise TrainError(
                f"the loss at weights {', '.join(f'{w:.3g}' for w in now)} is not finite",
                hint="start nearer to where the layers are good: --weight 0.5 for each",
            )
        if loss < least:
            best, least = now, loss
        done += 1
        progress(done, tries)
        point.grad = torch.tensor(list(gradients), dtype=torch.float64)
        return loss

    with contextlib.suppress(_Enough):
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    progress(tries, tries)
    return best


class _Enough(Exception):
    """As many weights as may be have been tried."""


def weight_gradients(
    layers: Sequence[LayerFactors], gradients_OR: Mapping[str, Tensor]
) -> tuple[float, ...]:
    """dL/dw_i from the gradients of the concatenated B, by the chain rule.

    B = [w_1 s_1 B_1 ... w_n s_n B_n], so dL/dw_i = sum over modules <dL/dB[:, slice i], s_i B_i>.
    Shapes: module -> dL/dB (O, sum(R_i)), the columns in the order of `layers`. Summed in float64.
    Mutates nothing.
    """
    found = [0.0] * len(layers)
    for module, gradient_OR in gradients_OR.items():
        begin = 0
        for index, layer in enumerate(layers):
            if module not in layer:
                continue
            part = layer[module]
            own_OR = gradient_OR[:, begin : begin + part.rank]
            found[index] += part.scale * float((own_OR.double() * part.b_OR.double()).sum())
            begin += part.rank
    return tuple(found)


LEARNED = Method("learned", learned, "arXiv:2410.13025", result="sum", needs_examples=True)
