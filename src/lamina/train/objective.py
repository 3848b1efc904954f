"""The loss: negative log-likelihood at supervised positions only.

Logits are taken only where there is a label, in chunks, and their gradient is computed with
them: no (tokens x vocabulary) tensor ever exists. The head is frozen, so it gets no gradient.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lamina.bases.families import Head, backbone, head
from lamina.tokens.batch import Batch

CHUNK_BYTES = 64 << 20
"""Largest float32 logits chunk."""


class _HeadLoss(torch.autograd.Function):
    """nll[n] = logsumexp(z_n) - z_n[target_n],  z = softcap(scale * h W^T).

    dL/dh = g[n] * (softmax(z) - onehot) dz/dh, computed chunk by chunk in the forward (as in
    Liger-Kernel's fused linear cross-entropy, arXiv:2410.10989).
    Shapes: h (N, H), W (V, H), targets (N,) int64 -> (N,) float32. Mutates nothing.
    """

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, spec: Head, targets_N: Tensor) -> Tensor:
        vocabulary = spec.weight.shape[0]
        step = max(1, CHUNK_BYTES // (4 * vocabulary))
        losses_N = torch.empty(len(targets_N), device=hidden_NH.device)
        needs_grad = ctx.needs_input_grad[0]
        grad_NH = torch.empty_like(hidden_NH) if needs_grad else None
        for start in range(0, len(targets_N), step):
            part = slice(start, start + step)
            z_NV = (hidden_NH[part] @ spec.weight.T).float()
            if spec.scale != 1.0:
                z_NV.mul_(spec.scale)
            slope_NV = None
            if spec.softcap is not None:
                z_NV.div_(spec.softcap).tanh_()
                slope_NV = 1 - z_NV.square() if needs_grad else None
                z_NV.mul_(spec.softcap)
            index_N1 = targets_N[part, None]
            lse_N = torch.logsumexp(z_NV, dim=-1)
            losses_N[part] = lse_N - z_NV.gather(1, index_N1)[:, 0]
            if grad_NH is not None:
                p_NV = z_NV.sub_(lse_N[:, None]).exp_()
                p_NV.scatter_add_(1, index_N1, torch.full_like(index_N1, -1, dtype=p_NV.dtype))
                if slope_NV is not None:
                    p_NV.mul_(slope_NV)
                if spec.scale != 1.0:
                    p_NV.mul_(spec.scale)
                grad_NH[part] = p_NV.to(hidden_NH.dtype) @ spec.weight
        ctx.save_for_backward(grad_NH)
        return losses_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_N: Tensor) -> tuple[Tensor | None, ...]:
        (grad_NH,) = ctx.saved_tensors
        return grad_NH * g_N[:, None].to(grad_NH.dtype), None, None


def token_losses(model: nn.Module, batch: Batch) -> Tensor:
    """(N,) float32: the negative log-likelihood, in nats, of each supervised token of the batch.

    Rows are padded on the right; with causal attention no padding is ever attended to.
    """
    device = next(model.parameters()).device
    hidden_BTH = backbone(model)(input_ids=batch.ids.to(device), use_cache=False).last_hidden_state
    chosen_NH = hidden_BTH.flatten(0, 1).index_select(0, batch.positions.to(device))
    losses: Tensor = _HeadLoss.apply(  # type: ignore[no-untyped-call]
        chosen_NH, head(model), batch.targets.to(device)
    )
    return losses
