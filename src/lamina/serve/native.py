"""The pass in C++: bfloat16 decoders of the plain kind on processors with AVX-512 BF16.

A row's numbers do not depend on the rest of the batch, to the bit: `kernels/decode.cpp` sums in
one order whatever shares the pass. Tables of addresses are int64, as that file lays them out.
"""

import ctypes
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lamina.bases.families import backbone, head, linears
from lamina.bases.supplied import SuppliedLinear
from lamina.core import heap
from lamina.kernels import native as cpu_kernels
from lamina.kernels.build import library
from lamina.kernels.choose import chosen
from lamina.kernels.native import LANES
from lamina.lowrank.attach import check_layer
from lamina.lowrank.maths import LayerFactors
from lamina.serve.batch import BLOCK, Laid, Span, lay_out
from lamina.serve.packing import (
    ADDRESSES,
    PANEL,
    Arena,
    Packed,
    joined,
    packed_bytes,
    panels,
    update_words,
)
from lamina.train.fused import why_not as why_not_plain

TILE = 12
"""Rows of a product's tile, as in the source."""
PART = 4
"""Rows whose low-rank terms are one task."""
QUERIES = 24
"""Queries of a tile of attention."""
_STATIC_ROTARY = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embedding whose angles depend on a token's place alone."""


class _Group(NamedTuple):
    """Linears of a decoder layer that read one tensor."""

    members: tuple[str, ...]
    """Under the decoder layer's name."""
    interleaved: bool
    """Whether chunks of 16 outputs alternate between the members."""


GROUPS = (
    _Group(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), False),
    _Group(("self_attn.o_proj",), False),
    _Group(("mlp.gate_proj", "mlp.up_proj"), True),
    _Group(("mlp.down_proj",), False),
)


def why_not(model: nn.Module) -> str:
    """Why a model cannot be served by this decoder, '' where it can."""
    reason = why_not_plain(model)
    if reason:
        return reason
    config: Any = model.config
    inner: Any = backbone(model)
    size = inner.layers[0].self_attn.head_dim
    if inner.rotary_emb.rope_type not in _STATIC_ROTARY:
        return f"its rotary embedding is {inner.rotary_emb.rope_type}"
    spec = head(model)
    if spec.softcap is not None or spec.scale != 1.0:
        return "its logits are scaled"
    outputs = [module.out_features for module in linears(model).values()]
    if any(out % PANEL for out in outputs):
        return f"linears whose outputs are no multiple of {PANEL}"
    if any(isinstance(module, SuppliedLinear) for module in linears(model).values()):
        return "its weights are packed, or not in memory"
    weight = inner.embed_tokens.weight
    channels = (config.hidden_size, config.intermediate_size)
    kernels, reason = chosen(weight.dtype, weight.device, channels, size)
    return "" if kernels is cpu_kernels else reason or f"on {weight.device.type}"


