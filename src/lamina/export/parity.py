"""Is an export the same model? Its logits beside the stack's own, on real prompts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lamina.core.errors import CheckError

LOGITS = "largest relative difference of logits"


@dataclass(frozen=True)
class Parity:
    """The largest difference of logits, relative to the largest logit of the same position."""

    max_rel: float
    limit: float
    prompts: int
    measure: str = LOGITS

    @property
    def said(self) -> str:
        """The difference as a part of a sentence."""
        what = "logits differ by" if self.measure == LOGITS else f"{self.measure}:"
        return f"{what} {self.max_rel:.2e}"

    @property
    def ok(self) -> bool:
        """Within the limit."""
        return self.max_rel <= self.limit

    def check(self, what: str) -> "Parity":
        """Return self, or raise CheckError when the difference is beyond the limit."""
        if not self.ok:
            raise CheckError(
                f"{what} is not the stack it was made from: {self.said}, "
                f"the limit is {self.limit:.0e}",
                hint="nothing was written; please report this",
            )
        return self

    def facts(self) -> dict[str, Any]:
        """For the certificate."""
        return {
            "ok": self.ok,
            "measure": self.measure,
            "value": self.max_rel,
            "limit": self.limit,
            "prompts": self.prompts,
        }


LIMITS = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest relative difference, by dtype of the products. bfloat16 has 8 bits of mantissa, and a
30-layer model compounds their rounding; where both sides round at other places, percents remain."""


@torch.inference_mode()
def logits_of(model: nn.Module, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """float32 logits (T, V) of each prompt, one at a time so that padding plays no part."""
    return [model(input_ids=torch.tensor([list(p)])).logits[0].float() for p in prompts]


def compare(ours: Sequence[Tensor], theirs: Sequence[Tensor], dtype: torch.dtype) -> Parity:
    """max over prompts and positions of |ours - theirs| / max|ours|."""
    worst = 0.0
    for a_TV, b_TV in zip(ours, theirs, strict=True):
        scale_T = a_TV.abs().amax(dim=-1).clamp(min=1e-6)
        difference = float(((a_TV - b_TV).abs().amax(dim=-1) / scale_T).max())
        worst = max(worst, difference if math.isfinite(difference) else math.inf)
    return Parity(worst, LIMITS[dtype], len(ours))
