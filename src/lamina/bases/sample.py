"""Generation with a KV cache: one code path for chat, exams and serving.

Prompts are token ids. Rows of a batch are padded on the left and share one growing cache;
finished rows leave the batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from lamina.bases.families import backbone, head, logits
from lamina.bases.sampling import Drawer, Sampling
from lamina.core.seeds import derive

GROWTH = 64
"""Tokens by which a cache grows at a time."""
BATCH_ROWS = 32
BATCH_TOKENS = 16384
"""Most prompt tokens, padding included, that are read in one pass."""
COMPACT_SHARE = 0.25
"""Finished rows leave the batch once they are this share of it."""


class _GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A cache layer that appends in place into a larger buffer, instead of copying every step."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True
        self._length = 0
        self._keys = key_states.new_empty((*key_states.shape[:2], 0, key_states.shape[3]))
        self._values = value_states.new_empty((*value_states.shape[:2], 0, value_states.shape[3]))
        self.keys, self.values = self._keys, self._values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self._length + key_states.shape[2]
        if end > self._keys.shape[2]:
            self._keys = _grown(self._keys, self._length, end + GROWTH)
            self._values = _grown(self._values, self._length, end + GROWTH)
        self._keys[:, :, self._length : end] = key_states
        self._values[:, :, self._length : end] = value_states
        return self._view(end)

    def _view(self, length: int) -> tuple[Tensor, Tensor]:
        self._length = length
        self.keys, self.values = self._keys[:, :, :length], self._values[:, :, :length]
        return self.keys, self.values

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch."""
        self._keys, self._values = self._keys[rows], self._values[rows]
        self._view(self._length)

    def crop_to(self, length: int) -> None:
        """Forget everything after the first `length` tokens."""
        self._view(length)


def _grown(old: Tensor, used: int, capacity: int) -> Tensor:
    new = old.new_empty((*old.shape[:2], capacity, old.shape[3]))
    new[:, :, :used] = old[:, :, :used]
    return new


def _new_cache(model: nn.Module) -> Cache:
    layers: int = model.config.num_hidden_layers  # type: ignore[union-attr,assignment]
    return Cache(layers=[_GrowingLayer() for _ in range(layers)])


class Stream:
    """One conversation's generator: the cache of the last prompt is kept, and what a new prompt
    shares with it from the start is not read again."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._cache = _new_cache(model)
        self._ids: list[int] = []

    def tokens(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        sampling: Sampling,
    ) -> Iterator[int]:
        """Yield new tokens up to and without the stop token. Stop iterating to cancel."""
        shared = _common_prefix(self._ids, prompt[:-1])
        for layer in self._cache.layers:
            if layer.is_initialized:
                layer.crop_to(shared)
        self._ids = list(prompt[:shared])
        fresh = list(prompt[shared:])
        spec = head(self._model)
        device = spec.weight.device
        drawer = Drawer(sampling, prompt)
        for _ in range(max_new_tokens):
            with torch.inference_mode():
                hidden_1TH = backbone(self._model)(
                    input_ids=torch.tensor([fresh], device=device),
                    past_key_values=self._cache,
                    use_cache=True,
                ).last_hidden_state
                token = drawer.next(logits(hidden_1TH[0, -1], spec).float())
            self._ids += fresh
            if token in stop_ids:
                return
            fresh = [token]
            yield token


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def drawers(sampling: Sampling, prompts: Sequence[Sequence[int]]) -> list[Drawer]:
    """One a row, each with a seed of its own: what a row draws depends on its place alone."""
    return [
        Drawer(replace(sampling, seed=derive(sampling.seed, "sample", row)), prompt)
        for row, prompt in enumerate(prompts)
    ]


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    sampling: Sampling | None = None,
    pad_id: int = 0,
    progress: Callable[[int], None] | None = None,
    ended: Callable[[Sequence[int]], bool] = lambda ids: False,
) -> list[list[int]]:
    """Answers to all prompts, stop token left out, in the prompts' order.

    Prompts of similar length share a batch. `progress` is told how many have been answered;
    `ended` may say that an answer needs no further token, as where a stop string is in it.
    """
    sampling = sampling or Sampling()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, list[int]] = {}
    drawn = drawers(sampling, prompts)
    for batch in _batches(order, [len(p) for p in prompts]):
        rows = [prompts[i] for i in batch]
        for i, answer in zip(
            batch,
            _generate_batch(
                model, rows, max_new_tokens, stop_ids, [drawn[i] for i in batch], pad_id, ended
            ),
            strict=True,
        ):
            answers[i] = answer
        if progress:
            progress(len(answers))
    return [answers[i] for i in range(len(prompts))]


def _batches(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    for index in order:  # ascending length: the newest is the longest
        full = len(batch) == BATCH_ROWS or (len(batch) + 1) * lengths[index] > BATCH_TOKENS
        if batch and full:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _drawn(logits_BV: Tensor, rows: Sequence[Drawer]) -> Tensor:
    """The next token of each row, (B,) int64."""
    if all(drawer.plain for drawer in rows):
        return logits_BV.argmax(dim=-1)
    drawn = [drawer.next(z_V) for drawer, z_V in zip(rows, logits_BV, strict=True)]
    return torch.tensor(drawn, device=logits_BV.device)


@torch.inference_mode()
def _generate_batch(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Sequence[int],
    drawn: Sequence[Drawer],
    pad_id: int,
    ended: Callable[[Sequence[int]], bool],
) -> list[list[int]]:
    spec = head(model)
    device = spec.weight.device
    longest = max(map(len, prompts))
    ids_BT = torch.full((len(prompts), longest), pad_id)
    mask_BT = torch.zeros((len(prompts), longest), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids_BT[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask_BT[row, longest - len(prompt) :] = 1
    ids_BT, mask_BT = ids_BT.to(device), mask_BT.to(device)
    padded = bool((mask_BT == 0).any())
    position_BT = (mask_BT.cumsum(-1) - 1).clamp_(min=0)
    cache = _new_cache(model)
    outputs: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))  # rows still in the batch, finished ones included
    done: set[int] = set()
    for step in range(max_new_tokens):
        hidden_BTH = backbone(model)(
            input_ids=ids_BT,
            attention_mask=mask_BT if padded else None,
            position_ids=position_BT,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        next_B = _drawn(logits(hidden_BTH[:, -1], spec).float(), [drawn[row] for row in alive])
        for row, token in zip(alive, next_B.tolist(), strict=True):
            if row in done:
                continue
            if token in stop_ids:
                done.add(row)
                continue
            outputs[row].append(token)
            if ended(outputs[row]):
                done.add(row)
        if len(done) == len(prompts) or step == max_new_tokens - 1:
            break
        ids_BT, position_BT = next_B[:, None], position_BT[:, -1:] + 1
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones((len(mask_BT), 1))], dim=1)
        finished = sum(row in done for row in alive)
        if finished >= max(1, COMPACT_SHARE * len(alive)):
            keep = torch.tensor([i for i, row in enumerate(alive) if row not in done])
            alive = [row for row in alive if row not in done]
            ids_BT, position_BT, mask_BT = ids_BT[keep], position_BT[keep], mask_BT[keep]
            for layer in cache.layers:
                layer.select(keep)
    return outputs
