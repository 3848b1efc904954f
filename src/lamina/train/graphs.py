"""Passes of a fused decoder on a GPU, captured once as CUDA graphs and then replayed.

A step of a small model is two thousand short kernels, which the processor takes longer to ask for
than the GPU to run. A graph asks for all of them at once, but only over the same memory and shapes:
so a pass is filled up, with tokens that nothing looks at and targets of no weight, to one of a few
sizes, and each size has a graph from the second time on that it comes. Their memory is shared.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lamina.bases.families import head
from lamina.kernels.sizes import Places
from lamina.tokens.batch import Batch
from lamina.train.fused import FusedDecoder, packed
from lamina.train.objective import SoftTargets, head_losses, to_predict

MOST = 64
"""Graphs that are kept; what is of yet another size goes kernel by kernel."""
LEAST_TOKENS, LEAST_TARGETS = 128, 64
"""Sizes are multiples of these at least."""
TOKENS_OF, TARGETS_OF = 16, 4
"""Into how many equal sizes each doubling is cut: a pass is filled up by a sixteenth at most, its
targets by a quarter."""


class _Size(NamedTuple):
    tokens: int
    targets: int
    choices: int
    """Tokens, each with its share, that one position is to predict."""
    rows: int
    longest: int


@dataclass(frozen=True, eq=False)
class _Inputs:
    """Where a pass of one size reads, on the GPU."""

    ids_N: Tensor
    places: Places
    positions_M: Tensor
    wanted: SoftTargets
    """(M, K) each."""
    share_M: Tensor
    """What each target's loss counts, float32; 0 for those that fill up."""


class _Captured(NamedTuple):
    graph: Any
    losses_M: Tensor


class Graphs:
    """Backward passes of one decoder, whose factors and gradients stay where they are."""

    def __init__(self, decoder: FusedDecoder) -> None:
        self._decoder, self._spec = decoder, head(decoder.model)
        self._inputs: dict[_Size, _Inputs] = {}
        self._captured: dict[_Size, _Captured] = {}
        self._pool: Any = None
        self._rows = self._longest = 1

    def backward(self, batch: Batch, soft: SoftTargets | None, share: float) -> Tensor:
        """(N,) float32: the loss of each target; the gradient of `share` times their sum is added
        to the factors'."""
        count = len(batch.targets)
        size = self._size(batch, soft)
        known = self._inputs.get(size)
        inputs = known or self._room(size)
        self._fill(inputs, batch, soft, share)
        if known is None:
            self._inputs[size] = inputs
            return self._pass(inputs)[:count]
        if size not in self._captured:
            if len(self._captured) >= MOST:
                return self._pass(inputs)[:count]
            self._captured[size] = self._capture(inputs)
        captured = self._captured[size]
        captured.graph.replay()
        return captured.losses_M[:count]

    def _size(self, batch: Batch, soft: SoftTargets | None) -> _Size:
        """The size that a pass is filled up to. The bounds on rows and lengths only ever grow:
        larger ones cost nothing that can be measured."""
        # what fills up is rows as well: up to a sixteenth of the tokens, cut to the longest row
        self._longest = max(self._longest, _doubled(int(batch.lengths.max())))
        tokens = _stepped(int(batch.lengths.sum()), LEAST_TOKENS, TOKENS_OF)
        filler = -(-(tokens - int(batch.lengths.sum())) // self._longest)
        self._rows = max(self._rows, _doubled(len(batch.lengths) + filler))
        return _Size(
            tokens,
            _stepped(len(batch.targets), LEAST_TARGETS, TARGETS_OF),
            1 if soft is None else soft.ids_NK.shape[1],
            self._rows,
            self._longest,
        )

    def _room(self, size: _Size) -> _Inputs:
        device = self._decoder.device
        ids_N = torch.zeros(size.tokens, dtype=torch.int64, device=device)
        starts_S = torch.zeros(size.rows + 1, dtype=torch.int32, device=device)
        plain = self._decoder.places(ids_N, torch.tensor([0, size.tokens]))
        targets = size.targets, size.choices
        return _Inputs(
            ids_N,
            Places(starts_S, plain.cos_NR, plain.sin_NR, size.longest),
            torch.zeros(size.targets, dtype=torch.int64, device=device),
            SoftTargets(
                torch.zeros(targets, dtype=torch.int64, device=device),
                torch.zeros(targets, device=device),
            ),
            torch.zeros(size.targets, device=device),
        )

    def _fill(self, inputs: _Inputs, batch: Batch, soft: SoftTargets | None, share: float) -> None:
        """Put a batch where the pass reads. What fills up is rows of zeros behind all others."""
        ids_N, starts_S, positions = packed(batch, filled=1)
        tokens, rows = len(inputs.ids_N), len(inputs.places.starts_S)
        more = torch.arange(len(ids_N) + self._longest, tokens + self._longest, self._longest)
        starts_S = torch.cat([starts_S, more.clamp(max=tokens)])
        ends = starts_S.new_full((rows - len(starts_S),), tokens)
        places = self._decoder.places(_padded(ids_N, tokens), starts_S)
        wanted, count = to_predict(batch, soft), len(inputs.share_M)
        shares = torch.full((len(positions),), share)
        inputs.ids_N.copy_(_padded(ids_N, tokens))
        inputs.places.starts_S.copy_(torch.cat([starts_S, ends]))
        inputs.places.cos_NR.copy_(places.cos_NR)
        inputs.places.sin_NR.copy_(places.sin_NR)
        inputs.positions_M.copy_(_padded(positions, count))
        inputs.wanted.ids_NK.copy_(_padded(wanted.ids_NK, count))
        inputs.wanted.weights_NK.copy_(_padded(wanted.weights_NK, count))
        inputs.share_M.copy_(_padded(shares, count))

    def _pass(self, inputs: _Inputs) -> Tensor:
        """Forward and backward; the losses (M,)."""
        self._decoder.load()
        hidden_MC = self._decoder.hidden(inputs.ids_N, inputs.places, inputs.positions_M)
        losses_M = head_losses(hidden_MC, self._spec, inputs.wanted)
        (losses_M * inputs.share_M).sum().backward()  # type: ignore[no-untyped-call]
        return losses_M.detach()

    def _capture(self, inputs: _Inputs) -> _Captured:
        """The pass as a graph; nothing is computed yet. It has run before in this size, so that
        every kernel is compiled."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # what passes outside of graphs have left
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            losses_M = self._pass(inputs)
        return _Captured(graph, losses_M)


def graphs_of(model: Any) -> Graphs | None:
    """For a decoder whose passes can be captured; None for all others."""
    if not isinstance(model, FusedDecoder) or model.device.type != "cuda" or not model.resident:
        return None
    return Graphs(model) if model.kernels == "accelerated" else None


def _doubled(count: int) -> int:
    """The next power of two."""
    return 1 << max(0, count - 1).bit_length()


def _stepped(count: int, least: int, steps: int) -> int:
    """The next of the sizes that cut each doubling into equal steps, a multiple of `least`."""
    step = max(least, _doubled(count) // (2 * steps))
    return max(least, -(-count // step) * step)


def _padded(values: Tensor, count: int) -> Tensor:
    """With zeros behind, up to `count` rows."""
    return torch.cat([values, values.new_zeros(count - len(values), *values.shape[1:])])
