"""Groups of linears whose weights are not in memory between their products.

A supplier makes the members' weights, side by side, when a product is about to need them; frozen
layers of the stack stand beside as factors.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lamina.bases.sharded import ShardedLinear, supplier_of_shards
from lamina.bases.streamed import StreamedLinear, supplier_of
from lamina.bases.supplied import SuppliedLinear
from lamina.lowrank.group import Group
from lamina.lowrank.linear import LowRankLinear

Supplier = Callable[[], Tensor]
"""Gives the members' weights (sum of O, I); they hold until any supplier is asked again."""


class Scratch:
    """One piece of memory that suppliers share, as large as the largest of them asked for."""

    def __init__(self) -> None:
        self._flat: Tensor | None = None

    def shaped(self, shape: tuple[int, int], like: Tensor) -> Tensor:
        """Memory of this shape, with whatever was left in it, of the dtype and device of `like`."""
        size = shape[0] * shape[1]
        if self._flat is None or self._flat.numel() < size or self._flat.dtype != like.dtype:
            with torch.inference_mode(False):  # training writes into it too
                self._flat = torch.empty(size, dtype=like.dtype, device=like.device)
        return self._flat[:size].view(shape)


class SuppliedGroup(Group):
    """y = x W^T + c + (x A^T) B^T + (x F^T) E^T, with E F the frozen layers' update, if any."""

    def __init__(
        self,
        members: Sequence[nn.Linear | LowRankLinear],
        supplier: Supplier,
        term: tuple[Tensor, Tensor] | None,
        like: Tensor,
    ) -> None:
        """`term`: F (K, I) and E (sum of O, K). `like` has the weights' dtype and device."""
        self._like = like.new_empty(0)
        super().__init__(members)
        self._supplier, self._term = supplier, term
        self._held: Tensor | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """One copy of the weights for all products of the block."""
        self._held = self._supplier().clone()
        try:
            yield
        finally:
            self._held = None

    def _joined(self, bases: Sequence[nn.Linear]) -> Tensor:
        return self._like

    def forward(
        self, x_NI: Tensor, residual_NO: Tensor | None = None, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As `Group.forward`, with the frozen layers' update."""
        self.weight_OI = self._supplier() if self._held is None else self._held
        y_NO, u_NR = super().forward(x_NI, residual_NO, out)
        self.weight_OI = self._like
        if self._term is not None:
            f_KI, e_OK = self._term
            y_NO.addmm_(x_NI @ f_KI.T, e_OK.T)
        return y_NO, u_NR

    def input_gradient(self, g_NO: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `Group.input_gradient`, through the frozen layers' update too."""
        self.weight_OI = self._supplier()
        dx_NI, v_NR = super().input_gradient(g_NO)
        self.weight_OI = self._like
        if self._term is not None:
            f_KI, e_OK = self._term
            dx_NI.addmm_(g_NO @ e_OK, f_KI)
        return dx_NI, v_NR


def group_of(members: Sequence[nn.Linear | LowRankLinear], scratch: Scratch, like: Tensor) -> Group:
    """The group of some linears: plain ones side by side in memory; others' weights are made for
    each product, in `scratch` where need be. `like` has the compute dtype and the device."""
    bases = [m.base if isinstance(m, LowRankLinear) else m for m in members]
    supplied = [base for base in bases if isinstance(base, SuppliedLinear)]
    if len(supplied) < len(bases):
        return Group(members)
    shape = (sum(base.out_features for base in supplied), supplied[0].in_features)
    streamed = [base for base in supplied if isinstance(base, StreamedLinear)]
    sharded = [base for base in supplied if isinstance(base, ShardedLinear)]
    if len(streamed) == len(supplied):
        supplier = supplier_of(streamed, lambda: scratch.shaped(shape, like))
    elif len(sharded) == len(supplied):
        supplier = supplier_of_shards(sharded, lambda: scratch.shaped(shape, like))
    else:
        supplier = _one_by_one(supplied, lambda: scratch.shaped(shape, like))
    return SuppliedGroup(members, supplier, _joined_term(supplied), like)


def _one_by_one(linears: Sequence[SuppliedLinear], room: Supplier) -> Supplier:
    outs = [linear.out_features for linear in linears]

    def supplier() -> Tensor:
        if len(linears) == 1:
            return linears[0].supplied()
        weight_OI = room()
        for linear, part in zip(linears, torch.split(weight_OI, outs), strict=True):
            linear.supplied(part)
        return weight_OI

    return supplier


def _joined_term(linears: Sequence[SuppliedLinear]) -> tuple[Tensor, Tensor] | None:
    """The members' frozen updates as one: A stacked by rows, B block-diagonal."""
    terms = [base.term for base in linears]
    found = [term for term in terms if term is not None]
    if not found:
        return None
    a_KI = torch.cat([a for a, _ in found])
    b_OK = a_KI.new_zeros(sum(base.out_features for base in linears), len(a_KI))
    row = column = 0
    for base, term in zip(linears, terms, strict=True):
        if term is not None:
            rank = len(term[0])
            b_OK[row : row + base.out_features, column : column + rank] = term[1]
            column += rank
        row += base.out_features
    return a_KI, b_OK
