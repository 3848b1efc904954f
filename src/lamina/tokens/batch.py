"""Rows to tensors: right-padded ids, and the few positions where the loss looks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lamina.tokens.mask import Encoded


@dataclass(frozen=True, eq=False)
class Batch:
    """A right-padded batch; under causal attention right padding needs no attention mask.

    B rows, T tokens of the longest row, N targets. Everything is int64.
    """

    ids: Tensor
    """(B, T) token ids."""
    positions: Tensor
    """(N,) indices into the flat (B*T,) positions *before* each target: what predicts it."""
    targets: Tensor
    """(N,) token ids to predict, row by row, left to right."""
    lengths: Tensor
    """(B,) tokens of each row, without padding."""
    row_of_target: Tensor
    """(N,) the row that each target belongs to."""

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(
            self.ids.to(device),
            self.positions.to(device),
            self.targets.to(device),
            self.lengths.to(device),
            self.row_of_target.to(device),
        )


def collate(rows: Sequence[Encoded], pad_id: int) -> Batch:
    """Pad rows on the right with `pad_id` and find their targets.

    Raises: ValueError when there are no rows, or when one is empty.
    """
    if not rows or any(len(row) == 0 for row in rows):
        raise ValueError("a batch needs at least one row, and no row may be empty")
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    ids_BT = np.full((len(rows), int(lengths.max())), pad_id, dtype=np.int64)
    mask_BT = np.zeros(ids_BT.shape, dtype=np.bool_)
    for index, row in enumerate(rows):
        ids_BT[index, : len(row)] = row.ids
        mask_BT[index, 1 : len(row)] = row.mask[1:]
    row_of_target, target_at = np.nonzero(mask_BT)
    return Batch(
        ids=torch.from_numpy(ids_BT),
        positions=torch.from_numpy(row_of_target * ids_BT.shape[1] + target_at - 1),
        targets=torch.from_numpy(ids_BT[row_of_target, target_at]),
        lengths=torch.from_numpy(lengths),
        row_of_target=torch.from_numpy(row_of_target),
    )
