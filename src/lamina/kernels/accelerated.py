"""`reference`'s functions on a GPU: Triton programs, and for attention the variable-length flash
attention that torch carries (the operators beneath its `varlen_attn`, whose arguments change from
version to version). Nothing is compiled before it is first called.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from lamina.kernels.sizes import Heads, Places

DTYPES = frozenset({torch.bfloat16, torch.float16})
"""What flash attention computes in."""
_PIECE = 1024
"""Channels of an MLP in one program."""
_PART = 4096
"""Logits in one step of a program."""


def why_not() -> str:
    """Why these cannot be used with the libraries at hand, '' where they can."""
    return "" if find_spec("triton") else "triton is not installed"


def norm(
    x_NC: Tensor, weight_C: Tensor, eps: float, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See `reference.norm`."""
    (n, c), y_NC = x_NC.shape, torch.empty_like(x_NC) if out is None else out
    rstd_N = torch.empty(n, device=x_NC.device)
    rows = x_NC.stride(0), y_NC.stride(0)
    _programs().norm[(n,)](
        x_NC, weight_C, y_NC, rstd_N, c, *rows, eps, BLOCK=_power(c), num_warps=_warps(c)
    )
    return y_NC, rstd_N


def norm_backward(
    x_NC: Tensor, weight_C: Tensor, rstd_N: Tensor, gy_NC: Tensor, gx_NC: Tensor
) -> None:
    """See `reference.norm_backward`; what is added is rounded once, with what is there."""
    n, c = x_NC.shape
    rows = x_NC.stride(0), gy_NC.stride(0), gx_NC.stride(0)
    _programs().norm_backward[(n,)](
        x_NC, weight_C, rstd_N, gy_NC, gx_NC, c, *rows, BLOCK=_power(c), num_warps=_warps(c)
    )


def head_norm(
    qkv_NW: Tensor, weights: tuple[Tensor, Tensor], eps: float, heads: Heads
) -> tuple[Tensor, Tensor]:
    """See `reference.head_norm`."""
    count = heads.queries + heads.keys
    kept = qkv_NW.new_empty(len(qkv_NW), count * heads.size)
    rstd = torch.empty(len(qkv_NW), count, device=qkv_NW.device)
    _programs().head_norm[(len(qkv_NW),)](
        qkv_NW, *weights, kept, rstd, qkv_NW.stride(0), heads.queries, count, eps,
        SIZE=heads.size, HEADS=_power(count), LANES=_power(heads.size),
    )  # fmt: skip
    return kept, rstd


def head_norm_backward(
    kept: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor], grad_NW: Tensor, heads: Heads
) -> None:
    """See `reference.head_norm_backward`."""
    count = heads.queries + heads.keys
    _programs().head_norm_backward[(len(grad_NW),)](
        *kept, *weights, grad_NW, grad_NW.stride(0), heads.queries, count,
        SIZE=heads.size, HEADS=_power(count), LANES=_power(heads.size),
    )  # fmt: skip


def swiglu(gu_NF: Tensor, out: Tensor | None = None) -> Tensor:
    """See `reference.swiglu`."""
    n, inner = len(gu_NF), gu_NF.shape[1] // 2
    h_NF = gu_NF.new_empty(n, inner) if out is None else out
    _programs().swiglu[(n, -(-inner // _PIECE))](gu_NF, h_NF, inner, BLOCK=_PIECE)
    return h_NF


def swiglu_backward(gu_NF: Tensor, gh_NF: Tensor) -> Tensor:
    """See `reference.swiglu_backward`."""
    n, inner = gh_NF.shape
    h_NF = torch.empty_like(gh_NF)
    _programs().swiglu_backward[(n, -(-inner // _PIECE))](gu_NF, gh_NF, h_NF, inner, BLOCK=_PIECE)
    return h_NF


def rotate(qkv_NW: Tensor, places: Places, heads: Heads, *, back: bool = False) -> None:
    """See `reference.rotate`."""
    count, half = heads.queries + heads.keys, heads.size // 2
    _programs().rotate[(len(qkv_NW),)](
        qkv_NW, places.cos_NR, places.sin_NR, qkv_NW.stride(0), count, -1.0 if back else 1.0,
        HALF=half, HEADS=_power(count), LANES=_power(half),
    )  # fmt: skip


def cross_entropy(z_NV: Tensor, index_NK: Tensor, share_NK: Tensor, *, gradient: bool) -> Tensor:
    """See `reference.cross_entropy`."""
    n, vocabulary = z_NV.shape
    losses_N = torch.empty(n, device=z_NV.device)
    if n:
        _programs().cross_entropy[(n,)](
            z_NV, index_NK.contiguous(), share_NK.contiguous(), losses_N,
            VOCABULARY=vocabulary, TARGETS=index_NK.shape[1], GRADIENT=gradient,
            BLOCK=_PART, num_warps=8,
        )  # fmt: skip
    return losses_N


def attention(qkv_NW: Tensor, places: Places, heads: Heads) -> tuple[Tensor, Any]:
    """See `reference.attention`; the second value is what the backward needs."""
    starts_S, longest = places.starts_there, places.longest
    out_NHD, lse, state, unused, _ = torch.ops.aten._flash_attention_forward(
        *_cut(qkv_NW, heads), starts_S, starts_S, longest, longest, 0.0, True, False,
        scale=heads.scale,
    )  # fmt: skip
    return out_NHD.flatten(1), (out_NHD, lse, state, unused)


def attention_backward(
    qkv_NW: Tensor, out_NC: Tensor, kept: Any, g_NC: Tensor, places: Places, heads: Heads
) -> Tensor:
    """See `reference.attention_backward`; `kept` is `attention`'s second value.

    Equal arguments give equal bits, which torch's operator does only when it is told to.
    """
    out_NHD, lse, state, unused = kept
    starts_S, longest = places.starts_there, places.longest
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        grads = torch.ops.aten._flash_attention_backward(
            g_NC.view_as(out_NHD), *_cut(qkv_NW, heads), out_NHD, lse, starts_S, starts_S,
            longest, longest, 0.0, True, state, unused, scale=heads.scale,
        )  # fmt: skip
    finally:
        torch.use_deterministic_algorithms(before)
    return torch.cat([grad.flatten(1) for grad in grads], dim=1)


def _cut(qkv_NW: Tensor, heads: Heads) -> tuple[Tensor, ...]:
    """Queries (N, H, D), keys and values (N, K, D): views."""
    heads_NHD = qkv_NW.view(len(qkv_NW), -1, heads.size)
    return torch.split(heads_NHD, [heads.queries, heads.keys, heads.keys], dim=1)


def _programs() -> Any:
    return import_module("lamina.kernels.programs")


def _power(count: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << (count - 1).bit_length()


def _warps(channels: int) -> int:
    """Of 32 threads, for a row of so many channels."""
    return min(16, max(1, _power(channels) // 256))
