"""Put a trainable or frozen update on a model's linears and convolutions, reversibly.

Attaching swaps modules; the base's own modules and tensors are never written, so detaching
restores them to the byte.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lamina.bases.convolution import in_model
from lamina.bases.supplied import SuppliedLinear
from lamina.core import heap
from lamina.core.errors import LayerError
from lamina.lowrank.convolution import with_update
from lamina.lowrank.linear import LowRankLinear
from lamina.lowrank.maths import Factors, LayerFactors, fold


def layer_faults(layer: LayerFactors, linears: Mapping[str, nn.Linear]) -> list[str]:
    """Everything that keeps `layer` from applying to these linears, one sentence each."""
    faults = []
    if not layer:
        faults.append("the layer touches no module")
    for name, factors in layer.items():
        linear = linears.get(name)
        rank, in_features = factors.a_RI.shape
        out_features, rank_b = factors.b_OR.shape
        if rank != rank_b:
            faults.append(f"{name}: A has rank {rank}, B has rank {rank_b}")
        if linear is None:
            faults.append(f"{name}: the base has no such linear")
        elif (out_features, in_features) != (linear.out_features, linear.in_features):
            faults.append(
                f"{name}: the layer is for ({out_features}, {in_features}), "
                f"the base has {(linear.out_features, linear.in_features)}"
            )
        if not (torch.isfinite(factors.a_RI).all() and torch.isfinite(factors.b_OR).all()):
            faults.append(f"{name}: numbers that are not finite")
    return faults


def check_layer(layer: LayerFactors, linears: Mapping[str, nn.Linear], what: str) -> None:
    """Raise LayerError listing every fault of `layer_faults`."""
    faults = layer_faults(layer, linears)
    if faults:
        raise LayerError(f"{what} does not fit the base", faults=faults)


class Attachment:
    """A trainable update on a model. All factors are views of one flat float32 buffer.

    `flat` (P,) is the only parameter an optimiser needs; its `.grad` is one flat buffer too, into
    which every module's gradient is accumulated in place. `detach()` puts the model back.
    Factors of `still` modules take part, but get no gradient and are no part of `flat`.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: LayerFactors,
        linears: Mapping[str, nn.Linear],
        still: Collection[str] = (),
    ) -> None:
        check_layer(layer, linears, "the layer")
        self._model = model
        self._originals: dict[str, nn.Linear] = {}
        self._undone: list[Callable[[], None]] = []
        self.modules: dict[str, LowRankLinear] = {}
        """Those that are trained."""
        self.still: dict[str, LowRankLinear] = {}
        total = sum(each.parameters for name, each in layer.items() if name not in still)
        device = next(model.parameters()).device
        self.flat = nn.Parameter(torch.empty(total, device=device))
        self.flat.grad = torch.zeros_like(self.flat)
        offset = 0
        for name in sorted(layer):
            factors = layer[name]
            if name in still:
                a, b = (_unmoved(each, device) for each in (factors.a_RI, factors.b_OR))
            else:
                a, offset = self._view(factors.a_RI, offset)
                b, offset = self._view(factors.b_OR, offset)
            module = with_update(linears[name], a, b, factors.scale)
            (self.still if name in still else self.modules)[name] = module
            self._originals[name] = linears[name]
            _set_module(model, name, module)

    def _view(self, initial: Tensor, offset: int) -> tuple[nn.Parameter, int]:
        """A parameter that lives inside the flat buffer, with its gradient inside the flat one."""
        end = offset + initial.numel()
        view = self.flat.data[offset:end].view(initial.shape)
        view.copy_(initial)
        parameter = nn.Parameter(view)
        assert self.flat.grad is not None
        parameter.grad = self.flat.grad[offset:end].view(initial.shape)
        return parameter, end

    def zero_grad(self) -> None:
        """Set the flat gradient, hence every view of it, to zero."""
        assert self.flat.grad is not None
        self.flat.grad.zero_()

    def factors(self, flat: Tensor | None = None) -> dict[str, Factors]:
        """Copies of the factors as they stand, or as they stood in another flat buffer (P,), in
        main memory."""
        source = self.flat.data if flat is None else flat
        result, offset = {}, 0
        for name, module in self.modules.items():
            tensors = []
            for shape in (module.a.shape, module.b.shape):
                end = offset + shape.numel()
                tensors.append(source[offset:end].view(shape).to("cpu", copy=True))
                offset = end
            result[name] = Factors(tensors[0], tensors[1], module.scale)
        for name, module in self.still.items():
            a, b = (each.detach().to("cpu", copy=True) for each in (module.a, module.b))
            result[name] = Factors(a, b, module.scale)
        return result

    def when_detached(self, undo: Callable[[], None]) -> None:
        """Have `detach` call this too: it puts back what else was changed for the update's sake."""
        self._undone.append(undo)

    def detach(self) -> None:
        """Put every original module back. Safe to call twice."""
        while self._undone:
            self._undone.pop()()
        for name, linear in self._originals.items():
            _set_module(self._model, name, in_model(linear))
        self._originals = {}


@contextmanager
def attached(
    model: nn.Module, layer: LayerFactors, linears: Mapping[str, nn.Linear]
) -> Iterator[Attachment]:
    """`Attachment` for the length of a block."""
    attachment = Attachment(model, layer, linears)
    try:
        yield attachment
    finally:
        attachment.detach()


def fold_into(linears: Mapping[str, nn.Linear], layer: LayerFactors) -> None:
    """Give each linear a new weight with the layer folded in (float32 sum, rounded once).

    The old weight tensors are replaced, not written: whoever else holds them (a mapped file, the
    base) sees no change. A linear whose weight is not in memory takes the layer in its own way.
    Raises LayerError listing every fault, before anything is replaced.
    """
    check_layer(layer, linears, "the layer")
    for name, factors in layer.items():
        linear = linears[name]
        if isinstance(linear, SuppliedLinear):
            linear.add(factors.a_RI.float(), factors.b_OR.float() * factors.scale)
            continue
        folded = fold(linear.weight.data, [factors])
        linear.weight = nn.Parameter(folded, requires_grad=False)
        del folded
        heap.give_back()  # the old weight, before the next one needs as much


def _unmoved(factor: Tensor, device: torch.device) -> nn.Parameter:
    """A copy that nothing trains, float32."""
    return nn.Parameter(factor.to(device, torch.float32, copy=True), requires_grad=False)


def _set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule at a dotted path."""
    parent_name, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent_name), child, module)
