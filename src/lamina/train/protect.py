"""Training that leaves alone what old rows need: A moves only at right angles to their inputs.

For each linear, Q spans the directions that hold most of what it reads on old rows. With every
gradient of A (and a fresh A itself) projected to the complement of Q, the trained update is nearly
silent on such inputs: dW x = s B A x with A Q = 0 (gradient projection memory, arXiv:2103.09762;
InfLoRA, arXiv:2404.00228).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lamina.core.seeds import derive
from lamina.lowrank.attach import Attachment
from lamina.lowrank.convolution import LowRankConvolution
from lamina.lowrank.inputs import inputs_of, main_directions
from lamina.tokens.batch import collate
from lamina.tokens.mask import Encoded
from lamina.tokens.pack import plan_batches
from lamina.train.objective import predicting

MOST_ROWS = 192
"""Old rows looked at."""


class Guard:
    """Keeps the updates of an attachment at right angles to what old rows read.

    `fresh` factors, whose B is zero, have the protected directions taken out of A itself; a warm
    start keeps its A, and only what training adds to it is kept off them.
    """

    @torch.no_grad()
    def __init__(self, attachment: Attachment, spans: Mapping[str, Tensor], *, fresh: bool) -> None:
        self._spans = spans
        self._modules = {name: attachment.modules[name] for name in spans}
        if fresh:
            for name, q_IK in spans.items():
                _project(self._modules[name].a.data, q_IK)
        self._starts = {name: each.a.data.clone() for name, each in self._modules.items()}

    @torch.no_grad()
    def before_step(self) -> None:
        """The gradient is whole: take the protected directions out of every A's, in place."""
        for name, q_IK in self._spans.items():
            gradient = self._modules[name].a.grad
            assert gradient is not None
            _project(gradient, q_IK)

    @torch.no_grad()
    def after_step(self) -> None:
        """The optimiser has moved: take them out of what the steps so far have added, as Adam's
        scaling brings them back."""
        for name, q_IK in self._spans.items():
            a_RI, start_RI = self._modules[name].a.data, self._starts[name]
            a_RI.sub_(((a_RI - start_RI) @ q_IK) @ q_IK.T)


def _project(a_RI: Tensor, q_IK: Tensor) -> None:
    a_RI.sub_((a_RI @ q_IK) @ q_IK.T)


@torch.no_grad()
def directions(
    model: nn.Module,
    linears: Mapping[str, nn.Module],
    rows: Sequence[Encoded],
    energy: float,
    batch_tokens: int,
    pad_id: int,
    seed: int,
) -> dict[str, Tensor]:
    """Those that text rows read: see `spans_of`."""

    def forwards() -> Iterator[tuple[Callable[[], object], Tensor]]:
        for indices in plan_batches([len(row) for row in chosen], batch_tokens, seed=0, epoch=0):
            batch = collate([chosen[i] for i in indices], pad_id)
            places_T = torch.arange(batch.ids.shape[1])
            real = (places_T[None] < batch.lengths[:, None]).flatten()
            yield partial(predicting, model, batch), real

    count = min(len(rows), MOST_ROWS)
    chosen = [rows[place * len(rows) // count] for place in range(count)]  # of every layer beneath
    return spans_of(linears, forwards(), energy, seed)


@torch.no_grad()
def spans_of(
    linears: Mapping[str, nn.Module],
    forwards: Iterable[tuple[Callable[[], object], Tensor | None]],
    energy: float,
    seed: int,
) -> dict[str, Tensor]:
    """name -> (I, K): see `main_directions`. Linears that read the same tensor share a basis.

    `forwards`: passes through the model, and which of the inputs' rows (N,) are no padding, None
    for all. Convolutions are left out: a patch has kh kw times as many numbers as a place has
    channels, and moments are their square.
    """
    grams: dict[str, Tensor] = {}
    leader: dict[str, str] = {}
    linears = {n: each for n, each in linears.items() if not isinstance(each, LowRankConvolution)}
    for forward, real in forwards if linears else ():
        with inputs_of(linears) as seen:
            forward()
        if not leader:
            first: dict[int, str] = {}
            leader = {name: first.setdefault(x.data_ptr(), name) for name, x in seen.items()}
        for name in set(leader.values()):
            read = seen[name]
            x_NI = (read if real is None else read[real.to(read.device)]).float()
            if name not in grams:
                grams[name] = x_NI.new_zeros(x_NI.shape[1], x_NI.shape[1])
            grams[name].addmm_(x_NI.T, x_NI)
    found = {
        name: main_directions(grams.pop(name), energy, derive(seed, "protect", name))
        for name in sorted(grams)
    }
    return {name: found[leader[name]].clone() for name in leader}
