"""How a run's rows go through the model: the fused decoder where it can be had, else modules.

Either remembers what lies below the first trained layer.
"""

import hashlib
import platform
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from lamina.bases import families
from lamina.core.digest import digest_json
from lamina.lowrank.attach import Attachment
from lamina.train.fused import fuse
from lamina.train.job import Job
from lamina.train.objective import Decoder
from lamina.train.packs import Packs
from lamina.train.prefix import Prefixes, resumed

CPU = Path("/proc/cpuinfo")


class Way(NamedTuple):
    """A way through the model."""

    model: nn.Module | Decoder
    kernels: str
    """As in `Outcome`."""
    why: str
    """Why it is not the fastest, '' where it is."""


def prefixes_of(job: Job, attachment: Attachment) -> Prefixes | None:
    """Where rows' activations are remembered, if something lies below the first trained layer.

    Not on a GPU: rows one at a time leave it idle.
    """
    first = min(map(families.layer_of, attachment.modules))
    if not first or next(job.model.parameters()).device.type != "cpu":
        return None
    packs = None
    if job.shared is not None:
        beside = {"below": job.shared.key, "first": first, "still": _still(attachment, first)}
        key = digest_json(beside | {"machine": _machine(), "threads": torch.get_num_threads()})
        packs = Packs(job.shared.folder, key.removeprefix("sha256:"))
    return Prefixes(job.directory, job.prefix_memory, packs=packs)


def _still(attachment: Attachment, first: int) -> str:
    """Digest of the factors below the first trained layer, which a warm start leaves alone."""
    state = hashlib.sha256()
    for name in sorted(attachment.still):
        module = attachment.still[name]
        if families.layer_of(name) < first:
            state.update(f"{name} {tuple(module.a.shape)} {module.scale}".encode())
            for factor in (module.a, module.b):
                state.update(factor.detach().contiguous().numpy().tobytes())
    return state.hexdigest()


def _machine() -> list[str]:
    """What of the processor decides which instructions compute."""
    lines = CPU.read_text().splitlines() if CPU.exists() else []
    told = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return [platform.machine(), platform.processor(), *sorted(told)]


def way_through(job: Job, attachment: Attachment, prefixes: Prefixes | None) -> Way:
    """The way that a run's steps and evaluations take, with what is attached to the model."""
    checkpointing = job.recipe.checkpointing
    decoder, why = fuse(job.model, checkpointing=checkpointing, prefixes=prefixes)
    if decoder is not None:
        return Way(decoder, decoder.kernels, why)
    first = min(map(families.layer_of, attachment.modules))
    going_on = None if prefixes is None else resumed(job.model, first, prefixes)
    return Way(going_on or job.model, "none", why)
