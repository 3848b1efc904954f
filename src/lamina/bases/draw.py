"""Drawing with a latent diffusion base or stack: captions and seeds in, images out.

The steps are those of diffusers' schedulers, so that the same seed gives what diffusers draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lamina.bases.pipeline import Pipeline


@dataclass(frozen=True)
class Style:
    """How an image is drawn."""

    steps: int = 25
    guidance: float = 4.0
    """How far to go from what is drawn without a caption (arXiv:2207.12598); 1: not at all."""
    negative: str = ""
    """What is drawn away from, in place of no caption."""


@torch.inference_mode()
def draw(model: Pipeline, prompts: Sequence[str], seeds: Sequence[int], style: Style) -> Tensor:
    """(N, 3, S, S) float32 in [-1, 1]: one image for each prompt and seed.

    An image depends on its own prompt and seed alone, up to rounding. Mutates nothing.
    """
    scheduler = _scheduler(model)
    scheduler.set_timesteps(style.steps)
    noise = [
        torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    x = torch.stack(noise).to(model.device) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    guided = style.guidance > 1
    captions = model.captions(prompts)
    if guided:
        captions = [*model.captions([style.negative]) * len(prompts), *captions]
    states = model.read(captions)
    for time in scheduler.timesteps:
        given = torch.cat([x, x]) if guided else x
        if hasattr(scheduler, "scale_model_input"):
            given = scheduler.scale_model_input(given, time)
        times_B = time.to(model.device).expand(len(given))
        said = model.denoise(given, times_B, states, captions)
        if guided:
            without, with_ = said.chunk(2)
            said = without + style.guidance * (with_ - without)
        x = scheduler.step(said, time, x, return_dict=False)[0]
    return model.decode(x)


def _scheduler(model: Pipeline) -> Any:
    """A deterministic one with the base's own noise schedule."""
    import diffusers

    if "FlowMatch" in str(model.schedule.get("_class_name", "")):
        return diffusers.FlowMatchEulerDiscreteScheduler.from_config(model.schedule)
    return diffusers.DDIMScheduler.from_config(model.schedule)
