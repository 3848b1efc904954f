"""Weights written as safetensors shards, tensors sorted by name, one shard in memory at a time."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

SHARD_BYTES = 2 << 30
INDEX = "model.safetensors.index.json"


def write_shards(
    sizes: Mapping[str, int],
    tensor: Callable[[str], Tensor],
    folder: Path,
    *,
    limit: int = SHARD_BYTES,
) -> None:
    """Write `tensor(name)` for every name of `sizes` (bytes each, by which shards are cut) into
    `folder`.

    One `model.safetensors` where all fits into `limit` bytes, otherwise `model-0000N-of-…` and an
    index. A single tensor larger than `limit` gets a shard of its own. The same tensors give the
    same bytes.
    """
    plan = _plan(sizes, limit)
    where: dict[str, str] = {}
    total = 0
    for number, names in enumerate(plan, 1):
        file = f"model-{number:05d}-of-{len(plan):05d}.safetensors"
        file = file if len(plan) > 1 else "model.safetensors"
        part = {name: tensor(name).contiguous() for name in names}
        save_file(part, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
        total += sum(t.numel() * t.element_size() for t in part.values())
    if len(plan) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / INDEX).write_text(text, encoding="utf-8")


def _plan(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in order, cut where the next tensor would not fit."""
    plan: list[list[str]] = []
    room = 0
    for name in sorted(sizes):
        if not plan or sizes[name] > room:
            plan.append([])
            room = limit
        plan[-1].append(name)
        room -= sizes[name]
    return plan
