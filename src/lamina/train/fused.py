"""The decoder as one forward and one backward a layer over packed rows, for training and scoring.

What transformers' own modules do, without padding, no sequence seeing another, a layer as
`train.layer` has it. Only for decoders of the plain kind (`why_not`); before it is used it is
compared with the model's own forward.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lamina.bases.families import backbone
from lamina.core import heap
from lamina.kernels import native
from lamina.kernels.choose import chosen
from lamina.kernels.sizes import Heads, Places
from lamina.lowrank.group import Group
from lamina.lowrank.supplied import Scratch, group_of
from lamina.tokens.batch import Batch
from lamina.train.layer import Layer, LayerFunction, Pool, Room, forward
from lamina.train.prefix import Prefixes

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


class FusedDecoder:
    """A model's decoder, with whatever is attached to its linears, over packed rows."""

    def __init__(
        self,
        model: nn.Module,
        ops: ModuleType,
        layers: tuple[Layer, ...],
        *,
        checkpointing: bool = False,
        prefixes: Prefixes | None = None,
    ) -> None:
        self.model, self.checkpointing = model, checkpointing
        self._ops, self._layers = ops, layers
        self._pool = Pool()
        self._inner: Any = backbone(model)
        learning = [index for index, layer in enumerate(layers) if layer.learns]
        self._first = min(learning, default=len(layers))
        self._prefixes = prefixes if self._first else None

    @property
    def kernels(self) -> str:
        """`native`, `accelerated` or `reference`."""
        return self._ops.__name__.rpartition(".")[2]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self._inner.embed_tokens.weight.device
        return device

    @property
    def resident(self) -> bool:
        """Whether a pass is the same kernels over the same memory each time: all weights lie
        there, and nothing is looked up."""
        groups = [type(group) for layer in self._layers for group in layer.groups]
        return self._prefixes is None and set(groups) == {Group}

    def predicting(self, batch: Batch) -> Tensor:
        """(N, C) the hidden states that predict the batch's targets, in the model's dtype."""
        ids_N, starts_S, positions = packed(batch)
        ids_N = ids_N.to(self.device)
        places = self.places(ids_N, starts_S)
        self.load()
        x_NC = None
        if self._prefixes is not None:
            rows = len(batch.lengths)
            x_NC = self._remembered(self._prefixes, ids_N, starts_S[: rows + 1])
        return self.hidden(ids_N, places, positions.to(self.device), x_NC)

    def load(self) -> None:
        """Take the factors as they stand; before every forward."""
        for layer in self._layers:
            for group in layer.groups:
                group.load()

    def hidden(
        self, ids_N: Tensor, places: Places, positions: Tensor, x_NC: Tensor | None = None
    ) -> Tensor:
        """The hidden states at some positions among packed tokens, all on the decoder's device.

        `x_NC`: what enters the first trained layer, where that is known.
        """
        trained = self._layers[self._first :]
        if x_NC is None:
            with torch.no_grad():
                (x_NC,) = self._below([ids_N], [places])
        learning = bool(trained) and torch.is_grad_enabled()
        room = self._room(x_NC)
        if learning and x_NC.device.type == "cpu":
            room = room._replace(pool=self._pool)
        if learning:
            x_NC.requires_grad_()
        for index, layer in enumerate(trained):
            if learning:
                x_NC = LayerFunction.apply(  # type: ignore[no-untyped-call]
                    x_NC, self._ops, layer, places, room, index > 0, self.checkpointing
                )
            else:
                x_NC, _ = forward(self._ops, layer, x_NC, places, room)
        chosen_NC: Tensor = self._inner.norm(x_NC.index_select(0, positions))
        return chosen_NC

    def _below(self, ids: Sequence[Tensor], places: Sequence[Places]) -> list[Tensor]:
        """What enters the first trained layer, (N, C) each, of packed rows (N,) that are computed
        apart, layer by layer."""
        xs: list[Tensor] = [self._inner.embed_tokens(ids_N) for ids_N in ids]
        rooms = [self._room(x_NC) for x_NC in xs]
        for layer in self._layers[: self._first]:
            with layer.held() if len(xs) > 1 else nullcontext():
                xs = [
                    forward(self._ops, layer, *given)[0]
                    for given in zip(xs, places, rooms, strict=True)
                ]
        return xs

    def _remembered(self, prefixes: Prefixes, ids_N: Tensor, starts_S: Tensor) -> Tensor:
        """The same, where rows are remembered: every row by itself, what fills up is zeros."""
        cuts = list(pairwise(starts_S.tolist()))
        with torch.no_grad():
            found = prefixes.of([ids_N[a:b] for a, b in cuts], self._alone)
        x_NC = found[0].new_zeros(len(ids_N), found[0].shape[1])
        for (a, b), x_TC in zip(cuts, found, strict=True):
            x_NC[a:b] = x_TC
        return x_NC

    def _alone(self, rows: Sequence[Tensor]) -> list[Tensor]:
        filled = [_filled(ids_T, torch.tensor([0, len(ids_T)])) for ids_T in rows]
        xs = self._below([ids for ids, _ in filled], [self.places(*each) for each in filled])
        return [x_NC[: len(ids_T)] for x_NC, ids_T in zip(xs, rows, strict=True)]

    def _room(self, x_NC: Tensor) -> Room:
        if x_NC.device.type != "cpu":
            return Room(None, None)  # allocators of other devices keep blocks by size
        config: Any = self.model.config
        wide = config.intermediate_size
        return Room(torch.empty_like(x_NC), x_NC.new_empty(len(x_NC), wide))

    def places(self, ids_N: Tensor, starts_S: Tensor) -> Places:
        """Each token's place in its own sequence, as the model's rotary embedding has it."""
        lengths = starts_S.diff()
        place_N = torch.arange(len(ids_N)) - starts_S[:-1].repeat_interleave(lengths)
        dtype = self._inner.embed_tokens.weight.dtype
        like = torch.empty(1, dtype=dtype, device=ids_N.device)
        cos, sin = self._inner.rotary_emb(like, place_N[None].to(ids_N.device))
        half = cos.shape[-1] // 2
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return Places(starts_S, *(t[0, :, :half].to(wide).contiguous() for t in (cos, sin)))


