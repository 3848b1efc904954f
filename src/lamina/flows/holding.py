"""How several workers hold a base: each all of it, each a share, or all leave it in the store.

All of them have to do the same, so each says what would fit where it is, and what fits nowhere is
left out.
"""

from typing import Literal

import torch

from lamina.bases.families import layer_of
from lamina.bases.load import FULL
from lamina.bases.sharded import GATHERED
from lamina.plan.memory import Shapes
from lamina.train.crew import Crew

Held = Literal["whole", "shared", "stored"]


def shared_parameters(shapes: Shapes, workers: int) -> int:
    """Parameters that a worker has in memory where the decoder's are shared out."""
    layers: dict[int, int] = {}
    for each in shapes.linears:
        layer = layer_of(each.name)
        layers[layer] = layers.get(layer, 0) + each.inputs * each.outputs
    decoder = sum(layers.values())
    share = -(-decoder // workers)
    return shapes.parameters - decoder + share + GATHERED * max(layers.values())


def agreed(crew: Crew, *, whole: bool, shared: bool) -> Held:
    """What fits everywhere, the fastest of it; `whole` and `shared`: what fits here."""
    misfits = torch.tensor([not whole, not shared], dtype=torch.float64)
    crew.add(misfits)
    if not misfits[0]:
        return "whole"
    return "stored" if misfits[1] else "shared"


def on_gpu(crew: Crew, shapes: Shapes, itemsize: int) -> Held:
    """The same for GPUs, by their free memory; what fits none of them in either way is "whole", as
    nothing is read from the store while a GPU trains."""
    room = FULL * torch.cuda.mem_get_info()[0]
    shared = itemsize * shared_parameters(shapes, crew.size) <= room
    held = agreed(crew, whole=itemsize * shapes.parameters <= room, shared=shared)
    return "whole" if held == "stored" else held
