"""How the next token is drawn from logits: one code path for chat, exams and serving.

Row by row, from a random number that depends on the seed and the place in the answer alone: what
is drawn doesn't depend on who shares the batch.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CANDIDATES = 256
"""Tokens that are looked at first where only the likeliest may be drawn."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Temperature 0 is greedy, after penalties."""

    temperature: float = 0.0
    top_p: float = 1.0
    """Draw from the likeliest tokens that have this probability together (arXiv:1904.09751)."""
    top_k: int = 0
    """Draw from this many of the likeliest; 0: from all."""
    min_p: float = 0.0
    """Draw from tokens with at least this share of the likeliest one's probability
    (arXiv:2407.01082)."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens that the answer has already."""
    frequency_penalty: float = 0.0
    """The same, for every time that it has them."""
    repetition_penalty: float = 1.0
    """Logits of tokens in prompt or answer are divided by it where positive, else multiplied
    (arXiv:1909.05858)."""
    seed: int = 0

    @property
    def penalised(self) -> bool:
        """Whether what was said changes the logits."""
        return (
            self.presence_penalty != 0
            or self.frequency_penalty != 0
            or self.repetition_penalty != 1
        )


class Drawer:
    """Draws one answer's tokens."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int] = ()) -> None:
        self.sampling = sampling
        self._place = 0
        self._said: Counter[int] = Counter()
        self._prompt = frozenset(prompt) if sampling.repetition_penalty != 1 else frozenset()

    @property
    def plain(self) -> bool:
        """Whether the next token is the argmax of the logits as they are."""
        return self.sampling.temperature <= 0 and not self.sampling.penalised

    def next(self, logits_V: Tensor) -> int:
        """The next token, from (V,) logits; minus infinity never comes. Mutates nothing of them."""
        if self.sampling.penalised:
            logits_V = self._penalised(logits_V.float())
        if self.sampling.temperature <= 0:
            return self.took(int(logits_V.argmax()))
        z_V = logits_V.double() / self.sampling.temperature
        return self.took(_draw(z_V, self.sampling, self._uniform()))

    def took(self, token: int) -> int:
        """Remember a token that came (by `next`, or as the argmax where `plain`)."""
        self._place += 1
        if self.sampling.penalised:
            self._said[token] += 1
        return token

    def _uniform(self) -> float:
        """In [0, 1): the first number of the stream (seed, place), counter-based."""
        key = np.array([self.sampling.seed % 2**64, self._place], dtype=np.uint64)
        return float(np.random.Generator(np.random.Philox(key=key)).random())

    def _penalised(self, logits_V: Tensor) -> Tensor:
        given, z_V = self.sampling, logits_V.clone()
        if given.repetition_penalty != 1 and (seen := self._prompt.union(self._said)):
            index = torch.tensor(sorted(seen), device=z_V.device)
            some = z_V[index]
            factor = given.repetition_penalty
            z_V[index] = torch.where(some > 0, some / factor, some * factor)
        if self._said:
            index = torch.tensor(list(self._said), device=z_V.device)
            times = torch.tensor(list(self._said.values()), device=z_V.device, dtype=z_V.dtype)
            z_V[index] -= given.presence_penalty + given.frequency_penalty * times
        return z_V


def _draw(z_V: Tensor, sampling: Sampling, uniform: float) -> int:
    """By inversion, among what top-k, top-p and min-p leave, likeliest first."""
    limited = sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0
    if not limited:
        return _invert(z_V.softmax(dim=-1).cumsum(dim=-1), uniform)
    whole = z_V.logsumexp(dim=-1)
    most = min(sampling.top_k or len(z_V), len(z_V))
    count = min(CANDIDATES, most)
    while True:
        best_K, index_K = z_V.topk(count)
        p_K = (best_K - (best_K.logsumexp(dim=-1) if sampling.top_k > 0 else whole)).exp()
        enough = count == most or _covers(p_K, sampling)
        if enough:
            break
        count = min(4 * count, most)
    before_K = p_K.cumsum(dim=-1) - p_K
    kept = int((before_K < sampling.top_p).sum())
    p_K = p_K[: max(kept, 1)]
    p_K = p_K[p_K >= sampling.min_p * p_K[0]]
    cumulated = p_K.cumsum(dim=-1)
    return int(index_K[_invert(cumulated / cumulated[-1], uniform)])


def _covers(p_K: Tensor, sampling: Sampling) -> bool:
    """Whether nothing behind these candidates could be drawn. With top-k probabilities are those
    among all k, so all k must be there."""
    if sampling.top_k > 0:
        return False
    return float(p_K.sum()) >= sampling.top_p or float(p_K[-1]) < sampling.min_p * float(p_K[0])


def _invert(cumulated_V: Tensor, uniform: float) -> int:
    place = int(torch.searchsorted(cumulated_V, uniform, right=True))
    last = int((cumulated_V < cumulated_V[-1]).sum())  # the first place where nothing more is added
    return min(place, last)