def packed(batch: Batch, filled: int = FILLED) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids (N,) without padding, where rows start, and positions among the N; N is a multiple
    of `filled`."""
    width = batch.ids.shape[1]
    real_BT = torch.arange(width)[None] < batch.lengths[:, None]
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), batch.lengths.cumsum(0)])
    positions = (
        batch.positions
        + (starts[:-1] - torch.arange(len(batch.lengths)) * width)[batch.row_of_target]
    )
    return *_filled(batch.ids[real_BT], starts, filled), positions


def _filled(ids_N: Tensor, starts_S: Tensor, filled: int = FILLED) -> tuple[Tensor, Tensor]:
    """Packed rows with a sequence of zeros behind them, up to a multiple of `filled`."""
    if filler := -len(ids_N) % filled:
        ids_N = torch.cat([ids_N, ids_N.new_zeros(filler)])
        starts_S = torch.cat([starts_S, starts_S[-1:] + filler])
    return ids_N, starts_S


def fuse(
    model: nn.Module, *, checkpointing: bool = False, prefixes: Prefixes | None = None
) -> tuple[FusedDecoder | None, str]:
    """The fused decoder of a model as it stands, or None and why it cannot be had.

    `checkpointing`: keep each layer's input only, and compute the layer again in the backward.
    `prefixes`: where what lies below the first trained layer is remembered, row by row.
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
        if ops is native:
            for group in layers[-1].groups:
                group.use_native()
        heap.give_back()  # the weights as they lay before: holes that nothing of their size fits
    decoder = FusedDecoder(
        model, ops, tuple(layers), checkpointing=checkpointing, prefixes=prefixes
    )
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


def _layer(module: Any, heads: Heads, grouped: Callable[[Sequence[Any]], Group]) -> Layer:
    attention, mlp = module.self_attn, module.mlp
    norms: list[Any] = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    return Layer(
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
    places, room = decoder.places(torch.cat(rows), starts), decoder._room(xs[0])
    found = [
        _apart(inner.embed_tokens(torch.cat(rows)), xs[0], xs[0] * 0),
        _apart(inner.norm(xs[-1]), last_NC, last_NC * 0),
    ]
    for layer, x_NC, y_NC in zip(decoder._layers, xs, xs[1:], strict=False):
        for group in layer.groups:
            group.load()
        found.append(_apart(forward(decoder._ops, layer, x_NC, places, room)[0], y_NC, x_NC))
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
