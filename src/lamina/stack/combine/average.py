"""average: the mean of the updates, exactly; their ranks add up.

    dW = sum_i w_i dW_i / sum_i w_i.

The mean is of the products B_i A_i. The product of the means of B and of A, which is often taken
for it, has terms B_1 A_2 of no layer at all.

Reference: Singhal et al., "FedEx-LoRA", arXiv:2410.09432.
"""

from collections.abc import Sequence

from lamina.core.errors import UsageError
from lamina.lowrank.maths import LayerFactors
from lamina.stack.combine.concat import concat
from lamina.stack.combine.method import PLAIN, Merged, Method, Options, by_module


def average(
    layers: Sequence[LayerFactors], weights: Sequence[float], options: Options = PLAIN
) -> Merged:
    """The weighted mean of the layers' updates. A module that a layer leaves alone counts as 0.

    Shapes, dtype: as `concat`. Exact. Mutates nothing.
    Raises LayerError (see `by_module`), UsageError for weights whose sum is 0.
    """
    by_module(layers, weights)
    total = sum(weights)
    if total == 0:
        raise UsageError("the weights of an average sum to 0", hint="give weights above 0")
    return concat(layers, [weight / total for weight in weights], options)


AVERAGE = Method("average", average, "arXiv:2410.09432", result="sum")
