"""One decoder layer, forward and back, over packed rows: linears that read one tensor are one
product, what stands between the products is in `lamina.kernels`.

A layer keeps its input, queries/keys/values, attention, and the MLP's two products; the rest is
computed again in the backward. With checkpointing it keeps its input alone.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lamina.kernels.sizes import Heads, Places
from lamina.lowrank.group import Group


@dataclass(frozen=True, eq=False)
class Layer:
    """One decoder layer's parts."""

    qkv: Group
    out: Group
    up: Group
    """Gate and up."""
    down: Group
    norm_in: Tensor
    norm_mid: Tensor
    eps: float
    heads: Heads
    head_norms: tuple[Tensor, Tensor] | None
    """Weights of the norms of queries and keys, head by head, where there are such."""
    rotated: bool
    """Whether queries and keys are turned by their places."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """In the order of the forward."""
        return self.qkv, self.out, self.up, self.down

    @property
    def learns(self) -> bool:
        """Whether any of its linears is trained."""
        return any(group.learns for group in self.groups)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Weights that are made for each product are made once for the block."""
        with ExitStack() as stack:
            for group in self.groups:
                stack.enter_context(group.held())
            yield


class Pool:
    """Memory for what layers keep, from one step to the next.

    Memory that goes back to the system comes again page by page, filled with zeros, in the middle
    of the product that writes it: a tenth of a step. Whoever takes a piece owns it; one that is
    never given back (of a pass without a way back) goes with its last reference.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[int, torch.dtype], list[Tensor]] = {}

    def take(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """(rows, width), with whatever was left in it."""
        free = self._free.get((width, dtype))
        return free.pop().resize_(rows, width) if free else torch.empty(rows, width, dtype=dtype)

    def give(self, *pieces: Tensor) -> None:
        """Back, by whoever took them and holds them no longer."""
        for each in pieces:
            self._free.setdefault((each.shape[1], each.dtype), []).append(each)


class Room(NamedTuple):
    """Where what only one product reads is written, layer after layer. Made anew at each layer it
    would leave a hole beside what is kept, which the next one of the same size does not fit (glibc
    before 2.38 asks for more than it needs when it aligns)."""

    normed: Tensor | None
    """(N, C)."""
    h: Tensor | None
    """(N, F)."""
    pool: Pool | None = None
    """Where what is kept for the way back comes from, and goes to after it."""

    def of(self, group: Group, x_NI: Tensor) -> Tensor | None:
        """Where a product that is kept is written; None: anywhere."""
        if self.pool is None:
            return None
        return self.pool.take(len(x_NI), sum(group.outs), x_NI.dtype)


class Kept(NamedTuple):
    """What a layer's backward needs of its forward."""

    x: Tensor
    rstd_in: Tensor
    raw_heads: tuple[Tensor, Tensor] | None
    qkv: Tensor
    attended: Tensor
    lse: Any
    """What the kernels' attention keeps for its own backward."""
    mid: Tensor
    rstd_mid: Tensor
    gu: Tensor
    us: tuple[Tensor | None, ...]


def forward(
    ops: ModuleType, layer: Layer, x_NC: Tensor, places: Places, room: Room
) -> tuple[Tensor, Kept]:
    """x + attention(norm(x)), then + mlp(norm(that)). Mutates nothing that it is given."""
    kept, h_NF = _until_down(ops, layer, x_NC, places, room)
    y_NC, u_down = layer.down.forward(h_NF, kept.mid)
    return y_NC, kept._replace(us=(*kept.us, u_down))


def again(ops: ModuleType, layer: Layer, x_NC: Tensor, places: Places, room: Room) -> Kept:
    """What `forward` kept, to the bit, from the layer's input."""
    kept, h_NF = _until_down(ops, layer, x_NC, places, room)
    return kept._replace(us=(*kept.us, layer.down.narrow(h_NF)))