class NativeDecoder:
    """See `Decoder`. Takes the model's linears apart: after this the model cannot be run, unless
    `keep` is given, which takes the memory of the weights once more.

    layer_bits: 16 keeps factors in bfloat16, 8 in bytes with a scale for each rank.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        threads: int | None = None,
        layer_bits: int = 16,
        keep: bool = False,
    ) -> None:
        config: Any = model.config
        inner: Any = backbone(model)
        attention = inner.layers[0].self_attn
        self._keep_model = keep
        self._threads, self._bits = threads or torch.get_num_threads(), layer_bits
        self._heads, self._keys = config.num_attention_heads, config.num_key_value_heads
        self._size, self._scale = attention.head_dim, float(attention.scaling)
        self._channels, self._wide = config.hidden_size, config.intermediate_size
        self._eps = float(inner.layers[0].input_layernorm.variance_epsilon)
        self._embeddings: Tensor = inner.embed_tokens.weight.data
        self._rotary: nn.Module = inner.rotary_emb
        self._angles = torch.empty(2, 0, self._size // 2)
        self._linears = {
            name: nn.Linear(linear.in_features, linear.out_features, device="meta")
            for name, linear in linears(model).items()
        }
        self._prefix = next(
            name for name, module in model.named_modules() if module is inner.layers
        )
        self._kept: list[Tensor] = []  # whatever tables point at
        packed: list[Any] = [*self._linears.values(), head(model)]
        self._arena = Arena(packed_bytes(*x.weight.shape) for x in packed)
        self._tail = self._head_table(model)
        self._layers = np.array([self._layer_table(layer) for layer in inner.layers], np.int64)
        self._serial = itertools.count()
        self._pool: tuple[Tensor, Tensor] | None = None
        self._room: dict[str, Tensor] = {}

    # -- packing

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _head_table(self, model: nn.Module) -> np.ndarray:
        weight = head(model).weight.data
        self.vocabulary = weight.shape[0]
        words = self._linear_words([weight], [None], interleaved=False)
        norm: Any = backbone(model).norm
        return np.array([*words, self._keep(norm.weight.data)], np.int64)

    def _layer_table(self, layer: Any) -> list[int]:
        words: list[int] = []
        for group in GROUPS:
            members = [layer.get_submodule(name) for name in group.members]
            weights = [member.weight.data for member in members]
            biases = [None if m.bias is None else m.bias.data for m in members]
            words += self._linear_words(weights, biases, interleaved=group.interleaved)
            for member in () if self._keep_model else members:
                member.weight = None
            heap.give_back()
        attention = layer.self_attn
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        words += [
            self._keep(layer.input_layernorm.weight.data),
            self._keep(layer.post_attention_layernorm.weight.data),
            *(0 if norm is None else self._keep(norm.weight.data) for norm in norms),
            int(getattr(attention, "use_rope", True)),
        ]
        return words

    def _linear_words(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor | None], *, interleaved: bool
    ) -> list[int]:
        weight_OI = joined(weights, interleaved)
        bias = 0
        if any(b is not None for b in biases):
            parts = [
                w.new_zeros(len(w)) if b is None else b
                for w, b in zip(weights, biases, strict=True)
            ]
            bias = self._keep(joined(parts, interleaved).float())
        ends = np.cumsum([len(w) // LANES for w in weights]).tolist()
        ends += [ends[-1]] * (3 - len(ends))
        inputs = weight_OI.shape[1]
        packed = panels(weight_OI, PANEL)
        outputs = packed.shape[0] * PANEL
        return [self._arena.put(packed), bias, inputs, outputs, int(interleaved), *ends]

    def load(self, factors: LayerFactors) -> Packed:
        """See `Decoder.load`."""
        check_layer(factors, self._linears, "the layer")
        tensors: list[Tensor] = []
        table, widest = [], LANES
        for index in range(len(self._layers)):
            for group in GROUPS:
                parts = [factors.get(f"{self._prefix}.{index}.{name}") for name in group.members]
                words, ranks = update_words(parts, tensors, self._bits)
                table.append(words)
                widest = max(widest, ranks)
        arena = Arena(t.nbytes for t in tensors)
        addresses = [arena.put(tensor) for tensor in tensors]
        words_of = np.array(table, np.int64)
        for place in ADDRESSES:  # which are numbers of tensors until now, 0 for none
            words_of[:, place] = np.array([0, *addresses])[words_of[:, place]]
        return Packed(next(self._serial), arena, words_of, widest)

    # -- running

    @property
    def block_bytes(self) -> int:
        """Keys and values, bfloat16."""
        return 4 * len(self._layers) * int(self._keys * self._size) * BLOCK

    def reserve(self, blocks: int) -> None:
        """See `Decoder.reserve`. Pages of the cache take memory once they are written."""
        size = self.block_bytes // 2 * blocks
        self._pool = (Arena([size]).room, Arena([size]).room)

    def run(self, spans: Sequence[Span]) -> Tensor:
        """See `Decoder.run`."""
        assert self._pool is not None, "reserve first"
        laid = lay_out(spans)
        n, wanted = len(laid.ids_N), len(laid.wanted_M)
        x_NC = self._embeddings.index_select(0, laid.ids_N)
        cos_NR, sin_NR = self._turns(laid.position_N)
        pieces, piece_of, alike, u_size = _pieces(laid)
        tasks = self._tasks(laid)
        batch = [n, len(laid.past_S), laid.blocks_SW.shape[1], len(pieces), len(tasks), wanted]
        sizes = [len(self._layers), self._channels, self._wide, self._heads, self._keys]
        sizes += [self._size, self._threads]
        width = (self._heads + 2 * self._keys) * self._size
        terms = 0 if alike.all() else n * max(width, 2 * self._wide, self._channels)
        logits = self._scratch("logits", wanted * self._tail[3], torch.float32)
        arrays = (
            pieces,
            piece_of,
            alike,
            laid.start_S,
            laid.past_S,
            laid.seq_N,
            laid.blocks_SW,
        )
        library().decode_pass(
            *map(_address, (self._layers, self._tail, np.array(sizes, np.int64))),
            ctypes.c_float(self._eps),
            ctypes.c_float(self._scale),
            _address(np.array(batch, np.int64)),
            *map(_address, (*arrays, tasks, laid.wanted_M)),
            *map(_pointer, (*self._pool, cos_NR, sin_NR, x_NC)),
            *(
                _pointer(self._scratch(name, size, torch.bfloat16))
                for name, size in (
                    ("normed", max(n, wanted) * self._channels),
                    ("qkv", n * width),
                    ("wide", n * max(self._wide, self._heads * self._size)),
                    ("u", u_size),
                )
            ),
            _pointer(self._scratch("terms", terms, torch.float32)),
            _pointer(logits),
        )
        return logits[: wanted * self._tail[3]].view(wanted, int(self._tail[3]))[
            :, : self.vocabulary
        ]

    def _scratch(self, name: str, size: int, dtype: torch.dtype) -> Tensor:
        """A buffer that is kept from pass to pass, at least this large."""
        room = self._room.get(name)
        if room is None or len(room) < size:
            room = self._room[name] = torch.empty(int(size), dtype=dtype)
        return room

    def _turns(self, position_N: np.ndarray) -> tuple[Tensor, Tensor]:
        """Cosines and sines (N, D / 2) float32, as the model's rotary embedding has them."""
        most = int(position_N.max()) + 1
        if most > self._angles.shape[1]:
            places = torch.arange(max(most, 2 * self._angles.shape[1], 1024))
            like = self._embeddings.new_empty(1)
            turned = self._rotary(like, places[None])
            half = self._size // 2
            self._angles = torch.stack([t[0, :, :half].float() for t in turned])
        index = torch.from_numpy(position_N)
        return self._angles[0][index], self._angles[1][index]

    def _tasks(self, laid: Laid) -> np.ndarray:
        """(T, 3) sequence, head, first row; the long ones first."""
        single, tiled = [], []
        for s, (lo, hi) in enumerate(itertools.pairwise(laid.start_S.tolist())):
            if hi - lo == 1:
                single += [(s, j, lo) for j in range(self._keys)]
            else:
                tiled += [(s, h, row) for row in range(lo, hi, QUERIES) for h in range(self._heads)]
        return np.array(tiled[::-1] + single, np.int64)


def _pieces(laid: Laid) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Runs cut at parts' borders (P, 4): table, lo, hi, place in u, lowest layers first in each
    part; first piece of each part; of each tile, whether its rows are all under the same layers;
    what u takes."""
    n = len(laid.ids_N)
    by_part: list[list[list[int]]] = [[] for _ in range(-(-n // PART))]
    alike = np.ones(-(-n // TILE), dtype=np.int64)
    used = 0
    for run in laid.runs:
        assert isinstance(run.layer, Packed)
        table, widest = _at(run.layer.table), run.layer.widest
        for border in (run.lo, run.hi):
            if border % TILE and border < n:
                alike[border // TILE] = 0
        for part in range(run.lo // PART, -(-run.hi // PART)):
            lo, hi = max(run.lo, part * PART), min(run.hi, (part + 1) * PART)
            by_part[part].append([table, lo, hi, used])
            used += (hi - lo) * widest
    first = np.cumsum([0, *map(len, by_part)], dtype=np.int64)
    pieces = [piece for part in by_part for piece in part]
    return np.array(pieces, np.int64).reshape(-1, 4), first, alike, used


def _address(array: np.ndarray) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)  # which keeps the array


def _at(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
