"""Is a file in another engine the same model? Log-probabilities of next tokens, and the tokens.

Not greedy text: one flipped tie makes texts differ where the models do not, and texts agree where
the models differ by much.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from lamina.core.errors import CheckError
from lamina.export.gguf_types import Precision

LIKELIEST = 10
"""Next tokens compared at each place: our likeliest."""
PLACES = 8
"""Places compared in each prompt: its end, and others spread evenly before it."""


class Limits(NamedTuple):
    """Differences of log-probabilities beyond which a file is another model."""

    worst: float
    mean: float


LIMITS: dict[Precision, Limits] = {
    "f32": Limits(0.02, 0.005),
    "f16": Limits(0.1, 0.01),
    "q8_0": Limits(2.0, 0.4),
    "q4_k": Limits(5.0, 1.0),
}
"""Two to five times the worst and the mean that were measured on stacks over SmolLM2-135M and gemma
3 270M (benchmarks/export_parity.py, docs/log.md), whose small hidden states suffer more from
rounding than larger models' do:

f32   4.1e-3, 1.0e-3   llama.cpp looks gemma's gelu up in a table of float16; SmolLM2: 2.5e-4
f16   3.3e-2, 3.5e-3   it rounds activations to float16 as well
q8_0  0.81, 0.15       weights alone 0.48, 0.08: the rest is that it rounds activations to int8
q4_k  3.2, 0.56        one gemma stack was ruined by it (a likely token fell out of the first 1000)

The same SmolLM2 stack in f16 without its layers: 8.6, 1.4; with q and k unpermuted: 6.5, 1.8.
"""


@dataclass(frozen=True)
class Likelihood:
    """|log p - log q| of our likeliest next tokens, over places in prompts."""

    worst: float
    mean: float
    limits: "Limits"
    prompts: int
    places: int
    mistokenised: tuple[str, ...] = ()
    """Prompts whose tokens differ: their beginnings."""

    @property
    def ok(self) -> bool:
        """Within both limits, and every prompt has the same tokens."""
        near = self.worst <= self.limits.worst and self.mean <= self.limits.mean
        return near and not self.mistokenised

    def check(self, what: str) -> "Likelihood":
        """Return self, or raise CheckError."""
        if self.mistokenised:
            raise CheckError(
                f"{what} does not read prompts as the stack does: other tokens",
                faults=self.mistokenised,
                hint="nothing was written; --accept-loss writes it all the same, and says so in it",
            )
        if not self.ok:
            raise CheckError(
                f"{what} is not the stack it was made from: log-probabilities of likely tokens "
                f"differ by up to {self.worst:.2g} (mean {self.mean:.2g}), the limit is "
                f"{self.limits.worst:g} (mean {self.limits.mean:g})",
                hint="nothing was written; --accept-loss writes it all the same, and says so in it",
            )
        return self

    def facts(self) -> dict[str, Any]:
        """For the certificate."""
        return {
            "ok": self.ok,
            "measure": f"|log p - log q| of the {LIKELIEST} likeliest next tokens",
            "value": self.worst,
            "mean": self.mean,
            "limit": self.limits.worst,
            "limit_of_mean": self.limits.mean,
            "prompts": self.prompts,
            "places": self.places,
            "tokens": "differ" if self.mistokenised else "identical",
        }


Places = list[tuple[list[int], dict[int, float]]]
"""(ids so far, log-probabilities of our LIKELIEST next tokens)."""


@torch.inference_mode()
def places_of(model: nn.Module, prompts: Sequence[Sequence[int]]) -> Places:
    """Places in the prompts, and what our model expects there; one prompt at a time."""
    found: Places = []
    for prompt in prompts:
        ids = list(prompt)
        logits_TV = model(input_ids=torch.tensor([ids])).logits[0].float()
        lengths = sorted({max(1, len(ids) * (n + 1) // PLACES) for n in range(PLACES)})
        for length in lengths:
            logs_V = logits_TV[length - 1].log_softmax(dim=-1)
            top = logs_V.topk(min(LIKELIEST, logs_V.numel()))
            likely = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            found.append((ids[:length], likely))
    return found


def compare(
    ours: Sequence[Mapping[int, float]], theirs: Sequence[Mapping[int, float]]
) -> tuple[float, float]:
    """(worst, mean) of |log p - log q|. For a token that the other side does not list, at least:
    its log q is below the least one listed."""
    differences = [
        abs(log_p - other.get(token, min(other.values())))
        for mine, other in zip(ours, theirs, strict=True)
        for token, log_p in mine.items()
    ]
    return max(differences), sum(differences) / len(differences)