def _until_down(
    ops: ModuleType, layer: Layer, x_NC: Tensor, places: Places, room: Room
) -> tuple[Kept, Tensor]:
    """All of a layer but its last product: what is kept so far, and what that product reads."""
    normed, rstd_in = ops.norm(x_NC, layer.norm_in, layer.eps, room.normed)
    qkv, u_qkv = layer.qkv.forward(normed, out=room.of(layer.qkv, x_NC))
    raw = None
    if layer.head_norms is not None:
        raw = ops.head_norm(qkv, layer.head_norms, layer.eps, layer.heads)
    if layer.rotated:
        ops.rotate(qkv, places, layer.heads)
    attended, lse = ops.attention(qkv, places, layer.heads)
    mid, u_out = layer.out.forward(attended, x_NC, room.of(layer.out, x_NC))
    normed, rstd_mid = ops.norm(mid, layer.norm_mid, layer.eps, room.normed)
    gu, u_up = layer.up.forward(normed, out=room.of(layer.up, x_NC))
    us = (u_qkv, u_out, u_up)
    kept = Kept(x_NC, rstd_in, raw, qkv, attended, lse, mid, rstd_mid, gu, us)
    return kept, ops.swiglu(gu, room.h)


def backward(
    ops: ModuleType,
    layer: Layer,
    kept: Kept,
    g_NC: Tensor,
    places: Places,
    room: Room,
    *,
    need_dx: bool,
) -> Tensor | None:
    """dL/dx from dL/dy, into g itself; factors' gradients are added to. Uses up `kept`."""
    u_qkv, u_out, u_up, u_down = kept.us
    gh, v = layer.down.input_gradient(g_NC)
    h = ops.swiglu_backward(kept.gu, gh)  # gu is its own gradient from here on
    layer.down.add_gradients(h, u_down, g_NC, v)
    normed, _ = ops.norm(kept.mid, layer.norm_mid, layer.eps, room.normed)
    gn, v = layer.up.input_gradient(kept.gu)
    layer.up.add_gradients(normed, u_up, kept.gu, v)
    ops.norm_backward(kept.mid, layer.norm_mid, kept.rstd_mid, gn, g_NC)
    ga, v = layer.out.input_gradient(g_NC)
    layer.out.add_gradients(kept.attended, u_out, g_NC, v)
    gq = ops.attention_backward(kept.qkv, kept.attended, kept.lse, ga, places, layer.heads)
    if layer.rotated:
        ops.rotate(gq, places, layer.heads, back=True)
    if kept.raw_heads is not None:
        ops.head_norm_backward(kept.raw_heads, layer.head_norms, gq, layer.heads)
    normed, _ = ops.norm(kept.x, layer.norm_in, layer.eps, room.normed)
    if not need_dx:
        layer.qkv.add_gradients(normed, u_qkv, gq)
        return None
    gn, v = layer.qkv.input_gradient(gq)
    layer.qkv.add_gradients(normed, u_qkv, gq, v)
    ops.norm_backward(kept.x, layer.norm_in, kept.rstd_in, gn, g_NC)
    return g_NC


class LayerFunction(torch.autograd.Function):
    """One decoder layer. Gradients of factors go past autograd, straight into their `.grad`.

    With checkpointing only the input is kept (arXiv:1604.06174, a segment a layer).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NC: Tensor,
        ops: ModuleType,
        layer: Layer,
        places: Places,
        room: Room,
        need_dx: bool,
        checkpointing: bool,
    ) -> Tensor:
        """See `forward`."""
        y_NC, kept = forward(ops, layer, x_NC, places, room)
        ctx.kept = x_NC if checkpointing else kept
        ctx.given = ops, layer, places, room, need_dx
        return y_NC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_NC: Tensor) -> tuple[Tensor | None, ...]:
        """See `backward`."""
        ops, layer, places, room, need_dx = ctx.given
        kept, ctx.kept = ctx.kept, None
        if isinstance(kept, Tensor):
            kept = again(ops, layer, kept, places, room)
        gx = backward(ops, layer, kept, g_NC.contiguous(), places, room, need_dx=need_dx)
        if room.pool is not None:
            room.pool.give(kept.qkv, kept.mid, kept.gu)
        return gx, None, None, None, None, None, None
