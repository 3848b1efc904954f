"""`reference`'s functions in C++: bfloat16 on processors with AVX-512 BF16.

Tensors must be contiguous where `cpu.cpp` does not take a stride.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from lamina.kernels.build import library
from lamina.kernels.sizes import Heads, Places

LANES = 16
"""Channel counts must be multiples of it, and a head's size of twice as many."""


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


_long = ctypes.c_long
_float = ctypes.c_float


def norm(
    x_NC: Tensor, weight_C: Tensor, eps: float, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See `reference.norm`."""
    y_NC, rstd_N = torch.empty_like(x_NC) if out is None else out, torch.empty(len(x_NC))
    n, c = x_NC.shape
    library().norm_forward(
        _at(x_NC), _at(weight_C), _at(y_NC), _at(rstd_N), _long(n), _long(c), _float(eps)
    )
    return y_NC, rstd_N


def norm_backward(
    x_NC: Tensor, weight_C: Tensor, rstd_N: Tensor, gy_NC: Tensor, gx_NC: Tensor
) -> None:
    """See `reference.norm_backward`."""
    n, c = x_NC.shape
    library().norm_backward(
        _at(x_NC), _at(weight_C), _at(rstd_N), _at(gy_NC), _at(gx_NC), _long(n), _long(c)
    )


def head_norm(
    qkv_NW: Tensor, weights: tuple[Tensor, Tensor], eps: float, heads: Heads
) -> tuple[Tensor, Tensor]:
    """See `reference.head_norm`."""
    n, count = len(qkv_NW), heads.queries + heads.keys
    kept_NQ, rstd_NH = qkv_NW.new_empty(n, count * heads.size), torch.empty(n, count)
    library().head_norm_forward(
        *map(_at, (qkv_NW, kept_NQ, rstd_NH, *weights)), *_cut(qkv_NW, heads), _float(eps)
    )
    return kept_NQ, rstd_NH


def head_norm_backward(
    kept: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor], grad_NW: Tensor, heads: Heads
) -> None:
    """See `reference.head_norm_backward`."""
    library().head_norm_backward(*map(_at, (*kept, *weights, grad_NW)), *_cut(grad_NW, heads))


def _cut(qkv_NW: Tensor, heads: Heads) -> tuple[ctypes.c_long, ...]:
    sizes = (len(qkv_NW), heads.queries, heads.keys, heads.size, qkv_NW.stride(0))
    return tuple(map(_long, sizes))


def swiglu(gu_NF: Tensor, out: Tensor | None = None) -> Tensor:
    """See `reference.swiglu`."""
    n, f = len(gu_NF), gu_NF.shape[1] // 2
    h_NF = gu_NF.new_empty(n, f) if out is None else out
    library().swiglu_forward(_at(gu_NF), _at(h_NF), _long(n), _long(f))
    return h_NF


def swiglu_backward(gu_NF: Tensor, gh_NF: Tensor) -> Tensor:
    """See `reference.swiglu_backward`."""
    n, f = gh_NF.shape
    h_NF = torch.empty_like(gh_NF)
    library().swiglu_backward(*map(_at, (gu_NF, gh_NF, h_NF)), _long(n), _long(f))
    return h_NF


def rotate(qkv_NW: Tensor, places: Places, heads: Heads, *, back: bool = False) -> None:
    """See `reference.rotate`."""
    library().rotate(
        _at(qkv_NW),
        _long(qkv_NW.stride(0)),
        _at(places.cos_NR),
        _at(places.sin_NR),
        _long(len(qkv_NW)),
        _long(heads.queries + heads.keys),
        _long(heads.size),
        _float(-1.0 if back else 1.0),
    )


def attention(qkv_NW: Tensor, places: Places, heads: Heads) -> tuple[Tensor, Tensor]:
    """See `reference.attention`."""
    n = len(qkv_NW)
    out_NC = qkv_NW.new_empty(n, heads.queries * heads.size)
    lse_HN = torch.empty(heads.queries, n)
    library().attention_forward(
        *map(_at, _parts(qkv_NW, heads)), _at(out_NC), _at(lse_HN), *_sizes(qkv_NW, places, heads)
    )
    return out_NC, lse_HN


def attention_backward(
    qkv_NW: Tensor, out_NC: Tensor, lse_HN: Tensor, g_NC: Tensor, places: Places, heads: Heads
) -> Tensor:
    """See `reference.attention_backward`."""
    grad_NW = torch.empty_like(qkv_NW)
    part = torch.empty(2 * heads.queries * len(qkv_NW) * heads.size)
    library().attention_backward(
        *map(_at, _parts(qkv_NW, heads)),
        *map(_at, (out_NC, lse_HN, g_NC)),
        *map(_at, _parts(grad_NW, heads)),
        _at(part),
        *_sizes(qkv_NW, places, heads),
    )
    return grad_NW


def cross_entropy(z_NV: Tensor, index_NK: Tensor, share_NK: Tensor, *, gradient: bool) -> Tensor:
    """See `reference.cross_entropy`."""
    losses_N = torch.empty(len(z_NV))
    sizes = (*z_NV.shape, index_NK.shape[1], gradient)
    library().cross_entropy(*map(_at, (z_NV, index_NK, share_NK, losses_N)), *map(_long, sizes))
    return losses_N


def takes(inputs: int, outs: Sequence[int], ranks: Sequence[int]) -> bool:
    """Whether `product` and `product_back` take linears of these sizes that read one tensor."""
    rows = (*outs, inputs)
    return inputs % 32 == 0 and not any(n % LANES for n in rows) and not any(r % 2 for r in ranks)


def product(
    x_NI: Tensor,
    weight_OI: Tensor,
    update: tuple[Tensor, Sequence[tuple[int, slice, Tensor | None]]] | None,
    residual_NO: Tensor | None,
    out: Tensor | None,
) -> Tensor:
    """y = x W^T + u B^T + residual (N, O), rounded once; a row's bits are its own.

    `update`: u (N, R), and for each member its outputs, its columns of u and its B (outs, ranks),
    None where it has none. Sizes as in `takes`; all contiguous.
    """
    u_NR, members = update or (None, [(len(weight_OI), slice(0, 0), None)])
    parts = torch.tensor(
        [
            (0 if b is None else b.data_ptr(), outs, at.start, 0 if b is None else b.shape[1])
            for outs, at, b in members
        ]
    )
    (n, i), o = x_NI.shape, len(weight_OI)
    y_NO = x_NI.new_empty(n, o) if out is None else out
    library().product_forward(
        _at(x_NI), _at(weight_OI), _or_none(residual_NO), _or_none(u_NR), _at(y_NO), _at(parts),
        *map(_long, (len(parts), n, i, o, 0 if u_NR is None else u_NR.shape[1])),
    )  # fmt: skip
    return y_NO


def product_back(g_NO: Tensor, weight_OI: Tensor, update: tuple[Tensor, Tensor] | None) -> Tensor:
    """dx = g W + v A (N, I), rounded once; `update`: v (N, R) and A (R, I)."""
    v_NR, a_RI = update or (None, None)
    (n, o), i = g_NO.shape, weight_OI.shape[1]
    dx_NI = g_NO.new_empty(n, i)
    library().product_back(
        _at(g_NO), _at(weight_OI), _or_none(v_NR), _or_none(a_RI), _at(dx_NI),
        *map(_long, (n, i, o, 0 if v_NR is None else v_NR.shape[1])),
    )  # fmt: skip
    return dx_NI


def _or_none(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None) if tensor is None else _at(tensor)


def _parts(qkv_NW: Tensor, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    q, k = heads.queries * heads.size, heads.keys * heads.size
    return qkv_NW, qkv_NW[:, q:], qkv_NW[:, q + k :]


def _sizes(qkv_NW: Tensor, places: Places, heads: Heads) -> list[object]:
    starts = places.starts_S
    return [_at(starts), _long(len(starts) - 1), *_cut(qkv_NW, heads), _float(heads.scale)]
