"""Eight bits a weight, one scale a row: w ~ s q with s = max|w| / 127, q in -127 ... 127.

In the `pack-quantized` layout of compressed-tensors, which transformers and vLLM read. The product
is with s q in the compute dtype, so that activations keep theirs; bitsandbytes' int8 rounds
activations to eight bits too, and torchao's weights are tensors of a class of their own that
safetensors cannot hold without torchao on the other side. What is left to do is one multiplication.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

LARGEST = 127
BITS = 8
SETTINGS: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "channel",
                "dynamic": False,
                "group_size": None,
            },
        }
    },
}
"""`quantization_config`, as compressed-tensors writes it."""
PACKED, SCALE, SHAPE = "weight_packed", "weight_scale", "weight_shape"
SUFFIXES = (PACKED, SCALE, SHAPE)
"""What a linear's tensors are called, after its name."""
_A_WORD = 4
"""Weights in an int32: four bytes, the first in the lowest, each q + 128."""


def pack(weight_OI: Tensor) -> dict[str, Tensor]:
    """A linear's weight in eight bits, by SUFFIXES; the scale in the weight's dtype.

    Mutates nothing. Raises ValueError for an I that four does not divide.
    """
    if weight_OI.shape[1] % _A_WORD:
        raise ValueError(f"{weight_OI.shape[1]} inputs are no multiple of {_A_WORD}")
    wide_OI = weight_OI.float()
    scale_O1 = (wide_OI.abs().amax(1, keepdim=True) / LARGEST).to(weight_OI.dtype)
    # a row of zeros has scale 0, and any scale says so; the stored one is what is divided by
    scale_O1 = torch.where(scale_O1 == 0, torch.ones_like(scale_O1), scale_O1)
    codes_OI = (wide_OI / scale_O1.float()).round_().clamp_(-LARGEST, LARGEST)
    bytes_OI = (codes_OI + 128).to(torch.uint8)
    return {
        PACKED: bytes_OI.view(torch.int32),
        SCALE: scale_O1,
        SHAPE: torch.tensor(weight_OI.shape),
    }


def unpacker(
    tensors: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype
) -> Callable[[Tensor | None], Tensor]:
    """What turns a linear's tensors (by SUFFIXES) into its weight s q (O, I) in `dtype`.

    It writes into the tensor that it is given, or into a new one. Raises ValueError where the
    tensors are not those of this shape.
    """
    found = tuple(tensors[SHAPE].tolist())
    bytes_OI = tensors[PACKED].view(torch.uint8)
    if found != shape or tuple(bytes_OI.shape) != shape:
        raise ValueError(f"an int8 weight of {found}, not of {shape}")
    scale_O1 = tensors[SCALE].to(dtype)

    def unpack(out: Tensor | None) -> Tensor:
        if out is None:
            out = bytes_OI.new_empty(shape, dtype=dtype)
        # q = byte - 128 is exact in bfloat16; one rounding, that of s q
        return out.copy_(bytes_OI).sub_(128).mul_(scale_O1)

    return unpack
