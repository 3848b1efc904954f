"""AdamW over an attachment's flat buffer; B may learn at a multiple of A's rate."""

import torch
from torch import Tensor

from lamina.core.recipe import Recipe
from lamina.lowrank.attach import Attachment

_PREFIX = "adam."


class Optimiser:
    """One fused AdamW over all factors, its moments flat (P,) as the factors are.

    With `lr_ratio` 1 the flat buffer is its one parameter. Otherwise A's and B's are two groups of
    views of it, B's with `lr_ratio` times the rate (LoRA+, arXiv:2402.12354); there is still one
    pass over the numbers, and a checkpoint has the same form.
    """

    def __init__(self, attachment: Attachment, recipe: Recipe) -> None:
        flat, modules = attachment.flat, attachment.modules.values()
        groups: list[tuple[float, list[torch.nn.Parameter]]] = [(1.0, [flat])]
        if recipe.lr_ratio != 1:
            groups = [(1.0, [m.a for m in modules]), (recipe.lr_ratio, [m.b for m in modules])]
        self._adam = torch.optim.AdamW(
            [{"params": members, "ratio": ratio} for ratio, members in groups],
            lr=recipe.lr,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self._step = torch.zeros((), device=flat.device)
        self._moments = {
            key: torch.zeros_like(flat, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")
        }
        for _, members in groups:
            for each in members:
                begin = each.storage_offset() - flat.storage_offset()
                self._adam.state[each] = {"step": self._step.clone()} | {
                    key: moment[begin : begin + each.numel()].view(each.shape)
                    for key, moment in self._moments.items()
                }

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step at the rate that A learns at, on the gradients as they are."""
        for group in self._adam.param_groups:
            group["lr"] = rate * group["ratio"]
        self._adam.step()
        self._step += 1

    def tensors(self) -> dict[str, Tensor]:
        """The state as a checkpoint keeps it."""
        found = {"step": self._step, **self._moments}
        return {_PREFIX + key: value for key, value in found.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take the state of a checkpoint; one of before the first step may have none."""
        if _PREFIX + "step" not in tensors:
            return
        self._step.copy_(tensors[_PREFIX + "step"])
        for key, moment in self._moments.items():
            moment.copy_(tensors[_PREFIX + key])
        for state in self._adam.state.values():
            state["step"].copy_(self._step)
