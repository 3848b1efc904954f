"""Pure functions over low-rank factors: W' = W + sum_i s_i B_i A_i.

Axis suffixes: N tokens (any leading shape), I in-features, O out-features, R rank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lamina.core.errors import LayerError


@dataclass(frozen=True, eq=False)
class Factors:
    """One low-rank update of one linear: delta W = scale * b_OR @ a_RI, both float32."""

    a_RI: Tensor
    b_OR: Tensor
    scale: float

    @property
    def rank(self) -> int:
        """R."""
        return self.a_RI.shape[0]

    @property
    def parameters(self) -> int:
        """R * (I + O)."""
        return self.a_RI.numel() + self.b_OR.numel()

    def weighted(self, weight: float) -> "Factors":
        """The same update, `weight` times as strong."""
        return Factors(self.a_RI, self.b_OR, self.scale * weight)


LayerFactors = Mapping[str, Factors]
"""A layer's updates by full module name."""


def lowrank_delta(x_NI: Tensor, factors: Factors) -> Tensor:
    """y[n] = scale * B A x[n]  (LoRA, arXiv:2106.09685, section 4.1).

    Shapes: x (..., I) -> (..., O). Dtype: computed in float32, returned in x.dtype.
    Mutates nothing. Raises LayerError when x's last axis is not I.
    """
    if x_NI.shape[-1] != factors.a_RI.shape[1]:
        raise LayerError(f"x has {x_NI.shape[-1]} features, A takes {factors.a_RI.shape[1]}")
    hidden_NR = x_NI.float() @ factors.a_RI.float().T
    return (factors.scale * (hidden_NR @ factors.b_OR.float().T)).to(x_NI.dtype)


def inner_product(a: Factors, b: Factors) -> float:
    """<dW_a, dW_b>_F = s_a s_b sum((B_a^T B_b) * (A_a A_b^T)), in float64; dW is never formed."""
    columns_RS = a.b_OR.double().T @ b.b_OR.double()
    rows_RS = a.a_RI.double() @ b.a_RI.double().T
    return a.scale * b.scale * float((columns_RS * rows_RS).sum())


def squared_norm(factors: Factors) -> float:
    """|dW|_F^2, in float64."""
    return inner_product(factors, factors)


def concat(terms: Sequence[Factors]) -> Factors:
    """n updates as one: [s1 B1 ... sn Bn] [A1; ...; An], rank sum(Ri), scale 1. Exact.

    Scales go into B; no rounding but that one float32 product. Raises LayerError on no terms or
    differing shapes.
    """
    if not terms:
        raise LayerError("nothing to concatenate")
    shapes = {(t.a_RI.shape[1], t.b_OR.shape[0]) for t in terms}
    if len(shapes) > 1:
        raise LayerError(f"updates of different linears: (in, out) {sorted(shapes)}")
    if len(terms) == 1 and terms[0].scale == 1.0:
        return terms[0]
    a_RI = torch.cat([t.a_RI.float() for t in terms], dim=0)
    b_OR = torch.cat([t.b_OR.float() * t.scale for t in terms], dim=1)
    return Factors(a_RI, b_OR, 1.0)


def fold(weight_OI: Tensor, terms: Sequence[Factors]) -> Tensor:
    """W + sum_i s_i B_i A_i, summed in float32 and rounded once to W's dtype.

    Returns a new tensor; `weight_OI` is never written. With no terms: a copy.
    """
    if not terms:
        return weight_OI.clone()
    joined = concat(terms)
    total_OI = torch.addmm(
        weight_OI.float(), joined.b_OR.float(), joined.a_RI.float(), alpha=joined.scale
    )
    return total_OI.to(weight_OI.dtype)


def compose(layers: Sequence[LayerFactors]) -> dict[str, Factors]:
    """A stack of layers as one layer: per module, the concatenation of its updates in order."""
    modules = sorted({module for layer in layers for module in layer})
    return {
        module: concat([layer[module] for layer in layers if module in layer]) for module in modules
    }


def init_factors(
    in_features: int, out_features: int, rank: int, scale: float, generator: torch.Generator
) -> Factors:
    """A ~ Kaiming-uniform(a=sqrt 5) = U(-1/sqrt(I), 1/sqrt(I)), B = 0, as PEFT starts LoRA."""
    bound = in_features**-0.5
    a_RI = torch.empty(rank, in_features).uniform_(-bound, bound, generator=generator)
    return Factors(a_RI, torch.zeros(out_features, rank), scale)
