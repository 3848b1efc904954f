"""What each kernel means, in torch: any dtype, any device. The formulas are the native ones'.

Shapes: N tokens of packed sequences, C channels, F channels between the products of an MLP, W =
(H + 2K) * D channels of queries, keys and values side by side. Sums in float32, or in float64 for
float64 tensors.
"""

from itertools import pairwise

import torch
from torch import Tensor

from lamina.kernels.sizes import Heads, Places


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def norm(
    x_NC: Tensor, weight_C: Tensor, eps: float, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y = w x / rms(x), in x's dtype, and 1 / rms(x) (N,) wide (RMSNorm, arXiv:1910.07467).

    y is written into `out` where it is given.
    """
    wide_NC = _wide(x_NC)
    rstd_N = torch.rsqrt(wide_NC.square().mean(-1) + eps)
    return _written((wide_NC * rstd_N[:, None] * weight_C).to(x_NC.dtype), out), rstd_N


def _written(result: Tensor, out: Tensor | None) -> Tensor:
    return result if out is None else out.copy_(result)


def norm_backward(
    x_NC: Tensor, weight_C: Tensor, rstd_N: Tensor, gy_NC: Tensor, gx_NC: Tensor
) -> None:
    """gx += r (w gy - x r^2 mean(x w gy)), r = rstd. Mutates gx."""
    x, r, wg = _wide(x_NC), rstd_N[:, None], _wide(weight_C) * _wide(gy_NC)
    gx_NC += (r * (wg - x * r.square() * (x * wg).mean(-1, keepdim=True))).to(gx_NC.dtype)


def head_norm(
    qkv_NW: Tensor, weights: tuple[Tensor, Tensor], eps: float, heads: Heads
) -> tuple[Tensor, Tensor]:
    """`norm` of each query and key head by itself, by the weight (D,) of queries and of keys.

    Mutates qkv; returns what queries and keys were (N, (H + K) * D), and each 1 / rms (N, H + K).
    """
    qk = _turned(qkv_NW, heads)
    kept = qk.clone()
    wide = _wide(kept)
    rstd = torch.rsqrt(wide.square().mean(-1) + eps)
    qk.copy_(wide * rstd[..., None] * _by_head(weights, heads))
    return kept.flatten(1), rstd


def head_norm_backward(
    kept: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor], grad_NW: Tensor, heads: Heads
) -> None:
    """The gradient of what `head_norm` was given, of which `kept` is the result. Mutates grad."""
    x, r = _wide(kept[0]).view(len(grad_NW), -1, heads.size), kept[1][..., None]
    g = _turned(grad_NW, heads)
    wg = _by_head(weights, heads) * _wide(g)
    g.copy_(r * (wg - x * r.square() * (x * wg).mean(-1, keepdim=True)))


def _turned(qkv_NW: Tensor, heads: Heads) -> Tensor:
    """(N, H + K, D): queries and keys, sharing memory."""
    count = heads.queries + heads.keys
    return qkv_NW[:, : count * heads.size].view(len(qkv_NW), count, heads.size)


def _by_head(weights: tuple[Tensor, Tensor], heads: Heads) -> Tensor:
    """(H + K, D): the weight of each query and key head."""
    queries, keys = map(_wide, weights)
    return torch.cat([queries.expand(heads.queries, -1), keys.expand(heads.keys, -1)])


def swiglu(gu_NF: Tensor, out: Tensor | None = None) -> Tensor:
    """(N, 2F): g beside u -> (N, F): silu(g) u (arXiv:2002.05202), into `out` where given."""
    g, u = _wide(gu_NF).chunk(2, dim=-1)
    return _written((g * torch.sigmoid(g) * u).to(gu_NF.dtype), out)


def swiglu_backward(gu_NF: Tensor, gh_NF: Tensor) -> Tensor:
    """(N, 2F) becomes its own gradient, from that of `swiglu`'s result (N, F). Mutates gu.

    Returns that result, computed again on the way.
    """
    h_NF = swiglu(gu_NF)
    g, u = _wide(gu_NF).chunk(2, dim=-1)
    gh, s = _wide(gh_NF), torch.sigmoid(g)
    grad = torch.cat([gh * u * s * (1 + g * (1 - s)), gh * g * s], dim=-1)
    gu_NF.copy_(grad)
    return h_NF


def rotate(qkv_NW: Tensor, places: Places, heads: Heads, *, back: bool = False) -> None:
    """Turn queries and keys by their places (arXiv:2104.09864), or gradients back. Mutates qkv.

    Channel d of the first half of a head goes with channel d of its second half.
    """
    qk = _turned(qkv_NW, heads)
    a, b = _wide(qk).chunk(2, dim=-1)
    cos, sin = (_wide(t)[:, None].to(a.dtype) for t in (places.cos_NR, places.sin_NR))
    sin = -sin if back else sin
    qk.copy_(torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1))


def _cut(qkv_NW: Tensor, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (H, N, D), keys and values (H, N, D), each key head once for every query head."""
    n, group = len(qkv_NW), heads.queries // heads.keys
    parts_HND = qkv_NW.view(n, -1, heads.size).transpose(0, 1)
    q, k, v = (
        parts_HND[: heads.queries],
        parts_HND[heads.queries : -heads.keys],
        parts_HND[-heads.keys :],
    )
    return q, k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)


