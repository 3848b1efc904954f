"""`reference`'s functions on a GPU: each compiled into one kernel, attention by torch's
variable-length flash attention. Nothing is compiled before it is first called.
"""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from lamina.kernels import reference
from lamina.kernels.sizes import Heads, Places

P = ParamSpec("P")
T = TypeVar("T")

DTYPES = frozenset({torch.bfloat16, torch.float16})
"""What flash attention computes in."""


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # dynamic: the number of tokens differs from batch to batch
    return torch.compile(function, dynamic=True, fullgraph=True)


def _fused(function: Callable[P, T]) -> Callable[P, T]:
    """The function, compiled when it is first called."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return _compiled(function)(*args, **kwargs)  # type: ignore[no-any-return]

    return call


norm = _fused(reference.norm)
norm_backward = _fused(reference.norm_backward)
head_norm = _fused(reference.head_norm)
head_norm_backward = _fused(reference.head_norm_backward)
swiglu = _fused(reference.swiglu)
swiglu_backward = _fused(reference.swiglu_backward)
rotate = _fused(reference.rotate)
cross_entropy = _fused(reference.cross_entropy)


def attention(qkv_NW: Tensor, places: Places, heads: Heads) -> tuple[Tensor, Any]:
    """See `reference.attention`; the second value is what the backward needs, None in inference."""
    from torch.nn.attention.varlen import varlen_attn

    learning = not torch.is_inference_mode_enabled()
    with torch.set_grad_enabled(learning):
        q, k, v = (t.detach().requires_grad_(learning) for t in _cut(qkv_NW, heads))
        starts_S, longest = places.starts_there, places.longest
        out = varlen_attn(
            q, k, v, starts_S, starts_S, longest, longest,
            scale=heads.scale, window_size=(-1, 0), enable_gqa=heads.queries != heads.keys,
        )  # fmt: skip
    assert isinstance(out, Tensor)
    return out.detach().flatten(1), (out, q, k, v) if learning else None


def attention_backward(
    qkv_NW: Tensor, out_NC: Tensor, kept: Any, g_NC: Tensor, places: Places, heads: Heads
) -> Tensor:
    """See `reference.attention_backward`; `kept` is `attention`'s second value."""
    out, q, k, v = kept
    grads = torch.autograd.grad(out, (q, k, v), g_NC.view_as(out))
    return torch.cat([grad.flatten(1) for grad in grads], dim=1)


def _cut(qkv_NW: Tensor, heads: Heads) -> tuple[Tensor, ...]:
    """Queries (N, H, D), keys and values (N, K, D): views."""
    heads_NHD = qkv_NW.view(len(qkv_NW), -1, heads.size)
    return torch.split(heads_NHD, [heads.queries, heads.keys, heads.keys], dim=1)
