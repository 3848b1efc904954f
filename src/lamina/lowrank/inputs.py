"""What linears read: their inputs in a forward pass, and the directions that hold most of it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_ROUNDS = 4
"""Of subspace iteration; activations' spectra fall steeply."""


@contextmanager
def inputs_of(linears: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """name -> (N, I), what each linear read in the block's last forward pass, N tokens flat.

    Linears that read one tensor share it: no copies are made.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str, linear: nn.Module) -> RemovableHandle:
        def hook(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen[name] = arguments[0].flatten(0, -2)

        return linear.register_forward_pre_hook(hook)

    handles = [keep(name, linear) for name, linear in linears.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def main_directions(gram_II: Tensor, energy: float, seed: int) -> Tensor:
    """(I, K): an orthonormal basis of the fewest directions that hold the share `energy` of the
    inputs whose second moments sum x x^T are given, at most a quarter of I.

    Subspace iteration (Halko et al., arXiv:0909.4061, section 4.4) in float32; deterministic.
    """
    features = gram_II.shape[0]
    generator = torch.Generator().manual_seed(seed)
    basis_IK = torch.randn(features, max(1, features // 4), generator=generator)
    basis_IK = basis_IK.to(gram_II.device)
    for _ in range(_ROUNDS):
        basis_IK, _ = torch.linalg.qr(gram_II @ basis_IK)
    values_K, vectors_KK = torch.linalg.eigh(basis_IK.T @ gram_II @ basis_IK)
    order = values_K.argsort(descending=True)
    held_K = values_K[order].clamp_min(0).cumsum(0) / gram_II.diagonal().sum().clamp_min(1e-30)
    count = int((held_K < energy).sum()) + 1
    chosen_IK: Tensor = (basis_IK @ vectors_KK[:, order[:count]]).contiguous()
    return chosen_IK