def attention(qkv_NW: Tensor, places: Places, heads: Heads) -> tuple[Tensor, Tensor]:
    """Causal softmax attention inside each sequence -> (N, H * D), and the log of each softmax's
    sum (H, N) wide. No sequence sees another."""
    out_NC = qkv_NW.new_empty(len(qkv_NW), heads.queries * heads.size)
    lse_HN = _wide(qkv_NW.new_empty(heads.queries, len(qkv_NW)))
    for begin, end in _sequences(places):
        q, k, v = _cut(qkv_NW[begin:end], heads)
        s_HTT = _scores(q, k, heads.scale)
        lse_HN[:, begin:end] = torch.logsumexp(s_HTT, -1)
        p_HTT = torch.exp(s_HTT - lse_HN[:, begin:end, None]).to(qkv_NW.dtype)
        out_NC[begin:end] = (p_HTT @ v).transpose(0, 1).flatten(1)
    return out_NC, lse_HN


def attention_backward(
    qkv_NW: Tensor, out_NC: Tensor, lse_HN: Tensor, g_NC: Tensor, places: Places, heads: Heads
) -> Tensor:
    """The gradient (N, W) of `attention`'s first result: dS = P (dP - rowsum(g out)) scale, the
    scores recomputed (arXiv:2205.14135)."""
    grad_NW = torch.empty_like(qkv_NW)
    for begin, end in _sequences(places):
        q, k, v = _cut(qkv_NW[begin:end], heads)
        g, out = (
            t[begin:end].view(end - begin, heads.queries, heads.size).transpose(0, 1)
            for t in (g_NC, out_NC)
        )
        p = torch.exp(_scores(q, k, heads.scale) - lse_HN[:, begin:end, None])
        delta = (_wide(g) * _wide(out)).sum(-1, keepdim=True)
        ds = (p * (_wide(g @ v.mT) - delta) * heads.scale).to(qkv_NW.dtype)
        dv, dk = p.to(qkv_NW.dtype).mT @ g, ds.mT @ q
        shape = (heads.keys, -1, end - begin, heads.size)
        parts = (ds @ k, *(_wide(t).view(shape).sum(1).to(qkv_NW.dtype) for t in (dk, dv)))
        grad_NW[begin:end] = torch.cat([t.transpose(0, 1).flatten(1) for t in parts], 1)
    return grad_NW


def cross_entropy(z_NV: Tensor, index_NK: Tensor, share_NK: Tensor, *, gradient: bool) -> Tensor:
    """(N,) wide: logsumexp(z_n) - sum_k share[n,k] z[n, index[n,k]], of logits of V tokens.

    With `gradient`, z becomes that of each loss: softmax(z) - shares; else it is left alone.
    index int64, share float32; where a token is named twice its shares add up.
    """
    wide_NV = _wide(z_NV)
    lse_N = torch.logsumexp(wide_NV, dim=-1)
    share_NK = share_NK.to(wide_NV.dtype)
    losses_N = lse_N - (wide_NV.gather(1, index_NK) * share_NK).sum(1)
    if gradient:
        wide_NV = wide_NV.sub_(lse_N[:, None]).exp_().scatter_add_(1, index_NK, -share_NK)
        if wide_NV is not z_NV:
            z_NV.copy_(wide_NV)
    return losses_N


def _scores(q_HTD: Tensor, k_HTD: Tensor, scale: float) -> Tensor:
    s_HTT = _wide(q_HTD @ k_HTD.mT) * scale
    later = torch.ones(s_HTT.shape[-2:], dtype=torch.bool, device=s_HTT.device).triu(1)
    return s_HTT.masked_fill_(later, -torch.inf)


def _sequences(places: Places) -> list[tuple[int, int]]:
    starts = places.starts_S.tolist()
    return [(begin, end) for begin, end in pairwise(starts) if begin < end]
