"""Matrix products by the library that is fastest at them.

torch multiplies float32 matrices by MKL, which on processors that are not Intel's takes a path of
half the speed; oneDNN, which torch brings for its convolutions, knows no makers. Small products
stay with MKL, whose calls are cheaper. Nothing here has a gradient of its own.
"""

import torch
from torch import Tensor, nn

_ENOUGH = 1 << 21
"""Multiplications from which oneDNN's dearer call is won back."""
_ENOUGH_ACROSS = 1 << 22
"""The same of sums over rows, for which it copies."""
_DNN = torch.ops.mkldnn._linear_pointwise if torch._C._has_mkldnn else None


def better(x_NI: Tensor, weight_OI: Tensor) -> bool:
    """Whether x W^T is oneDNN's to compute."""
    return _DNN is not None and _fits(x_NI, weight_OI) and _size(x_NI, weight_OI) >= _ENOUGH


def linear(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + bias (N, O), a new tensor."""
    if better(x_NI, weight_OI):
        assert _DNN is not None
        y_NO: Tensor = _DNN(x_NI, weight_OI, bias_O, "none", [], "")
        return y_NO
    return nn.functional.linear(x_NI, weight_OI, bias_O)


def through(g_NO: Tensor, weight_OI: Tensor, out: Tensor | None = None) -> Tensor:
    """g W (N, I), a new tensor or `out`: what `linear` hands back to its input."""
    if better(g_NO, weight_OI.T):
        y_NI = linear(g_NO, weight_OI.T)
        return y_NI if out is None else out.copy_(y_NI)
    return torch.mm(g_NO, weight_OI, out=out)


def across(g_NO: Tensor, x_NI: Tensor) -> Tensor:
    """g^T x (O, I), a new tensor: what `linear` hands back to its weight."""
    if _size(g_NO.T, x_NI.T) >= _ENOUGH_ACROSS and better(g_NO.T, x_NI.T):
        return linear(g_NO.T, x_NI.T)
    return g_NO.T @ x_NI


def added(y_NO: Tensor, u_NR: Tensor, b_OR: Tensor, scale: float = 1.0) -> Tensor:
    """y + scale u B^T (N, O): y itself, or a new tensor."""
    if (
        _DNN is not None
        and _fits(y_NO, u_NR)
        and y_NO.is_contiguous()
        and _size(u_NR, b_OR) >= _ENOUGH_ACROSS
    ):
        b_OR = b_OR if scale == 1 else b_OR * scale
        sum_NO: Tensor = _DNN.binary(u_NR, y_NO, b_OR, None, "add")
        return sum_NO
    return y_NO.addmm_(u_NR, b_OR.T, alpha=scale)


def _fits(*matrices: Tensor) -> bool:
    """Whether oneDNN has fast code for them: float32, and blocks of memory or such transposed. Of
    columns of a wider matrix it sums, transposed, four hundred times as slowly."""
    return all(
        each.dtype == torch.float32
        and each.device.type == "cpu"
        and (each.is_contiguous() or each.T.is_contiguous())
        for each in matrices
    )


def _size(x_NI: Tensor, weight_OI: Tensor) -> int:
    """Multiplications of x W^T."""
    return len(x_NI) * weight_OI.numel()
