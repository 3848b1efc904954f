"""A convolution with a trainable low-rank update, and its own forward and backward.

The update is that of the matrix (O, I kh kw) which the weight is to patches of the input (see
`PatchLinear`): A (R, I kh kw) is a convolution of the same kernel, stride and padding into R
channels, B (O, R) one of 1 x 1 (LoCon, arXiv:2309.14859).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lamina.bases.convolution import PatchLinear
from lamina.lowrank.linear import LowRankLinear


class _LowRankConvolution(torch.autograd.Function):
    """y = x * W + bias + s B u with u = x * A, where * is the convolution.

    With g = dL/dy, v = s B^T g and *' the transposed convolution:
        dx = g *' W + v *' A,   dA = dL/dA of u under v,   dB = s g u^T.
    Shapes: x (N, I, H, W), y and g (N, O, h, w), u and v (N, R, h, w), of which the products with B
    (O, R) see places flat, P = h w; A (R, I, kh, kw). Products in x.dtype; dA and dB come back as
    matrices in the factors' own dtype (float32 masters). Saves x, u and the cast factors; mutates
    nothing.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        base: nn.Conv2d,
        a_RI: Tensor,
        b_OR: Tensor,
        scale: float,
    ) -> Tensor:
        a = a_RI.to(x.dtype).view(-1, *base.weight.shape[1:])
        b_cast = b_OR.to(x.dtype)
        u = _conv(x, a, None, base).contiguous()
        y = _conv(x, base.weight, base.bias, base).contiguous()
        y.flatten(2).baddbmm_(b_cast.expand(len(y), -1, -1), u.flatten(2), alpha=scale)
        ctx.save_for_backward(x, u, a, b_cast)
        ctx.base, ctx.scale, ctx.factor_dtype = base, scale, a_RI.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, u, a, b_cast = ctx.saved_tensors
        base: nn.Conv2d = ctx.base
        to_x, to_a, to_b = (ctx.needs_input_grad[i] for i in (0, 2, 3))
        g_NOP = g.flatten(2)
        dx: Any = None
        da: Any = None
        db: Any = None
        if to_x or to_a:
            v = torch.bmm(b_cast.T.expand(len(g), -1, -1), g_NOP).mul_(ctx.scale).view(u.shape)
            dx, da = _back(v, x, a, base, (to_x, to_a))
        if to_x:
            dx.add_(_back(g, x, base.weight, base, (True, False))[0])
        if to_a:
            da = da.flatten(1).to(ctx.factor_dtype)
        if to_b:
            db_NOR = torch.bmm(g_NOP, u.flatten(2).transpose(1, 2))
            db = db_NOR.sum(0, dtype=ctx.factor_dtype).mul_(ctx.scale)
        return dx, None, da, db, None


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, like: nn.Conv2d) -> Tensor:
    return nn.functional.conv2d(x, weight, bias, like.stride, like.padding)


def _back(
    g: Tensor, x: Tensor, weight: Tensor, like: nn.Conv2d, wanted: tuple[bool, bool]
) -> tuple[Any, Any]:
    """Gradients of `_conv`'s input and of its weight, those that are wanted, in one pass."""
    into_x, into_weight, _ = torch.ops.aten.convolution_backward(
        g, x, weight, None, like.stride, like.padding, (1, 1), False, (0, 0), 1, (*wanted, False)
    )
    return into_x, into_weight


class LowRankConvolution(LowRankLinear):
    """A frozen `nn.Conv2d` plus a trainable update: `a` (R, I kh kw), `b` (O, R), float32."""

    base: PatchLinear

    @property
    def weight(self) -> Tensor:
        """The convolution's frozen weight (O, I, kh, kw)."""
        return self.base.convolution.weight

    def forward(self, x: Tensor) -> Tensor:
        """x (N, I, H, W) -> (N, O, h, w)."""
        y: Tensor = _LowRankConvolution.apply(  # type: ignore[no-untyped-call]
            x, self.base.convolution, self.a, self.b, self.scale
        )
        return y


def with_update(linear: nn.Linear, a: nn.Parameter, b: nn.Parameter, scale: float) -> LowRankLinear:
    """What stands in a model while an update of one of its linears or convolutions is trained."""
    kind = LowRankConvolution if isinstance(linear, PatchLinear) else LowRankLinear
    return kind(linear, a, b, scale)
