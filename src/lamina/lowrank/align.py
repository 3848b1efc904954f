"""Correcting an update for a model whose activations moved: a ridge regression on its inputs.

The update dW = s B A was trained where a linear read x_old; put elsewhere, the linear reads x_new.
The corrected update does to x_new what the old one did to x_old, as nearly as rank and ridge let
it: with C_on = sum x_old x_new^T and C_nn = sum x_new x_new^T over the same tokens,

    A' = argmin sum |A' x_new - A x_old|^2 + ridge |A' - A|^2
       = (A C_on + ridge A)(C_nn + ridge)^-1.

B, rank and scale stay. Where nothing moved, A' = A exactly for every ridge.
"""

import torch
from torch import Tensor

from lamina.core.errors import LayerError
from lamina.lowrank.maths import Factors

RIDGE = 0.1
"""Ridge as a share of the mean squared activation."""


class InputMoments:
    """Running C_on and C_nn of one linear, float32, (I, I) each."""

    def __init__(self, features: int) -> None:
        self.cross_II = torch.zeros(features, features)
        self.gram_II = torch.zeros(features, features)

    def add(self, old_NI: Tensor, new_NI: Tensor) -> None:
        """Take in the inputs of the same N tokens. Raises LayerError when the shapes differ."""
        if old_NI.shape != new_NI.shape:
            raise LayerError(f"inputs of shapes {tuple(old_NI.shape)} and {tuple(new_NI.shape)}")
        old, new = old_NI.float(), new_NI.float()
        self.cross_II.addmm_(old.T, new)
        self.gram_II.addmm_(new.T, new)


def aligned(factors: Factors, moments: InputMoments, ridge: float = RIDGE) -> Factors:
    """The update with A corrected (see above), computed in float64, returned in float32.

    `ridge` is a share of the mean of C_nn's diagonal. Mutates nothing.
    """
    gram, cross = moments.gram_II.double(), moments.cross_II.double()
    a_RI = factors.a_RI.double()
    strength = ridge * float(gram.diagonal().mean())
    if strength <= 0:  # nothing was read: nothing to correct by
        return factors
    identity = torch.eye(gram.shape[0], dtype=torch.float64)
    right_RI = a_RI @ cross + strength * a_RI
    solved_IR = torch.linalg.solve(gram + strength * identity, right_RI.T)
    return Factors(solved_IR.T.float().contiguous(), factors.b_OR, factors.scale)
