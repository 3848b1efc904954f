"""What the kernels are told about a batch and about heads."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Heads:
    """How a row of queries, keys and values, (H + 2K) * D channels side by side, is cut."""

    queries: int
    """H."""
    keys: int
    """K; H is a multiple of it."""
    size: int
    """D, channels a head."""
    scale: float
    """Of the scores, before the softmax."""


@dataclass(frozen=True, eq=False)
class Places:
    """Where each of N tokens of packed sequences stands."""

    starts_S: Tensor
    """int64: the first token of each sequence, and at the end N. (int32 and already on the GPU in a
    captured pass.)"""
    cos_NR: Tensor
    """float32, R = D / 2: cosines of the rotary embedding."""
    sin_NR: Tensor
    """float32."""
    bound: int | None = None
    """No sequence has more tokens, where that is known beforehand."""

    @cached_property
    def longest(self) -> int:
        """At least the tokens of the longest sequence."""
        return self.bound or int(self.starts_S.diff().max())

    @cached_property
    def starts_there(self) -> Tensor:
        """`starts_S` as int32 where the cosines are, moved once."""
        return self.starts_S.to(self.cos_NR.device, torch.int32)
