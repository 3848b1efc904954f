"""A denoiser's attention for training: projections that read one tensor are one product.

diffusers' attention blocks take a processor; this one multiplies queries, keys and values (keys and
values alone, where they read a caption) by joined weights, and computes no gradient of what is
frozen. What a block says is the same up to rounding.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lamina.bases.supplied import SuppliedLinear
from lamina.lowrank.group import Group
from lamina.lowrank.linear import LowRankLinear


class _Product(torch.autograd.Function):
    """y (N, O) of a group; its backward adds the factors' gradients to their `.grad` itself.

    `anchor`: any factor, so that there is a backward where the input needs no gradient.
    """

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, group: Group, anchor: Tensor | None) -> Tensor:
        y_NO, u_NR = group.forward(x_NI)
        ctx.save_for_backward(x_NI, *(() if u_NR is None else (u_NR,)))
        ctx.group = group
        return y_NO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_NO: Tensor) -> tuple[Tensor | None, None, None]:
        x_NI, *rest = ctx.saved_tensors
        group: Group = ctx.group
        g_NO = g_NO.contiguous()
        dx_NI = v_NR = None
        if ctx.needs_input_grad[0]:
            dx_NI, v_NR = group.input_gradient(g_NO)
        if group.learns:
            group.add_gradients(x_NI, rest[0] if rest else None, g_NO, v_NR)
        return dx_NI, None, None


class _Joined:
    """Linears that read one tensor."""

    def __init__(self, members: Sequence[nn.Linear | LowRankLinear]) -> None:
        self._group = Group(members)
        learned = [m.a for m in members if isinstance(m, LowRankLinear) and m.a.requires_grad]
        self._anchor = learned[0] if learned else None

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """Each member's outputs (B, L, O_m) of x (B, L, I), under the factors as they stand."""
        self._group.load()
        y_NO: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            x.reshape(-1, x.shape[-1]), self._group, self._anchor
        )
        return torch.split(y_NO.view(*x.shape[:-1], -1), self._group.outs, dim=-1)


class InFloat32:
    """`AttnProcessor2_0` of diffusers, for `_plain` blocks, with attention itself in float32 on
    processors: torch's backward takes ten times as long there in bfloat16."""

    def __call__(
        self,
        attention: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """What the block adds to hidden_states (B, L, D)."""
        x, device = hidden_states, hidden_states.device.type
        q, k, v = self.projected(attention, x, encoder_hidden_states)
        if attention_mask is not None:
            attention_mask = attention.prepare_attention_mask(attention_mask, k.shape[1], len(x))
            attention_mask = attention_mask.view(len(x), attention.heads, -1, k.shape[1])
        size = q.shape[-1] // attention.heads
        heads = [each.view(len(x), -1, attention.heads, size).transpose(1, 2) for each in (q, k, v)]
        if device == "cpu":
            heads = [each.float() for each in heads]
            attention_mask = None if attention_mask is None else attention_mask.float()
        with torch.autocast(device, enabled=False):
            y = nn.functional.scaled_dot_product_attention(
                heads[0], heads[1], heads[2], attn_mask=attention_mask
            )
        said: Tensor = attention.to_out[0](y.transpose(1, 2).flatten(2).to(q.dtype))
        factor = attention.rescale_output_factor
        return said if factor == 1 else said / factor

    def projected(self, attention: Any, x: Tensor, read: Tensor | None) -> Sequence[Tensor]:
        """Queries of x, keys and values of what is read: x itself, or a caption."""
        read = x if read is None else read
        return attention.to_q(x), attention.to_k(read), attention.to_v(read)


class _Together(InFloat32):
    """The same with joined projections."""

    def __init__(self, attention: Any) -> None:
        q, k, v = attention.to_q, attention.to_k, attention.to_v
        crossed = attention.is_cross_attention
        self._groups = [_Joined([q]), _Joined([k, v])] if crossed else [_Joined([q, k, v])]

    def projected(self, attention: Any, x: Tensor, read: Tensor | None) -> Sequence[Tensor]:
        """See `InFloat32.projected`."""
        inputs = [x, x if read is None else read]
        return [y for group, z in zip(self._groups, inputs, strict=False) for y in group(z)]


def in_float32(denoiser: nn.Module) -> None:
    """Have attention computed by `InFloat32` from now on."""
    blocks: Iterator[Any] = denoiser.modules()
    for block in blocks:
        if _plain(block):
            block.processor = InFloat32()


class Joining:
    """A denoiser whose attention is so computed, from `__init__` until `undo`: while the update
    that is on it stays."""

    def __init__(self, denoiser: nn.Module) -> None:
        self._were: list[tuple[Any, Any]] = []
        blocks: Iterator[Any] = denoiser.modules()
        for block in blocks:
            if _fits(block):
                self._were.append((block, block.processor))
                block.processor = _Together(block)

    @property
    def count(self) -> int:
        """Attention blocks that were taken over."""
        return len(self._were)

    def undo(self) -> None:
        """Put diffusers' own processors back. Safe to call twice."""
        while self._were:
            module, processor = self._were.pop()
            module.processor = processor


def _plain(module: Any) -> bool:
    """Whether a module is a plain attention block of diffusers."""
    if type(module).__name__ != "Attention" or not hasattr(module, "processor"):
        return False
    if type(module.processor).__name__ != "AttnProcessor2_0":
        return False
    return (
        module.spatial_norm is None
        and module.group_norm is None
        and module.norm_q is None
        and module.norm_k is None
        and not module.norm_cross
        and not module.residual_connection
        and module.to_k is not None
        and module.added_kv_proj_dim is None
        and (module.dropout == 0 or not module.training)
    )


def _fits(module: Any) -> bool:
    """Whether it is one whose projections can be joined: their weights are in memory."""
    if not _plain(module):
        return False
    members = [module.to_q, module.to_k, module.to_v]
    bases = [m.base if isinstance(m, LowRankLinear) else m for m in members]
    learned = {m.a.requires_grad for m in members if isinstance(m, LowRankLinear)}
    return len(learned) < 2 and all(
        isinstance(base, nn.Linear) and not isinstance(base, SuppliedLinear) for base in bases
    )
