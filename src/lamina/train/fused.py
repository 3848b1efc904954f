"""The decoder as one forward and one backward a layer over packed rows, for training and scoring.

What transformers' own modules do, with the products of linears that read one tensor made one, no
padding, no sequence seeing another, and everything between the products in `lamina.kernels`. A
layer keeps its input, queries/keys/values, attention, and the MLP's two products; the rest is
computed again in the backward. With checkpointing it keeps its input alone. Only for decoders of
the plain kind (`why_not`); before it is used it is compared with the model's own forward.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lamina.bases.families import backbone
from lamina.core import heap
from lamina.kernels.choose import chosen
from lamina.kernels.sizes import Heads, Places
from lamina.lowrank.group import Group
from lamina.lowrank.supplied import Scratch, group_of
from lamina.tokens.batch import Batch

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3"})
"""Model types whose decoder layers are of the plain kind."""
TOLERANCE = {torch.bfloat16: 3e-2, torch.float32: 1e-4, torch.float64: 1e-5}
"""Largest difference to the model's own layers on the check's sequences (`_difference`); models
take their norms in float32, whatever their dtype."""
FILLED = 32
"""Tokens are filled up to a multiple of it. torch's CPU products keep code for every number of
rows that they have met: half a MB and more a product, a thousand of them."""
_PROBE = (3, 17)
"""Lengths of the check's sequences."""


@dataclass(frozen=True, eq=False)
class _Layer:
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
        return self.qkv, self.out, self.up, self.down

    @property
    def learns(self) -> bool:
        return any(group.learns for group in self.groups)


class _Room(NamedTuple):
    """Where what only one product reads is written, layer after layer. Made anew at each layer it
    would leave a hole beside what is kept, which the next one of the same size does not fit (glibc
    before 2.38 asks for more than it needs when it aligns)."""

    normed: Tensor | None
    """(N, C)."""
    h: Tensor | None
    """(N, F)."""


class _Kept(NamedTuple):
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


def _forward(
    ops: ModuleType, layer: _Layer, x_NC: Tensor, places: Places, room: _Room
) -> tuple[Tensor, _Kept]:
    """x + attention(norm(x)), then + mlp(norm(that)). Mutates nothing that it is given."""
    kept, h_NF = _until_down(ops, layer, x_NC, places, room)
    y_NC, u_down = layer.down.forward(h_NF, kept.mid)
    return y_NC, kept._replace(us=(*kept.us, u_down))


def _again(ops: ModuleType, layer: _Layer, x_NC: Tensor, places: Places, room: _Room) -> _Kept:
    """What `_forward` kept, to the bit, from the layer's input."""
    kept, h_NF = _until_down(ops, layer, x_NC, places, room)
    return kept._replace(us=(*kept.us, layer.down.narrow(h_NF)))


def _until_down(
    ops: ModuleType, layer: _Layer, x_NC: Tensor, places: Places, room: _Room
) -> tuple[_Kept, Tensor]:
    """All of a layer but its last product: what is kept so far, and what that product reads."""
    normed, rstd_in = ops.norm(x_NC, layer.norm_in, layer.eps, room.normed)
    qkv, u_qkv = layer.qkv.forward(normed)
    raw = None
    if layer.head_norms is not None:
        raw = ops.head_norm(qkv, layer.head_norms, layer.eps, layer.heads)
    if layer.rotated:
        ops.rotate(qkv, places, layer.heads)
    attended, lse = ops.attention(qkv, places, layer.heads)
    mid, u_out = layer.out.forward(attended, x_NC)
    normed, rstd_mid = ops.norm(mid, layer.norm_mid, layer.eps, room.normed)
    gu, u_up = layer.up.forward(normed)
    us = (u_qkv, u_out, u_up)
    kept = _Kept(x_NC, rstd_in, raw, qkv, attended, lse, mid, rstd_mid, gu, us)
    return kept, ops.swiglu(gu, room.h)


