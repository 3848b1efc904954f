"""What a merge method is, and what all of them share."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from lamina.core.errors import LayerError
from lamina.lowrank.maths import Factors, LayerFactors

LossAndGradients = Callable[[Sequence[float]], tuple[float, Sequence[float]]]
"""weights -> (loss, dL/dw of each weight)."""
Result = Literal["sum", "low-rank", "dense"]
"""'sum': sum_i w_i dW_i, to the bit. 'low-rank': something else, which has no higher rank.
'dense': something of any rank, of which the nearest update of low rank is kept."""


@dataclass(frozen=True)
class Options:
    """What a method may need besides layers and weights."""

    density: float | None = None
    """Share of entries kept, above 0, at most 1; None: the method's own default."""
    seed: int = 0
    loss_and_gradients: LossAndGradients | None = None
    """For methods that learn."""
    exact: Callable[[str, Tensor], None] = lambda module, delta_OI: None
    """Gets every (module, dW) of a method whose result is dense, before its rank is cut."""
    progress: Callable[[int, int], None] = lambda done, total: None
    """Called with (modules or steps done, in all)."""


PLAIN = Options()


@dataclass(frozen=True, eq=False)
class MergedModule:
    """One linear's merged update."""

    factors: Factors
    """Scale 1, float32."""
    rank_before: int
    """Sum of the ranks that went in."""
    lost: float = 0.0
    """Frobenius norm of what the method's exact result has and the factors have not."""
    norm: float = 0.0
    """Frobenius norm of the method's exact result; not taken where nothing is lost."""

    @property
    def share(self) -> float:
        """`lost` / `norm`; 0 where nothing is lost."""
        return self.lost / self.norm if self.lost else 0.0


@dataclass(frozen=True, eq=False)
class Merged:
    """Several layers as one."""

    modules: Mapping[str, MergedModule]
    """Sorted by name."""
    weights: tuple[float, ...]
    """What each layer went in with, in the end."""

    @property
    def factors(self) -> dict[str, Factors]:
        """The merged layer."""
        return {name: module.factors for name, module in self.modules.items()}

    @property
    def lost(self) -> float:
        """sqrt(sum |dW - dW'|^2 / sum |dW|^2) over all modules; 0 for an exact result."""
        lost = math.hypot(*(module.lost for module in self.modules.values()))
        return lost / math.hypot(*(m.norm for m in self.modules.values())) if lost else 0.0


class MergeFunction(Protocol):
    """Makes one layer of several over the same parents."""

    def __call__(
        self, layers: Sequence[LayerFactors], weights: Sequence[float], options: Options = PLAIN
    ) -> Merged:
        """One layer. Mutates nothing. Raises LayerError listing modules that do not fit."""


@dataclass(frozen=True)
class Method:
    """A way to merge. A new one is one file with one such value."""

    name: str
    function: MergeFunction
    reference: str
    result: Result
    density: float | None = None
    """Default of `Options.density`; None: it takes none."""
    seeded: bool = False
    """Draws random numbers, so that a seed matters."""
    needs_examples: bool = False
    """Learns from rows: needs `Options.loss_and_gradients`."""


Term = tuple[int, Factors]
"""(which layer, its update)."""


def by_module(layers: Sequence[LayerFactors], weights: Sequence[float]) -> dict[str, list[Term]]:
    """Every module that any layer touches, sorted, with the updates of those layers that do.

    Raises LayerError on no layers, another number of weights, a weight that is not finite, and
    listing every module whose updates are of different linears.
    """
    modules = sorted({module for layer in layers for module in layer})
    terms = {
        module: [(i, layer[module]) for i, layer in enumerate(layers) if module in layer]
        for module in modules
    }
    faults = [] if layers else ["there is no layer"]
    if len(weights) != len(layers):
        faults.append(f"{len(weights)} weights for {len(layers)} layers")
    faults += [f"weight {weight} is not finite" for weight in weights if not math.isfinite(weight)]
    for module, found in terms.items():
        shapes = {(f.b_OR.shape[0], f.a_RI.shape[1]) for _, f in found}
        if len(shapes) > 1:
            faults.append(f"{module}: updates of different linears, (out, in) {sorted(shapes)}")
    if faults:
        raise LayerError("these layers cannot be merged", faults=faults)
    return terms
