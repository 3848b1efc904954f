"""A stack as a plain model folder: layers merged in float32 onto unquantised weights, once."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import safetensors
import safetensors.torch

from lamina.core.errors import LayerError
from lamina.core.files import atomic_write
from lamina.lowrank.maths import LayerFactors, compose, fold


def write(base: Path, layers: Sequence[LayerFactors], directory: Path) -> None:
    """Copy the base's folder, with every touched weight replaced by its folded one.

    Shard by shard, so that no more than one shard is in memory. Dtypes are the base's.
    Raises LayerError when a layer touches a weight that no shard holds.
    """
    joined = compose(layers) if layers else {}
    left = set(joined)
    for source in sorted(base.iterdir()):
        target = directory / source.name
        if source.suffix != ".safetensors":
            shutil.copyfile(source, target)
            continue
        tensors = {}
        with safetensors.safe_open(source, framework="pt") as shard:
            for key in shard.keys():  # noqa: SIM118 - not a mapping
                tensor = shard.get_tensor(key)
                module = key.removesuffix(".weight")
                if module in joined:
                    tensor = fold(tensor, [joined[module]])
                    left.discard(module)
                tensors[key] = tensor
        atomic_write(target, safetensors.torch.save(tensors, metadata={"format": "pt"}))
    if left:
        raise LayerError("the base's files lack weights", faults=sorted(left))