def _backward(
    ops: ModuleType,
    layer: _Layer,
    kept: _Kept,
    g_NC: Tensor,
    places: Places,
    room: _Room,
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


class _LayerFunction(torch.autograd.Function):
    """One decoder layer. Gradients of factors go past autograd, straight into their `.grad`.

    With checkpointing only the input is kept (arXiv:1604.06174, a segment a layer).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NC: Tensor,
        ops: ModuleType,
        layer: _Layer,
        places: Places,
        room: _Room,
        need_dx: bool,
        checkpointing: bool,
    ) -> Tensor:
        y_NC, kept = _forward(ops, layer, x_NC, places, room)
        ctx.kept = x_NC if checkpointing else kept
        ctx.given = ops, layer, places, room, need_dx
        return y_NC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_NC: Tensor) -> tuple[Tensor | None, ...]:
        ops, layer, places, room, need_dx = ctx.given
        kept, ctx.kept = ctx.kept, None
        if isinstance(kept, Tensor):
            kept = _again(ops, layer, kept, places, room)
        gx = _backward(ops, layer, kept, g_NC.contiguous(), places, room, need_dx=need_dx)
        return gx, None, None, None, None, None, None


class FusedDecoder:
    """A model's decoder, with whatever is attached to its linears, over packed rows."""

    def __init__(
        self,
        model: nn.Module,
        ops: ModuleType,
        layers: tuple[_Layer, ...],
        *,
        checkpointing: bool = False,
    ) -> None:
        self.model, self.checkpointing = model, checkpointing
        self._ops, self._layers = ops, layers
        self._inner: Any = backbone(model)
        learning = [index for index, layer in enumerate(layers) if layer.learns]
        self._first = min(learning, default=len(layers))

    @property
    def kernels(self) -> str:
        """`native`, `accelerated` or `reference`."""
        return self._ops.__name__.rpartition(".")[2]

    def predicting(self, batch: Batch) -> Tensor:
        """(N, C) the hidden states that predict the batch's targets, in the model's dtype."""
        ids_N, starts_S, positions = _packed(batch)
        device = self._inner.embed_tokens.weight.device
        return self._hidden(ids_N.to(device), starts_S, positions.to(device))

    def _hidden(self, ids_N: Tensor, starts_S: Tensor, positions: Tensor) -> Tensor:
        places = self._places(ids_N, starts_S)
        frozen, trained = self._layers[: self._first], self._layers[self._first :]
        with torch.no_grad():
            x_NC: Tensor = self._inner.embed_tokens(ids_N)
            room = self._room(x_NC)
            for layer in self._layers:
                for group in layer.groups:
                    group.load()
            for layer in frozen:
                x_NC, _ = _forward(self._ops, layer, x_NC, places, room)
        learning = bool(trained) and torch.is_grad_enabled()
        if learning:
            x_NC.requires_grad_()
        for index, layer in enumerate(trained):
            if learning:
                x_NC = _LayerFunction.apply(  # type: ignore[no-untyped-call]
                    x_NC, self._ops, layer, places, room, index > 0, self.checkpointing
                )
            else:
                x_NC, _ = _forward(self._ops, layer, x_NC, places, room)
        chosen_NC: Tensor = self._inner.norm(x_NC.index_select(0, positions))
        return chosen_NC

    def _room(self, x_NC: Tensor) -> _Room:
        if x_NC.device.type != "cpu":
            return _Room(None, None)  # allocators of other devices keep blocks by size
        config: Any = self.model.config
        wide = config.intermediate_size
        return _Room(torch.empty_like(x_NC), x_NC.new_empty(len(x_NC), wide))

    def _places(self, ids_N: Tensor, starts_S: Tensor) -> Places:
        """Each token's place in its own sequence, as the model's rotary embedding has it."""
        lengths = starts_S.diff()
        place_N = torch.arange(len(ids_N)) - starts_S[:-1].repeat_interleave(lengths)
        dtype = self._inner.embed_tokens.weight.dtype
        like = torch.empty(1, dtype=dtype, device=ids_N.device)
        cos, sin = self._inner.rotary_emb(like, place_N[None].to(ids_N.device))
        half = cos.shape[-1] // 2
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return Places(starts_S, *(t[0, :, :half].to(wide).contiguous() for t in (cos, sin)))


def _packed(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids (N,) without padding, where rows start, and positions among the N; N is a multiple
    of FILLED."""
    width = batch.ids.shape[1]
    real_BT = torch.arange(width)[None] < batch.lengths[:, None]
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), batch.lengths.cumsum(0)])
    positions = (
        batch.positions
        + (starts[:-1] - torch.arange(len(batch.lengths)) * width)[batch.row_of_target]
    )
    ids_N = batch.ids[real_BT]
    if filler := -len(ids_N) % FILLED:  # a sequence of its own, behind all others, without targets
        ids_N = torch.cat([ids_N, ids_N.new_zeros(filler)])
        starts = torch.cat([starts, starts[-1:] + filler])
    return ids_N, starts, positions


def fuse(model: nn.Module, *, checkpointing: bool = False) -> tuple[FusedDecoder | None, str]:
    """The fused decoder of a model as it stands, or None and why it cannot be had.

    `checkpointing`: keep each layer's input only, and compute the layer again in the backward.
    Linears that read one tensor get their weights side by side (the bytes stay the same). Where
    the native kernels are missing, the second value says why, beside the decoder.
    """
    reason = why_not(model)
    if reason:
        return None, reason
    inner: Any = backbone(model)
    config: Any = model.config
    heads = Heads(
        config.num_attention_heads,
        config.num_key_value_heads,
        inner.layers[0].self_attn.head_dim,
        inner.layers[0].self_attn.scaling,
    )
    weight = inner.embed_tokens.weight
    channels = (config.hidden_size, config.intermediate_size)
    ops, missing = chosen(weight.dtype, weight.device, channels, heads.size)
    grouped = partial(group_of, scratch=Scratch(), like=weight.data)
    layers = []
    for each in inner.layers:
        layers.append(_layer(each, heads, grouped))
        heap.give_back()  # the weights as they lay before: holes that nothing of their size fits
    decoder = FusedDecoder(model, ops, tuple(layers), checkpointing=checkpointing)
    difference = _difference(decoder)
    if not difference <= TOLERANCE[weight.dtype]:
        return None, f"its layers differ from the model's own by {difference:.1e}"
    return decoder, missing


def why_not(model: nn.Module) -> str:
    """Why a model's decoder is not of the plain kind, '' where it is."""
    config: Any = model.config
    inner: Any = backbone(model)
    if config.model_type not in FAMILIES:
        return f"{config.model_type} decoders are not fused yet"
    if inner.embed_tokens.weight.dtype not in TOLERANCE:
        return f"no kernels for {inner.embed_tokens.weight.dtype}"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "its attention looks back over a window only"
    return ""


def _layer(module: Any, heads: Heads, grouped: Callable[[Sequence[Any]], Group]) -> _Layer:
    attention, mlp = module.self_attn, module.mlp
    norms: list[Any] = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    return _Layer(
        qkv=grouped([attention.q_proj, attention.k_proj, attention.v_proj]),
        out=grouped([attention.o_proj]),
        up=grouped([mlp.gate_proj, mlp.up_proj]),
        down=grouped([mlp.down_proj]),
        norm_in=module.input_layernorm.weight.data,
        norm_mid=module.post_attention_layernorm.weight.data,
        eps=module.input_layernorm.variance_epsilon,
        heads=heads,
        head_norms=(norms[0].weight.data, norms[1].weight.data) if all(norms) else None,
        rotated=bool(getattr(attention, "use_rope", True)),
    )


@torch.no_grad()
def _difference(decoder: FusedDecoder) -> float:
    """Largest difference to the model's own forward at any layer, from x to y in the model's own:
    |y' - y| / (|y - x| + |x| / 10), the mean over tokens.

    Each layer starts from what the model's own forward gives it: a trained stack can turn the
    rounding of one layer, its own too, into any difference ten layers later, and then the last
    hidden states of two right forwards tell nothing of either. The tenth is there because what is
    rounded is the sum, of which a layer may add little.
    """
    inner: Any = backbone(decoder.model)
    device = inner.embed_tokens.weight.device
    vocabulary = inner.embed_tokens.weight.shape[0]
    rows = [((torch.arange(n) * 7919 + n) % vocabulary).to(device) for n in _PROBE]
    xs, last_NC = _own_states(inner, rows)
    starts = torch.tensor([0, *_PROBE]).cumsum(0)
    places, room = decoder._places(torch.cat(rows), starts), decoder._room(xs[0])
    found = [
        _apart(inner.embed_tokens(torch.cat(rows)), xs[0], xs[0] * 0),
        _apart(inner.norm(xs[-1]), last_NC, last_NC * 0),
    ]
    for layer, x_NC, y_NC in zip(decoder._layers, xs, xs[1:], strict=False):
        for group in layer.groups:
            group.load()
        found.append(_apart(_forward(decoder._ops, layer, x_NC, places, room)[0], y_NC, x_NC))
    return float(torch.stack(found).max())  # nan where any is


def _own_states(inner: Any, rows: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """What goes into each layer and out of the last, (N, C) each; and the final hidden states."""
    given: list[list[Tensor]] = [[] for _ in range(len(inner.layers) + 1)]

    def keep(place: int, value: Any) -> None:
        given[place].append((value[0] if isinstance(value, tuple) else value).flatten(0, -2))

    hooks = [
        layer.register_forward_pre_hook(lambda _, args, place=place: keep(place, args))
        for place, layer in enumerate(inner.layers)
    ]
    hooks.append(inner.layers[-1].register_forward_hook(lambda _, args, y: keep(-1, y)))
    try:
        last = [inner(input_ids=row[None], use_cache=False).last_hidden_state[0] for row in rows]
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat(each) for each in given], torch.cat(last)


def _apart(ours_NC: Tensor, y_NC: Tensor, x_NC: Tensor) -> Tensor:
    """|y' - y| / (|y - x| + |x| / 10), the mean over tokens, in float64."""
    ours_NC, y_NC, x_NC = ours_NC.double(), y_NC.double(), x_NC.double()
    size_N = (y_NC - x_NC).norm(dim=1) + x_NC.norm(dim=1) / 10
    distance_N: Tensor = (ours_NC - y_NC).norm(dim=1) / size_N
    return distance_N.mean()
