"""The loss: negative log-likelihood at supervised positions only.

Logits are taken only where there is a label, in chunks, and their gradient is computed with
them: no (tokens x vocabulary) tensor ever exists. The head is frozen, so it gets no gradient.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lamina.bases import products
from lamina.bases.families import Head, backbone, head
from lamina.kernels import reference
from lamina.kernels.choose import chosen
from lamina.tokens.batch import Batch

CHUNK_BYTES = 32 << 20
"""Largest chunk of logits."""
GPU_CHUNK_BYTES = 512 << 20
"""The same on a GPU, which is busy only with thousands of rows."""


class Decoder(Protocol):
    """Another way through a model's decoder than its own modules'."""

    @property
    def model(self) -> nn.Module:
        """The model, with its head."""

    def predicting(self, batch: Batch) -> Tensor:
        """(N, C) the hidden states that predict the batch's targets."""


class _HeadLoss(torch.autograd.Function):
    """ce[n] = logsumexp(z_n) - sum_k w[n,k] z_n[target[n,k]],  z = softcap(scale * h W^T).

    With one target of weight 1 it is the negative log-likelihood; with a teacher's most likely
    tokens and their probabilities, the cross-entropy to the teacher.
    dL/dh = g[n] * (softmax(z) - w) dz/dh, computed chunk by chunk in the forward (as in
    Liger-Kernel's fused linear cross-entropy, arXiv:2410.10989).
    Shapes: h (N, H), W (V, H), targets (N, K) int64, weights (N, K) float32 summing to 1 over K
    -> (N,) float32. Mutates nothing.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, spec: Head, targets_NK: Tensor, weights_NK: Tensor
    ) -> Tensor:
        vocabulary = spec.weight.shape[0]
        most = CHUNK_BYTES if hidden_NH.device.type == "cpu" else GPU_CHUNK_BYTES
        step = max(1, most // (spec.weight.itemsize * vocabulary))
        losses_N = torch.empty(len(targets_NK), device=hidden_NH.device)
        grad_NH = torch.empty_like(hidden_NH) if ctx.needs_input_grad[0] else None
        for start in range(0, len(targets_NK), step):
            part = slice(start, start + step)
            z_NV = products.linear(hidden_NH[part], spec.weight)
            losses_N[part] = _losses(
                z_NV, spec, targets_NK[part], weights_NK[part], gradient=grad_NH is not None
            )
            if grad_NH is not None:
                products.through(z_NV, spec.weight, out=grad_NH[part])
        ctx.save_for_backward(grad_NH)
        return losses_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_N: Tensor) -> tuple[Tensor | None, ...]:
        (grad_NH,) = ctx.saved_tensors
        return grad_NH * g_N[:, None].to(grad_NH.dtype), None, None, None


def _losses(
    z_NV: Tensor, spec: Head, index_NK: Tensor, share_NK: Tensor, *, gradient: bool
) -> Tensor:
    """Losses (N,) of h W^T; with `gradient` it becomes their gradient by h W^T. Mutates z."""
    if spec.softcap is None and spec.scale == 1.0:
        ops, _ = chosen(z_NV.dtype, z_NV.device)
        return ops.cross_entropy(z_NV, index_NK, share_NK, gradient=gradient)  # type: ignore[no-any-return]
    wide_NV = z_NV.float().mul_(spec.scale)
    slope_NV: Tensor | float = spec.scale
    if spec.softcap is not None:
        wide_NV.div_(spec.softcap).tanh_()
        slope_NV = (1 - wide_NV.square()).mul_(spec.scale) if gradient else spec.scale
        wide_NV.mul_(spec.softcap)
    losses_N = reference.cross_entropy(wide_NV, index_NK, share_NK, gradient=gradient)
    if gradient:
        z_NV.copy_(wide_NV.mul_(slope_NV))
    return losses_N


@dataclass(frozen=True, eq=False)
class SoftTargets:
    """What to predict at N positions: K tokens each, with weights that sum to 1."""

    ids_NK: Tensor
    """int64; where there are fewer than K, any id with weight 0."""
    weights_NK: Tensor
    """float32."""


def token_losses(
    model: nn.Module | Decoder, batch: Batch, soft: SoftTargets | None = None
) -> Tensor:
    """(N,) float32: the negative log-likelihood, in nats, of each supervised token of the batch.

    With `soft`, the cross-entropy to those targets instead of to the batch's own.
    Rows are padded on the right; with causal attention no padding is ever attended to.
    """
    inner = model if isinstance(model, nn.Module) else model.model
    device = next(inner.parameters()).device
    wanted = to_predict(batch, soft)
    there = SoftTargets(wanted.ids_NK.to(device), wanted.weights_NK.to(device))
    return head_losses(predicting(model, batch), head(inner), there)


def to_predict(batch: Batch, soft: SoftTargets | None) -> SoftTargets:
    """`soft`, or the batch's own labels in that form."""
    if soft is not None:
        return soft
    return SoftTargets(batch.targets[:, None], torch.ones(len(batch.targets), 1))


def head_losses(hidden_NH: Tensor, spec: Head, wanted: SoftTargets) -> Tensor:
    """(N,) float32: the cross-entropy of what N hidden states predict to what is wanted.

    All on one device. Mutates nothing.
    """
    losses: Tensor = _HeadLoss.apply(  # type: ignore[no-untyped-call]
        hidden_NH, spec, wanted.ids_NK, wanted.weights_NK
    )
    return losses


def predicting(model: nn.Module | Decoder, batch: Batch) -> Tensor:
    """(N, H) the hidden states that predict the batch's targets."""
    if not isinstance(model, nn.Module):
        return model.predicting(batch)
    device = next(model.parameters()).device
    hidden_BTH = backbone(model)(input_ids=batch.ids.to(device), use_cache=False).last_hidden_state
    chosen_NH: Tensor = hidden_BTH.flatten(0, 1).index_select(0, batch.positions.to(device))
    return chosen_NH


def worst_of_rows(losses_N: Tensor, batch: Batch, soft: SoftTargets | None) -> Tensor:
    """(B,) float32: each row's largest loss of a token, in nats above the least that there can be.

    The least is 0 for labels and the entropy of soft targets. `losses_N`: see `token_losses`.
    """
    above_N = losses_N.float().cpu()
    if soft is not None:
        above_N = above_N - torch.special.entr(soft.weights_NK).sum(1)
    return torch.zeros(len(batch.lengths)).scatter_reduce(
        0, batch.row_of_target, above_N, reduce="amax"
    )
