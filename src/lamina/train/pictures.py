"""Rows' images as numbers."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lamina.core.errors import DataError
from lamina.data.example import Example
from lamina.data.images import file_bytes, flattened, opened


def pictures(examples: Sequence[Example], side: int) -> Tensor:
    """(N, 3, side, side) float32 in [-1, 1]. Raises DataError listing every image that is none."""
    found = torch.empty(len(examples), 3, side, side)
    faults = []
    for place, example in enumerate(examples):
        try:
            with opened(file_bytes(example.image or "")) as image:
                pixels_HWC = torch.from_numpy(np.array(flattened(image, side)))
        except DataError as error:
            faults += [f"image {place + 1}: {fault}" for fault in error.faults]
            continue
        found[place] = pixels_HWC.permute(2, 0, 1).float() / 127.5 - 1
    if faults:
        raise DataError("images that cannot be used", faults=faults, hint="leave these rows out")
    return found
