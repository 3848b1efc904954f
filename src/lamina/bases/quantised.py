"""Linears whose weights are stored in 4 or 8 bits, and bases that are made of them.

The stored tensors are never written. A weight is unpacked when a product needs it and dropped
afterwards; frozen layers of the stack stand beside it as factors, because weights that are rounded
to 4 bits again would lose them.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lamina.bases import int8, nf4
from lamina.bases.filed import FiledLinear
from lamina.bases.identity import CONFIG, describe, read_json
from lamina.bases.shell import (
    QUANTISATION,
    Files,
    fill,
    linear_shapes,
    replace_linears,
    shell,
)
from lamina.bases.supplied import SuppliedLinear
from lamina.core.errors import BaseError
from lamina.core.manifests import BaseConfig, Quantisation

PACKINGS: dict[Quantisation, ModuleType] = {"nf4": nf4, "int8": int8}
"""Each has SETTINGS, SUFFIXES, `pack` and `unpacker`."""


class QuantisedLinear(SuppliedLinear):
    """A linear whose weight is unpacked from its stored tensors; frozen layers stay factors."""

    def __init__(
        self,
        kind: Quantisation,
        tensors: Mapping[str, Tensor],
        shape_OI: tuple[int, int],
        bias: nn.Parameter | None,
        dtype: torch.dtype,
    ) -> None:
        """`tensors` by the kind's suffixes. Raises ValueError when they are of another shape."""
        super().__init__(shape_OI, bias, dtype)
        self.kind: Quantisation = kind
        self._unpack: Callable[[Tensor | None], Tensor] | None = None
        for suffix in PACKINGS[kind].SUFFIXES:
            self.register_buffer(suffix.replace(".", "_") + "_", tensors[suffix])
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

    def supplied(self, out: Tensor | None = None) -> Tensor:
        """W (O, I) unpacked, without frozen layers."""
        return self._opened()(out)

    def add(self, a_RI: Tensor, b_OR: Tensor) -> None:
        """Put the update beside the weight, in the compute dtype."""
        device = next(iter(self.stored().values())).device
        a_RI, b_OR = (t.to(dtype=self.dtype, device=device) for t in (a_RI, b_OR))
        if self.term is not None:
            a_RI = torch.cat([self.term[0], a_RI])
            b_OR = torch.cat([self.term[1], b_OR], dim=1)
        self.a_RI, self.b_OR = a_RI, b_OR


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

    def packed(name: str, linear: nn.Linear) -> nn.Linear:
        if f"{name}.{packing.SUFFIXES[0]}" not in files:
            raise ValueError(f"has no {packing.SUFFIXES[0]}")
        tensors = {suffix: files.read(f"{name}.{suffix}") for suffix in packing.SUFFIXES}
        shape = (linear.out_features, linear.in_features)
        return QuantisedLinear(kind, tensors, shape, files.bias(name, linear, dtype), dtype)

    replaced = replace_linears(
        model, packed, f"the weights in {directory} are not a base in {kind}"
    )
    fill(model, files, but=replaced)
    return model.eval().requires_grad_(False)


def described(
    directory: Path, *, template_origin: Literal["own", "chatml"], licence: str | None
) -> BaseConfig:
    """`identity.describe`, which counts numbers as they are stored; here weights are counted as
    what they stand for, and the way of packing is said. Raises BaseError."""
    config = describe(directory, template_origin=template_origin, licence=licence)
    kind = quantisation(read_json(directory / CONFIG))
    if kind is None:
        return config
    shapes, files = linear_shapes(directory), Files(directory)
    packed = packed_names(shapes, kind)
    others = (entry.elements for name, entry in files.entries.items() if name not in packed)
    count = sum(others) + sum(rows * columns for rows, columns in shapes.values())
    return config.model_copy(update={"quantised": kind, "parameters": count})


def packed_names(modules: Iterable[str], kind: Quantisation) -> frozenset[str]:
    """Names of the tensors that these linears' weights are stored in."""
    return frozenset(f"{module}.{s}" for module in modules for s in PACKINGS[kind].SUFFIXES)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights, packed ones as they are stored, those left in files or shared out
    as they are used; frozen layers don't count."""
    packed = [m for m in model.modules() if isinstance(m, QuantisedLinear)]
    tensors = [*model.parameters(), *(t for m in packed for t in m.stored().values())]
    filed = [m for m in model.modules() if isinstance(m, FiledLinear)]
    elsewhere = sum(m.out_features * m.in_features * m.dtype.itemsize for m in filed)
    return elsewhere + sum(t.numel() * t.element_size() for t in tensors)
