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
    """int64: the first token of each sequence, and at the end N."""
    cos_NR: Tensor
    """float32, R = D / 2: cosines of the rotary embedding."""
    sin_NR: Tensor
    """float32."""

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return int(self.starts_S.diff().max())

    @cached_property
    def starts_there(self) -> Tensor:
        """`starts_S` as int32 where the cosines are, moved once."""
        return self.starts_S.to(self.cos_NR.device, torch.int32)
