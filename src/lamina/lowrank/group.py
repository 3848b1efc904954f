"""Linears that read one tensor, as one product: queries, keys and values, or gate and up.

y = x W^T + c with the members' W stacked by rows; u = x A^T with their A stacked by rows; then a
member's columns of y get u_m (s B_m)^T. Members without an update take part with their weight only.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lamina.bases import products
from lamina.kernels import native
from lamina.lowrank.linear import LowRankLinear


class _Part(NamedTuple):
    """A member with an update."""

    outs: slice
    """Its columns of y."""
    ranks: slice
    """Its columns of u."""
    update: LowRankLinear
    b_OR: Tensor
    """s B, in the weight's dtype."""


class Group:
    """Members' weights lie in one tensor, of which theirs become views: no byte is there twice.

    Gradients of the factors are added to the members' `.grad`, in float32.
    """

    def __init__(self, members: Sequence[nn.Linear | LowRankLinear]) -> None:
        bases = [m.base if isinstance(m, LowRankLinear) else m for m in members]
        self.updates = [m if isinstance(m, LowRankLinear) else None for m in members]
        self.outs = [base.out_features for base in bases]
        self._inputs = {base.in_features for base in bases}
        self.weight_OI = self._joined(bases)
        biases = [base.bias for base in bases]
        self.bias_O: Tensor | None = None
        if any(bias is not None for bias in biases):
            self.bias_O = torch.cat(
                [
                    self.weight_OI.new_zeros(out) if bias is None else bias.data
                    for bias, out in zip(biases, self.outs, strict=True)
                ]
            )
        self._a_RI: Tensor | None = None
        self._parts: list[_Part] = []
        self._own = False

    def use_native(self) -> None:
        """Take the processor's own product where it knows these sizes (bfloat16, no biases)."""
        inputs = next(iter(self._inputs), 0)
        ranks = [0 if each is None else len(each.a) for each in self.updates]
        self._own = self.bias_O is None and native.takes(inputs, self.outs, ranks)

    def _joined(self, bases: Sequence[nn.Linear]) -> Tensor:
        """The members' weights side by side (sum of O, I); theirs become views of it."""
        if len(bases) == 1:
            return bases[0].weight.data
        weight_OI = torch.cat([base.weight.data for base in bases])
        for base, part in zip(bases, torch.split(weight_OI, self.outs), strict=True):
            base.weight.data = part
        return weight_OI

    @property
    def updated(self) -> bool:
        """Whether any member has an update."""
        return any(update is not None for update in self.updates)

    @property
    def learns(self) -> bool:
        """Whether any member's update is trained."""
        factors = [f for update in self.updates if update is not None for f in (update.a, update.b)]
        return any(factor.requires_grad for factor in factors)

    @contextmanager
    def held(self) -> Iterator[None]:
        """The weights stay as they are for the block, where they are not there anyway."""
        yield

    def load(self) -> None:
        """Take the factors as they stand, rounded to the weight's dtype; once where none learns."""
        if not self.updated or (self._a_RI is not None and not self.learns):
            return
        if self._a_RI is None:
            self._a_RI, self._parts = self._buffers()
        for _, ranks, update, b_OR in self._parts:
            self._a_RI[ranks] = update.a.data
            b_OR.copy_(update.b.data * update.scale)

    def _buffers(self) -> tuple[Tensor, list[_Part]]:
        """Where `load` puts the factors: made once, as new ones at every step would lie scattered
        among the activations and keep the heap from closing up."""
        parts: list[_Part] = []
        row = column = 0
        for out, update in zip(self.outs, self.updates, strict=True):
            if update is not None:
                outs, ranks = slice(row, row + out), slice(column, column + len(update.a))
                b_OR = self.weight_OI.new_empty(update.b.shape)
                parts.append(_Part(outs, ranks, update, b_OR))
                column = ranks.stop
            row += out
        inputs = parts[0].update.a.shape[1]
        return self.weight_OI.new_empty(column, inputs), parts

    def _members(self) -> list[tuple[int, slice, Tensor | None]]:
        """Each member's outputs, its columns of u, and its s B."""
        parts = {part.outs.start: part for part in self._parts}
        found: list[tuple[int, slice, Tensor | None]] = []
        start = 0
        for out in self.outs:
            part = parts.get(start)
            found.append((out, slice(0, 0), None) if part is None else (out, part.ranks, part.b_OR))
            start += out
        return found

    def narrow(self, x_NI: Tensor) -> Tensor | None:
        """u = x A^T (N, R); None without an update."""
        return None if self._a_RI is None else products.linear(x_NI, self._a_RI)

    def forward(
        self, x_NI: Tensor, residual_NO: Tensor | None = None, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """y (N, O), in `out` where it is given, with a residual added in the same product, and
        u = x A^T (N, R)."""
        if self._own:
            u_NR = self.narrow(x_NI)
            members = None if u_NR is None else (u_NR, self._members())
            return native.product(x_NI, self.weight_OI, members, residual_NO, out), u_NR
        y_NO = self._whole(x_NI, residual_NO, out)
        u_NR = self.narrow(x_NI)
        if u_NR is None:
            return y_NO, None
        if out is None and len(self.outs) == 1:
            return products.added(y_NO, u_NR, self._parts[0].b_OR), u_NR
        for outs, ranks, _, b_OR in self._parts:
            y_NO[:, outs].addmm_(u_NR[:, ranks], b_OR.T)
        return y_NO, u_NR

    def _whole(self, x_NI: Tensor, residual_NO: Tensor | None, out: Tensor | None) -> Tensor:
        """x W^T + c + residual, in `out` where it is given."""
        if products.better(x_NI, self.weight_OI):
            y_NO = products.linear(x_NI, self.weight_OI, self.bias_O)
            if residual_NO is not None:
                y_NO += residual_NO
            return y_NO if out is None else out.copy_(y_NO)
        if residual_NO is not None:
            y_NO = torch.addmm(residual_NO, x_NI, self.weight_OI.T, out=out)
            if self.bias_O is not None:
                y_NO += self.bias_O
            return y_NO
        if out is None:
            return nn.functional.linear(x_NI, self.weight_OI, self.bias_O)
        if self.bias_O is None:
            return torch.mm(x_NI, self.weight_OI.T, out=out)
        return torch.addmm(self.bias_O, x_NI, self.weight_OI.T, out=out)

    def input_gradient(self, g_NO: Tensor) -> tuple[Tensor, Tensor | None]:
        """dx = g W + v A (N, I), and v = g (s B) (N, R)."""
        v_NR = self._through_b(g_NO)
        if self._own:
            update = None if v_NR is None or self._a_RI is None else (v_NR, self._a_RI)
            return native.product_back(g_NO, self.weight_OI, update), v_NR
        dx_NI = products.through(g_NO, self.weight_OI)
        if v_NR is not None and self._a_RI is not None:
            dx_NI = products.added(dx_NI, v_NR, self._a_RI.T)
        return dx_NI, v_NR

    def add_gradients(
        self, x_NI: Tensor, u_NR: Tensor | None, g_NO: Tensor, v_NR: Tensor | None = None
    ) -> None:
        """dA += v^T x and dB += s g^T u, into the members'; v is computed where it is not given."""
        if u_NR is None:
            return
        v_NR = self._through_b(g_NO) if v_NR is None else v_NR
        assert v_NR is not None
        da_RI = products.across(v_NR, x_NI)
        for outs, ranks, update, _ in self._parts:
            assert update.a.grad is not None
            assert update.b.grad is not None
            update.a.grad += da_RI[ranks]
            # the narrow side first: sums of few rows are faster than those of few columns
            db_RO = products.across(u_NR[:, ranks], g_NO[:, outs])
            update.b.grad.add_(db_RO.T, alpha=update.scale)

    def _through_b(self, g_NO: Tensor) -> Tensor | None:
        if self._a_RI is None:
            return None
        v_NR = g_NO.new_empty(len(g_NO), len(self._a_RI))
        for outs, ranks, _, b_OR in self._parts:
            torch.mm(g_NO[:, outs], b_OR, out=v_NR[:, ranks])
        return v_NR
