"""The pass through transformers' own modules: any family, dtype and device, packed weights too.

The rows of a pass are one sequence to the model; its attention looks each up in its own blocks,
and its linears add each row's own low-rank terms. Slower than the native pass; what a row gets
differs from what it gets alone by rounding only.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lamina.bases.families import backbone, head, linears, logits
from lamina.core.errors import BaseError
from lamina.lowrank.attach import check_layer
from lamina.lowrank.maths import LayerFactors
from lamina.serve.batch import BLOCK, Laid, Run, Span, lay_out

ATTENTION = "lamina_blocks"
"""What transformers knows the attention by."""
_UNSUPPORTED = ("s_aux", "position_bias", "softcap")
"""Arguments of attention that this one would ignore."""


class Plain:
    """A layer's factors as tensors: by linear A (R, I) and scaled B (O, R), in the base's dtype."""

    def __init__(self, key: int, factors: dict[str, tuple[Tensor, Tensor]]) -> None:
        self.key, self.factors = key, factors

    @property
    def bytes(self) -> int:
        """What they take in memory."""
        return sum(t.numel() * t.element_size() for pair in self.factors.values() for t in pair)


class _Served(nn.Module):
    """A frozen linear that adds each run of rows its layer's term."""

    def __init__(self, base: nn.Linear, name: str, decoder: "GenericDecoder") -> None:
        super().__init__()
        self.base = base
        self._name, self._runs = name, decoder.runs

    @property
    def weight(self) -> Tensor:
        """Some models read `linear.weight` for its dtype."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """x (1, N, I) -> (1, N, O)."""
        y: Tensor = self.base(x)
        rows_NI, rows_NO = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        for run in self._runs:
            assert isinstance(run.layer, Plain)
            if pair := run.layer.factors.get(self._name):
                a_RI, b_OR = pair
                rows_NO[run.lo : run.hi].addmm_(rows_NI[run.lo : run.hi] @ a_RI.T, b_OR.T)
        return y


class GenericDecoder:
    """See `Decoder`. The model keeps its weights; its linears and its attention are replaced."""

    def __init__(self, model: nn.Module) -> None:
        self.runs: list[Run] = []
        self._model = model
        inner: Any = backbone(model)
        self._inner = inner
        self._head = head(model)
        self.vocabulary = self._head.weight.shape[0]
        self._linears = linears(model)
        for name, linear in self._linears.items():
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, _Served(linear, name, self))
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)
        model.set_attn_implementation(ATTENTION)  # type: ignore[operator]
        weight: Tensor = inner.embed_tokens.weight
        self._dtype, self._device = weight.dtype, weight.device
        self._serial = itertools.count()
        heads: int = model.config.num_key_value_heads  # type: ignore[union-attr,assignment]
        self._shapes = [(heads, int(layer.self_attn.head_dim)) for layer in inner.layers]
        self._pool: list[tuple[Tensor, Tensor]] = []

    def load(self, factors: LayerFactors) -> Plain:
        """See `Decoder.load`."""
        check_layer(factors, self._linears, "the layer")
        kept = {
            name: (
                part.a_RI.to(self._device, self._dtype),
                (part.b_OR * part.scale).to(self._device, self._dtype),
            )
            for name, part in factors.items()
        }
        return Plain(next(self._serial), kept)

    @property
    def block_bytes(self) -> int:
        """Keys and values, in the base's dtype."""
        return sum(2 * heads * size for heads, size in self._shapes) * BLOCK * self._dtype.itemsize

    def reserve(self, blocks: int) -> None:
        """See `Decoder.reserve`."""
        self._pool = [
            tuple(  # type: ignore[misc]
                torch.zeros(blocks, BLOCK, *shape, dtype=self._dtype, device=self._device)
                for _ in "kv"
            )
            for shape in self._shapes
        ]

    def run(self, spans: Sequence[Span]) -> Tensor:
        """See `Decoder.run`."""
        laid = lay_out(spans)
        self.runs[:] = laid.runs
        with torch.inference_mode():
            hidden_NC = self._inner(
                input_ids=laid.ids_N[None].to(self._device),
                position_ids=torch.from_numpy(laid.position_N)[None].to(self._device),
                use_cache=False,
                lamina_rows=_Rows(laid, self._pool, self._device),
            ).last_hidden_state[0]
            index = torch.from_numpy(laid.wanted_M).to(self._device)
            return logits(hidden_NC[index], self._head).float()


class _Rows:
    """What attention is told of a pass."""

    def __init__(self, laid: Laid, pool: list[tuple[Tensor, Tensor]], device: torch.device) -> None:
        self._pool = pool
        block = laid.blocks_SW[laid.seq_N, laid.position_N // BLOCK]
        self.block_N = torch.from_numpy(block.astype(np.int64)).to(device)
        self.lane_N = torch.from_numpy(laid.position_N % BLOCK).to(device)
        self.blocks_SW = torch.from_numpy(laid.blocks_SW.astype(np.int64)).to(device)
        self.position_N = torch.from_numpy(laid.position_N).to(device)
        bounds = list(itertools.pairwise(laid.start_S.tolist()))
        single = [(s, lo) for s, (lo, hi) in enumerate(bounds) if hi - lo == 1]
        self.groups = [([s], slice(lo, hi)) for s, (lo, hi) in enumerate(bounds) if hi - lo > 1]
        """Sequences whose queries are looked up together, and their rows."""
        self.single = [s for s, _ in single]
        self.single_rows = torch.tensor([row for _, row in single], device=device)

    def caches(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values (blocks, BLOCK, K, D) of a decoder layer."""
        return self._pool[layer]


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    lamina_rows: _Rows,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """query (1, H, N, D), key and value (1, K, N, D) -> (1, N, H, D); scores in float32."""
    for name in _UNSUPPORTED:
        if given.get(name) is not None:
            raise BaseError(f"attention with {name} cannot be served yet")
    rows = lamina_rows
    keys, values = rows.caches(module.layer_idx)
    keys[rows.block_N, rows.lane_N] = key[0].transpose(0, 1)
    values[rows.block_N, rows.lane_N] = value[0].transpose(0, 1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = torch.empty_like(query[0].transpose(0, 1))

    def look(sequences: list[int], at: Any, q_SHTD: Tensor, position_ST: Tensor) -> None:
        k_SLKD = keys[rows.blocks_SW[sequences]].flatten(1, 2)
        v_SLKD = values[rows.blocks_SW[sequences]].flatten(1, 2)
        group = q_SHTD.shape[1] // k_SLKD.shape[2]
        k_SHLD = k_SLKD.transpose(1, 2).repeat_interleave(group, dim=1)
        v_SHLD = v_SLKD.transpose(1, 2).repeat_interleave(group, dim=1)
        scores = (q_SHTD @ k_SHLD.transpose(-1, -2)).float() * scale
        place_L = torch.arange(scores.shape[-1], device=scores.device)
        seen_STL = place_L <= position_ST[..., None]
        if sliding_window is not None:
            seen_STL &= place_L > position_ST[..., None] - sliding_window
        scores = scores.masked_fill(~seen_STL[:, None], -torch.inf)
        mixed = scores.softmax(dim=-1).to(v_SHLD.dtype) @ v_SHLD
        out[at] = mixed.transpose(1, 2).flatten(0, 1)

    for sequences, at in rows.groups:
        look(sequences, at, query[:, :, at], rows.position_N[at][None])
    if rows.single:
        places = rows.single_rows
        q_SHTD = query[0, :, places].transpose(0, 1)[:, :, None]
        look(rows.single, places, q_SHTD, rows.position_N[places][:, None])
    return out[None], None
