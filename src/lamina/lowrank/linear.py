"""A linear with a trainable low-rank update and its own forward and backward over frozen weights.

The backward computes no gradient of the frozen weight: 2/3 of a full step's arithmetic.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lamina.bases import products
from lamina.bases.supplied import SuppliedLinear
from lamina.lowrank.maths import Factors


class _LowRankProduct(torch.autograd.Function):
    """y = x W^T + bias + s (x A^T) B^T.

    With g = dL/dy, u = x A^T, v = g B:
        dx = g W + s v A,   dA = s v^T x,   dB = s g^T u.
    Shapes: x (N, I), W (O, I), A (R, I), B (O, R). Products in x.dtype; dA and dB come back in
    the factors' own dtype (float32 masters). Saves x, u and the cast factors; mutates nothing.
    A W that is not in memory is made in each direction and kept by neither.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NI: Tensor,
        base: nn.Linear,
        a_RI: Tensor,
        b_OR: Tensor,
        scale: float,
    ) -> Tensor:
        a_cast, b_cast = a_RI.to(x_NI.dtype), b_OR.to(x_NI.dtype)
        u_NR = products.linear(x_NI, a_cast)
        if isinstance(base, SuppliedLinear):
            y_NO = base.product(x_NI)
        else:
            y_NO = products.linear(x_NI, base.weight, base.bias)
        y_NO = products.added(y_NO, u_NR, b_cast, scale)
        ctx.save_for_backward(x_NI, u_NR, a_cast, b_cast)
        ctx.base, ctx.scale, ctx.factor_dtype = base, scale, a_RI.dtype
        return y_NO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, u_NR, a_cast, b_cast = ctx.saved_tensors
        base: nn.Linear = ctx.base
        scale: float = ctx.scale
        v_NR = products.through(g_NO, b_cast)
        da = dx = db = None
        if ctx.needs_input_grad[2]:
            da = products.across(v_NR, x_NI).to(ctx.factor_dtype).mul_(scale)
        if ctx.needs_input_grad[3]:
            # the narrow side first: sums of few rows are faster than those of few columns
            db = products.across(u_NR, g_NO).to(ctx.factor_dtype).mul_(scale).T
        if ctx.needs_input_grad[0]:
            if isinstance(base, SuppliedLinear):
                dx = base.input_gradient(g_NO)
            else:
                dx = products.through(g_NO, base.weight)
            dx = products.added(dx, v_NR, a_cast.T, scale)
        return dx, None, da, db, None


class LowRankLinear(nn.Module):
    """A frozen `nn.Linear` plus a trainable update with float32 factors `a` (R, I), `b` (O, R)."""

    def __init__(self, base: nn.Linear, a: nn.Parameter, b: nn.Parameter, scale: float) -> None:
        super().__init__()
        self.base = base
        self.a = a
        self.b = b
        self.scale = scale

    @property
    def weight(self) -> Tensor:
        """The frozen weight (O, I): some models read `linear.weight` for its dtype."""
        return self.base.weight

    @property
    def factors(self) -> Factors:
        """The update as it stands, detached, sharing memory."""
        return Factors(self.a.detach(), self.b.detach(), self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) -> (..., O)."""
        flat_NI = x.reshape(-1, x.shape[-1])
        y_NO: Tensor = _LowRankProduct.apply(  # type: ignore[no-untyped-call]
            flat_NI, self.base, self.a, self.b, self.scale
        )
        return y_NO.view(*x.shape[:-1], y_NO.shape[-1])
