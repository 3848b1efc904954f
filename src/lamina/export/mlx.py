"""A stack as an mlx-lm adapter folder: `adapters.safetensors` and `adapter_config.json`.

mlx-lm's LoRALinear computes y + scale * (x @ lora_a) @ lora_b with lora_a (in, r) and lora_b
(r, out); one rank and one scale stand for the whole file (mlx_lm/tuner/lora.py and utils.py).
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.numpy
import safetensors.torch
import torch
from torch import nn

from lamina.core.errors import LayerError
from lamina.core.files import atomic_write
from lamina.export.peft import concatenated, padded
from lamina.lowrank.maths import LayerFactors

WEIGHTS_FILE = "adapters.safetensors"
CONFIG_FILE = "adapter_config.json"
_MODULE = re.compile(r"model\.layers\.\d+\.(?P<key>.+)")


def write(layers: Sequence[LayerFactors], directory: Path, blocks: int) -> None:
    """Write both files. `blocks`: decoder layers of the base, all of which take the adapter.

    Every module is padded with zeros to the widest rank; scales are folded into B, `scale` is 1.
    A module that the stack does not touch in some layer keeps mlx-lm's own start there, which is
    nothing. Raises UsageError for no layers, LayerError for modules elsewhere.
    """
    joined = concatenated(layers)
    found = {module: _MODULE.fullmatch(module) for module in joined}
    elsewhere = [module for module, match in found.items() if match is None]
    if elsewhere:
        raise LayerError("mlx-lm puts adapters into model.layers only", faults=elsewhere)
    rank = max(factors.rank for factors in joined.values())
    tensors = {}
    for module, factors in padded(joined, rank).items():
        tensors[f"{module}.lora_a"] = factors.a_RI.T.contiguous()
        tensors[f"{module}.lora_b"] = factors.b_OR.T.contiguous()
    keys = sorted({match["key"] for match in found.values() if match})
    config = {
        "fine_tune_type": "lora",
        "num_layers": blocks,
        "lora_parameters": {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": keys},
    }
    atomic_write(directory / WEIGHTS_FILE, safetensors.torch.save(tensors, {"format": "mlx"}))
    atomic_write(directory / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())


def apply(directory: Path, linears: Mapping[str, nn.Linear]) -> None:
    """Add a written adapter to a base's linears (float32), by mlx-lm's own rules, with numpy.

    As `load_adapters` does: modules named in `keys` of the last `num_layers` layers, W + scale *
    (lora_a @ lora_b)^T. Mutates the linears' weights. Raises LayerError for a tensor that those
    rules would pass over.
    """
    config = json.loads((directory / CONFIG_FILE).read_bytes())
    settings = config["lora_parameters"]
    tensors = safetensors.numpy.load_file(directory / WEIGHTS_FILE)
    unread = set(tensors)
    for name, linear in linears.items():
        match = _MODULE.fullmatch(name)
        left, right = f"{name}.lora_a", f"{name}.lora_b"
        if match is None or match["key"] not in settings["keys"] or left not in tensors:
            continue
        delta_IO = settings["scale"] * (tensors[left] @ tensors[right])
        linear.weight.data += torch.from_numpy(delta_IO.T.copy())
        unread -= {left, right}
    if unread:
        raise LayerError("mlx-lm would pass over tensors of the adapter", faults=sorted(unread))
