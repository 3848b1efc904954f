"""Linears that read one tensor, as one product: queries, keys and values, or gate and up.

y = x W^T + c + (x A^T) B^T with the members' W, A stacked by rows and B, scaled, block-diagonal.
Members without an update take part with their weight alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lamina.lowrank.linear import LowRankLinear


class Group:
    """Members' weights lie in one tensor, of which theirs become views: no byte is there twice.

    Gradients of the factors are added to the members' `.grad`, in float32.
    """

    def __init__(self, members: Sequence[nn.Linear | LowRankLinear]) -> None:
        bases = [m.base if isinstance(m, LowRankLinear) else m for m in members]
        self.updates = [m if isinstance(m, LowRankLinear) else None for m in members]
        self.outs = [base.out_features for base in bases]
        self.weight_OI = bases[0].weight.data
        if len(bases) > 1:
            self.weight_OI = torch.cat([base.weight.data for base in bases])
            for base, part in zip(bases, torch.split(self.weight_OI, self.outs), strict=True):
                base.weight.data = part
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
        self._b_OR: Tensor | None = None

    @property
    def trained(self) -> bool:
        """Whether any member has an update."""
        return any(update is not None for update in self.updates)

    def load(self) -> None:
        """Take the factors as they stand, rounded to the weight's dtype."""
        if not self.trained:
            return
        found = [update for update in self.updates if update is not None]
        self._a_RI = torch.cat([update.a.data for update in found]).to(self.weight_OI.dtype)
        self._b_OR = self.weight_OI.new_zeros(sum(self.outs), len(self._a_RI))
        for rows, columns, update in self._blocks():
            self._b_OR[rows, columns] = update.b.data * update.scale

    def _blocks(self) -> list[tuple[slice, slice, LowRankLinear]]:
        """(rows of B, columns of B, update) of each member with one."""
        found, row, column = [], 0, 0
        for out, update in zip(self.outs, self.updates, strict=True):
            if update is not None:
                rank = update.a.shape[0]
                found.append((slice(row, row + out), slice(column, column + rank), update))
                column += rank
            row += out
        return found

    def forward(
        self, x_NI: Tensor, residual_NO: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """y (N, O), with a residual added in the same product, and u = x A^T (N, R)."""
        if residual_NO is None:
            y_NO = nn.functional.linear(x_NI, self.weight_OI, self.bias_O)
        else:
            y_NO = torch.addmm(residual_NO, x_NI, self.weight_OI.T)
            if self.bias_O is not None:
                y_NO += self.bias_O
        if self._a_RI is None or self._b_OR is None:
            return y_NO, None
        u_NR = x_NI @ self._a_RI.T
        return y_NO.addmm_(u_NR, self._b_OR.T), u_NR

    def backward(
        self, x_NI: Tensor, u_NR: Tensor | None, g_NO: Tensor, *, need_dx: bool = True
    ) -> Tensor | None:
        """dx (N, I) = g W + v A with v = g B; dA += v^T x and dB += s g^T u into the members'."""
        v_NR = None
        if u_NR is not None and self._a_RI is not None and self._b_OR is not None:
            v_NR = g_NO @ self._b_OR
            da_RI, db_OR = v_NR.T @ x_NI, g_NO.T @ u_NR
            for rows, columns, update in self._blocks():
                assert update.a.grad is not None
                assert update.b.grad is not None
                update.a.grad += da_RI[columns]
                update.b.grad.add_(db_OR[rows, columns], alpha=update.scale)
        if not need_dx:
            return None
        dx_NI = g_NO @ self.weight_OI
        if v_NR is not None and self._a_RI is not None:
            dx_NI.addmm_(v_NR, self._a_RI)
        return dx_NI
