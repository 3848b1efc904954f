"""Linears whose weights are stored in 4 or 8 bits, and bases that are made of them.

The stored tensors are never written. A weight is unpacked when a product needs it and dropped
afterwards; frozen layers of the stack stand beside it as factors, because weights that are rounded
to 4 bits again would lose them.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lamina.bases import int8, nf4
from lamina.bases.families import linears
from lamina.bases.shell import QUANTISATION, Files, fill, shell
from lamina.core.errors import BaseError
from lamina.core.manifests import Quantisation

PACKINGS: dict[Quantisation, ModuleType] = {"nf4": nf4, "int8": int8}
"""Each has SETTINGS, SUFFIXES, `pack` and `unpacker`."""


class QuantisedLinear(nn.Linear):
    """y = x W^T + bias + (x A^T) B^T with W unpacked from its stored tensors for each product.

    x (..., I), W (O, I), A (R, I), B (O, R); A and B are the frozen layers' factors, if any.
    """

    a_RI: Tensor | None
    b_OR: Tensor | None

    def __init__(
        self,
        kind: Quantisation,
        tensors: Mapping[str, Tensor],
        shape_OI: tuple[int, int],
        bias: nn.Parameter | None,
        dtype: torch.dtype,
    ) -> None:
        """`tensors` by the kind's suffixes. Raises ValueError when they are of another shape."""
        nn.Module.__init__(self)  # nn.Linear's own would make a weight
        self.out_features, self.in_features = shape_OI
        self.dtype = dtype
        self.kind: Quantisation = kind
        self._unpack: Callable[[Tensor | None], Tensor] | None = None
        for suffix in PACKINGS[kind].SUFFIXES:
            self.register_buffer(suffix.replace(".", "_") + "_", tensors[suffix])
        self.register_parameter("bias", bias)
        self.register_buffer("a_RI", None)
        self.register_buffer("b_OR", None)
        self._opened()

    def stored(self) -> dict[str, Tensor]:
        """The packed weight's tensors by the kind's suffixes. Not to be written."""
        return {
            suffix: getattr(self, suffix.replace(".", "_") + "_")
            for suffix in PACKINGS[self.kind].SUFFIXES
        }

    def _opened(self) -> Callable[[Tensor | None], Tensor]:
        if self._unpack is None:
            shape = (self.out_features, self.in_features)
            self._unpack = PACKINGS[self.kind].unpacker(self.stored(), shape, self.dtype)
        return self._unpack

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        self._unpack = None  # it holds the tensors as they were
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def unpacked(self, out: Tensor | None = None) -> Tensor:
        """W (O, I) in the compute dtype, without frozen layers, into `out` or a new tensor."""
        return self._opened()(out)

    @property
    def term(self) -> tuple[Tensor, Tensor] | None:
        """A (R, I) and B (O, R) of the frozen layers, in the compute dtype."""
        return None if self.a_RI is None or self.b_OR is None else (self.a_RI, self.b_OR)

    def add_term(self, a_RI: Tensor, b_OR: Tensor) -> None:
        """Put one more frozen update B A, scales in B, beside the weight."""
        a_RI, b_OR = (t.to(dtype=self.dtype, device=self.device) for t in (a_RI, b_OR))
        if self.term is not None:
            a_RI = torch.cat([self.term[0], a_RI])
            b_OR = torch.cat([self.term[1], b_OR], dim=1)
        self.a_RI, self.b_OR = a_RI, b_OR

    @property
    def device(self) -> torch.device:
        """Where the stored tensors are."""
        return next(self.buffers()).device

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W + B A (O, I), a new tensor: what the linear multiplies with, rounded once."""
        weight_OI = self.unpacked()
        if self.term is None:
            return weight_OI
        a_RI, b_OR = self.term
        return torch.addmm(weight_OI.float(), b_OR.float(), a_RI.float()).to(self.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """x (..., I) -> (..., O)."""
        y: Tensor = _Product.apply(input, self)  # type: ignore[no-untyped-call]
        return y

    def product(self, x_NI: Tensor) -> Tensor:
        """y (N, O), without gradients."""
        y_NO = nn.functional.linear(x_NI, self.unpacked(), self.bias)
        if self.term is not None:
            a_RI, b_OR = self.term
            y_NO.addmm_(x_NI @ a_RI.T, b_OR.T)
        return y_NO

    def input_gradient(self, g_NO: Tensor) -> Tensor:
        """dx (N, I) = g W + (g B) A."""
        dx_NI = g_NO @ self.unpacked()
        if self.term is not None:
            a_RI, b_OR = self.term
            dx_NI.addmm_(g_NO @ b_OR, a_RI)
        return dx_NI


class _Product(torch.autograd.Function):
    """`QuantisedLinear.product` and `.input_gradient`: the weight is unpacked in each, and kept
    by neither."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: QuantisedLinear) -> Tensor:
        ctx.linear, ctx.shape = linear, x.shape
        y_NO = linear.product(x.reshape(-1, x.shape[-1]))
        return y_NO.view(*x.shape[:-1], y_NO.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        dx_NI = ctx.linear.input_gradient(g.reshape(-1, g.shape[-1]))
        return dx_NI.view(ctx.shape), None


def quantisation(config: Mapping[str, Any]) -> Quantisation | None:
    """How a base's configuration says that it is quantised. Raises BaseError for other ways."""
    settings = config.get(QUANTISATION)
    if settings is None:
        return None
    for kind, packing in PACKINGS.items():
        if settings == packing.SETTINGS:
            return kind
    raise BaseError(
        "the weights are quantised in a way that lamina does not read",
        faults=[f"{key}: {value!r}" for key, value in sorted(dict(settings).items())],
        hint=f"pull the unquantised model; --quantise does {' or '.join(PACKINGS)}",
    )


def load_quantised(directory: Path, kind: Quantisation, *, dtype: torch.dtype) -> nn.Module:
    """The model of a quantised base's folder, frozen, computing in `dtype`.

    Raises BaseError listing every tensor that is missing or of another shape, MissingPartError.
    """
    packing, files = PACKINGS[kind], Files(directory)
    model = shell(directory, dtype=dtype)
    faults, replaced = [], set()
    for name, linear in linears(model).items():
        if f"{name}.{packing.SUFFIXES[0]}" not in files:
            faults.append(f"{name}: has no {packing.SUFFIXES[0]}")
            continue
        tensors = {suffix: files.read(f"{name}.{suffix}") for suffix in packing.SUFFIXES}
        bias = None
        if linear.bias is not None:
            bias = nn.Parameter(files.read(f"{name}.bias").to(dtype), requires_grad=False)
        shape = (linear.out_features, linear.in_features)
        try:
            made = QuantisedLinear(kind, tensors, shape, bias, dtype)
        except (ValueError, AssertionError, KeyError, RuntimeError) as error:
            faults.append(f"{name}: {error}")
            continue
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, made)
        replaced.add(name)
    if faults:
        raise BaseError(
            f"the weights in {directory} are not those of a base in {kind}",
            faults=faults,
            hint="pull the base again",
        )
    fill(model, files, but=frozenset(replaced))
    return model.eval().requires_grad_(False)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights, packed ones as they are stored; frozen layers don't count."""
    packed = [m for m in model.modules() if isinstance(m, QuantisedLinear)]
    tensors = [*model.parameters(), *(t for m in packed for t in m.stored().values())]
    return sum(t.numel() * t.element_size() for t in tensors)
