"""The one tolerance table: relative and absolute, per dtype. Never loosened to pass."""

import torch

TOLERANCE = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-10},
    torch.float32: {"rtol": 1e-4, "atol": 1e-4, "check_dtype": False},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2, "check_dtype": False},
}
