"""A linear whose weight is not in memory between its products: packed, or left in a file."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lamina.bases import products


class SuppliedLinear(nn.Linear):
    """y = x W^T + bias + (x A^T) B^T with W made for each product, and kept by none.

    x (..., I), W (O, I), A (R, I), B (O, R); A and B are frozen layers' factors that could not go
    into W, if any. Whoever makes one implements `supplied` and `add`.
    """

    a_RI: Tensor | None
    b_OR: Tensor | None

    def __init__(
        self, shape_OI: tuple[int, int], bias: nn.Parameter | None, dtype: torch.dtype
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make a weight
        self.out_features, self.in_features = shape_OI
        self.dtype = dtype
        self.register_parameter("bias", bias)
        self.register_buffer("a_RI", None)
        self.register_buffer("b_OR", None)

    def supplied(self, out: Tensor | None = None) -> Tensor:
        """W (O, I) in the compute dtype, into `out` or a new tensor."""
        raise NotImplementedError

    def add(self, a_RI: Tensor, b_OR: Tensor) -> None:
        """Take one more frozen update B A, scales in B, float32."""
        raise NotImplementedError

    @property
    def term(self) -> tuple[Tensor, Tensor] | None:
        """A (R, I) and B (O, R) of the frozen layers beside W, in the compute dtype."""
        return None if self.a_RI is None or self.b_OR is None else (self.a_RI, self.b_OR)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W + B A (O, I), a new tensor: what the linear multiplies with, rounded once."""
        weight_OI = self.supplied()
        return weight_OI if self.term is None else added(weight_OI, *self.term)

    def forward(self, input: Tensor) -> Tensor:
        """x (..., I) -> (..., O)."""
        y: Tensor = _Product.apply(input, self)  # type: ignore[no-untyped-call]
        return y

    def product(self, x_NI: Tensor) -> Tensor:
        """y (N, O), without gradients."""
        y_NO = products.linear(x_NI, self.supplied(), self.bias)
        if self.term is not None:
            a_RI, b_OR = self.term
            y_NO.addmm_(x_NI @ a_RI.T, b_OR.T)
        return y_NO

    def input_gradient(self, g_NO: Tensor) -> Tensor:
        """dx (N, I) = g W + (g B) A."""
        dx_NI = products.through(g_NO, self.supplied())
        if self.term is not None:
            a_RI, b_OR = self.term
            dx_NI.addmm_(g_NO @ b_OR, a_RI)
        return dx_NI


def added(weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor) -> Tensor:
    """W + B A, summed in float32 and rounded once to W's dtype; a new tensor. (`lowrank.fold` of a
    term of scale 1, to the bit.)"""
    return torch.addmm(weight_OI.float(), b_OR.float(), a_RI.float()).to(weight_OI.dtype)


class _Product(torch.autograd.Function):
    """`SuppliedLinear.product` and `.input_gradient`: the weight is made in each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: SuppliedLinear) -> Tensor:
        ctx.linear, ctx.shape = linear, x.shape
        y_NO = linear.product(x.reshape(-1, x.shape[-1]))
        return y_NO.view(*x.shape[:-1], y_NO.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        dx_NI = ctx.linear.input_gradient(g.reshape(-1, g.shape[-1]))
        return dx_NI.view(ctx.shape), None
