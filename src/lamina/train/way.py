"""How a run's rows go through the model: the fused decoder where it can be had, else modules.

Either remembers what lies below the first trained layer.
"""

from typing import NamedTuple

from torch import nn

from lamina.bases import families
from lamina.lowrank.attach import Attachment
from lamina.train.fused import fuse
from lamina.train.job import Job
from lamina.train.objective import Decoder
from lamina.train.prefix import Prefixes, resumed


class Way(NamedTuple):
    """A way through the model."""

    model: nn.Module | Decoder
    kernels: str
    """As in `Outcome`."""
    why: str
    """Why it is not the fastest, '' where it is."""


def prefixes_of(job: Job) -> Prefixes | None:
    """Where rows' activations are remembered. Not on a GPU: rows one at a time leave it idle."""
    on_cpu = next(job.model.parameters()).device.type == "cpu"
    return Prefixes(job.directory, job.prefix_memory) if on_cpu else None


def way_through(job: Job, attachment: Attachment, prefixes: Prefixes | None) -> Way:
    """The way that a run's steps and evaluations take, with what is attached to the model."""
    checkpointing = job.recipe.checkpointing
    decoder, why = fuse(job.model, checkpointing=checkpointing, prefixes=prefixes)
    if decoder is not None:
        return Way(decoder, decoder.kernels, why)
    first = min(map(families.layer_of, attachment.modules))
    going_on = None if prefixes is None else resumed(job.model, first, prefixes)
    return Way(going_on or job.model, "none", why)
