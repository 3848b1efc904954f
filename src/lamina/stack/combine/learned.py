"""learned: the sum with the weights that answer some examples best; one weight a layer.

Nothing is trained but these few numbers, so a few examples of each layer's kind are enough.

References: Prabhakar et al., "LoRA Soups", arXiv:2410.13025 (there one weight a linear);
Kingma and Ba, "Adam", arXiv:1412.6980.
"""

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

STEPS = 40
RATE = 0.2
"""Learning rate of Adam at the first step, hence about how far a weight moves then; falls to 0."""
_BETAS = (0.7, 0.9)
"""Adam's decay rates: short memories for few steps of an exact gradient. On quadratics 8 times as
steep in one direction as in the other, 40 steps end within 0.002 of the minimum (0.06 with Adam's
own 0.9 and 0.999)."""


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
    steps: int = STEPS,
    rate: float = RATE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[float, ...]:
    """The best weights seen while Adam descends from `start`, its rate falling linearly to 0.

    Deterministic where the loss is. Float64. Raises TrainError when a loss or gradient is not
    finite.
    """
    point = torch.tensor(list(start), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([point], lr=rate, betas=_BETAS)
    best, least = tuple(start), math.inf
    for step in range(steps + 1):
        now = tuple(point.tolist())
        loss, gradients = loss_and_gradients(now)
        if not all(map(math.isfinite, (loss, *gradients))):
            raise TrainError(
                f"the loss at weights {', '.join(f'{w:.3g}' for w in now)} is not finite",
                hint="start nearer to where the layers are good: --weight 0.5 for each",
            )
        if loss < least:
            best, least = now, loss
        progress(step, steps)
        point.grad = torch.tensor(list(gradients), dtype=torch.float64)
        optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimiser.step()
    return best


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
