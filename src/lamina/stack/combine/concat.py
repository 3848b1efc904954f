"""concat: the sum of the updates, exactly; their ranks add up.

    dW = sum_i w_i dW_i,  as factors [w_1 s_1 B_1 ... w_n s_n B_n] [A_1; ...; A_n].

Reference: Ilharco et al., "Editing models with task arithmetic", arXiv:2212.04089, section 2, here
through factors, where averaging A and B apart would leave products A_1 B_2 of two layers.
"""

from collections.abc import Sequence

from lamina.lowrank.maths import LayerFactors, compose
from lamina.stack.combine.method import PLAIN, Merged, MergedModule, Method, Options, by_module


def concat(
    layers: Sequence[LayerFactors], weights: Sequence[float], options: Options = PLAIN
) -> Merged:
    """sum_i w_i s_i B_i A_i of every module, rank sum(R_i), scale 1. Exact.

    Shapes: layers of any ranks. Float32, rounded once (a scale times B). Mutates nothing.
    Raises LayerError (see `by_module`).
    """
    by_module(layers, weights)
    weighted = [
        {name: part.weighted(weight) for name, part in layer.items()}
        for layer, weight in zip(layers, weights, strict=True)
    ]
    modules = {name: MergedModule(part, part.rank) for name, part in compose(weighted).items()}
    return Merged(modules, tuple(weights))


CONCAT = Method("concat", concat, "arXiv:2212.04089", result="sum")
