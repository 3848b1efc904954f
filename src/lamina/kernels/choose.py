"""Which implementation of the kernels a model can use."""

from types import ModuleType

import torch

from lamina.kernels import accelerated, native, reference
from lamina.kernels.build import Unavailable, library


def chosen(
    dtype: torch.dtype,
    device: torch.device,
    channels: tuple[int, ...] = (),
    head_size: int = 2 * native.LANES,
) -> tuple[ModuleType, str]:
    """The module whose functions to call, and why it is not the native one ('' where it is).

    `channels`, `head_size`: what the attention and the norms are to be called with, if they are.
    """
    why = ""
    if device.type == "cuda" and dtype in accelerated.DTYPES:
        missing = accelerated.why_not()
        return (reference, missing) if missing else (accelerated, "")
    if device.type != "cpu":
        why = f"on {device.type}"
    elif dtype != torch.bfloat16:
        why = f"for {str(dtype).removeprefix('torch.')}"
    elif head_size % (2 * native.LANES) or any(c % native.LANES for c in channels):
        why = "for channels that are no multiple of 16, or heads of 32"
    if why:
        return reference, f"there are no native kernels {why}"
    try:
        library()
    except Unavailable as error:
        return reference, str(error)
    return native, ""
