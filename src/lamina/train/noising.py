"""How images are made noisy and what is then to be said of them, as a base's schedule has it.

Noise prediction (arXiv:2006.11239): x_t = sqrt(a_t) x + sqrt(1 - a_t) e, and the target is e,
v = sqrt(a_t) e - sqrt(1 - a_t) x (arXiv:2202.00512) or x itself. Flow (arXiv:2210.02747):
x_t = (1 - s) x + s e with s = t / T, and the target is e - x.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lamina.core.errors import BaseError

Says = Literal["epsilon", "v_prediction", "sample", "flow"]


@dataclass(frozen=True, eq=False)
class Noising:
    """A base's schedule. Shapes: latents (B, C, h, w), times (B,)."""

    says: Says
    kept_T: Tensor
    """a_t (T,) float32, the share of the image that is left in x_t; of a flow (1 - t / T)^2."""

    @classmethod
    def of(cls, schedule: Mapping[str, Any]) -> "Noising":
        """From a scheduler's configuration. Raises BaseError for a kind that is not known."""
        steps = int(schedule.get("num_train_timesteps", 1000))
        if "FlowMatch" in str(schedule.get("_class_name", "")):
            return cls("flow", (1 - torch.arange(steps) / steps).square())
        says = schedule.get("prediction_type", "epsilon")
        if says not in get_args(Says):
            raise BaseError(
                f"the schedule's prediction type {says!r} is not known",
                hint=f"known: {', '.join(get_args(Says))}",
            )
        from diffusers import DDPMScheduler

        made: Any = DDPMScheduler.from_config(dict(schedule))
        return cls(says, made.alphas_cumprod.float())

    def times(self, u_B: Tensor) -> Tensor:
        """Times of numbers in [0, 1)."""
        return (u_B * len(self.kept_T)).long().clamp(max=len(self.kept_T) - 1)

    def noisy(self, x: Tensor, noise: Tensor, times_B: Tensor) -> Tensor:
        """x_t."""
        image, other = self._shares(times_B)
        return image * x + other * noise

    def target(self, x: Tensor, noise: Tensor, times_B: Tensor) -> Tensor:
        """What the denoiser should say of x_t."""
        if self.says == "epsilon":
            return noise
        if self.says == "sample":
            return x
        if self.says == "flow":
            return noise - x
        image, other = self._shares(times_B)
        return image * noise - other * x

    def weight(self, times_B: Tensor, gamma: float | None) -> Tensor:
        """(B,) min-SNR weights of squared errors (arXiv:2303.09556); 1 for None and for a flow."""
        kept_B = self.kept_T[times_B]
        if gamma is None or self.says == "flow":
            return torch.ones_like(kept_B)
        snr_B = kept_B / (1 - kept_B).clamp(min=1e-8)
        least_B = snr_B.clamp(max=gamma)
        if self.says == "epsilon":
            return least_B / snr_B.clamp(min=1e-8)
        return least_B / (snr_B + 1) if self.says == "v_prediction" else least_B

    def _shares(self, times_B: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.kept_T[times_B][:, None, None, None]
        if self.says == "flow":
            return kept.sqrt(), 1 - kept.sqrt()
        return kept.sqrt(), (1 - kept).sqrt()
