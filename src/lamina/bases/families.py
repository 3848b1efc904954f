"""What differs between model families: which linears take layers, and how logits are made.

Only decoders whose layers are a `ModuleList` named `layers` (llama, mistral, qwen, gemma, …).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lamina.core.errors import BaseError, UsageError
from lamina.core.recipe import ALL_LINEAR

# Families whose `head` the tests compare with the model's own logits.
CHECKED = frozenset(
    {
        "cohere",
        "gemma2",
        "gemma3_text",
        "granite",
        "llama",
        "mistral",
        "olmo2",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
    }
)
_TOLERANCE = 1e-2


class Head(NamedTuple):
    """How hidden states become logits: z = scale * h W^T, then c * tanh(z / c) with a softcap c."""

    weight: Tensor
    """(vocab, hidden)."""
    softcap: float | None
    scale: float


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear inside the decoder layers, by its full module name, in the model's order.

    Never the embeddings or the language-model head. Call it on a model without anything attached.
    Raises BaseError for a family without such linears.
    """
    layers = getattr(backbone(model), "layers", None)
    found: dict[str, nn.Linear] = {}
    if isinstance(layers, nn.ModuleList):
        prefix = next(name for name, module in model.named_modules() if module is layers)
        for name, module in layers.named_modules(prefix=prefix):
            if isinstance(module, nn.Linear):
                found[name] = module
    if not found:
        raise BaseError(
            f"{_family(model)} models are not supported: no linears in decoder layers",
            hint="use a base of the llama, mistral, qwen or gemma kind",
        )
    return found


def select(linears: Mapping[str, nn.Linear], targets: Sequence[str]) -> dict[str, nn.Linear]:
    """Those of `linears` that a recipe's targets name: 'all-linear', or suffixes of module names.

    A suffix is whole dotted parts: 'q_proj', 'self_attn.q_proj', 'layers.0.mlp.up_proj'.
    Raises UsageError listing every target that names nothing, and the suffixes there are.
    """
    if ALL_LINEAR in targets:
        matched = set(linears)
    else:
        matched = {name for name in linears if any(_ends(name, target) for target in targets)}
    unknown = [
        target
        for target in targets
        if target != ALL_LINEAR and not any(_ends(name, target) for name in linears)
    ]
    if unknown or not matched:
        suffixes = sorted({name.rpartition(".")[2] for name in linears})
        raise UsageError(
            "no linear of the base is named by these targets",
            faults=[repr(target) for target in unknown] or ["no targets given"],
            hint=f"use {ALL_LINEAR!r} or suffixes such as {', '.join(suffixes)}",
        )
    return {name: linear for name, linear in linears.items() if name in matched}


def layer_of(name: str) -> int:
    """The decoder layer of a linear: the first number in its full name."""
    return next(int(part) for part in name.split(".") if part.isdigit())


def lowest(names: Iterable[str], share: float) -> frozenset[str]:
    """Those of some linears that lie in the lowest `share` of their decoder layers, rounded down;
    a share below 1 never takes all of them."""
    of_layer = {name: layer_of(name) for name in names}
    layers = sorted(set(of_layer.values()))
    still = set(layers[: int(share * len(layers))])
    return frozenset(name for name, layer in of_layer.items() if layer in still)


def module_ranks(
    linears: Mapping[str, nn.Linear], rank: int, ranks: Mapping[str, int]
) -> dict[str, int]:
    """Each linear's rank: that of the longest of `ranks`' names or suffixes that fits, or `rank`.

    Raises UsageError listing every name that fits none of `linears`.
    """
    unknown = [each for each in ranks if not any(_ends(name, each) for name in linears)]
    if unknown:
        suffixes = sorted({name.rpartition(".")[2] for name in linears})
        raise UsageError(
            "ranks for linears that are not trained",
            faults=[repr(each) for each in unknown],
            hint=f"use suffixes such as {', '.join(suffixes)}",
        )
    fitting = {name: [each for each in ranks if _ends(name, each)] for name in linears}
    return {name: ranks[max(some, key=len)] if some else rank for name, some in fitting.items()}


def target_modules(linears: Mapping[str, nn.Linear], modules: Sequence[str]) -> tuple[str, ...]:
    """The shortest names that select exactly `modules`: bare suffixes where possible, else full.

    As in PEFT's `target_modules`, sorted.
    """
    wanted = set(modules)
    suffixes = {name.rpartition(".")[2] for name in wanted}
    if {name for name in linears if name.rpartition(".")[2] in suffixes} == wanted:
        return tuple(sorted(suffixes))
    return tuple(sorted(wanted))


def backbone(model: nn.Module) -> nn.Module:
    """The model without its head: returns an output whose `last_hidden_state` is (B, T, hidden).

    Raises BaseError when the model has no such part.
    """
    inner = getattr(model, "base_model", None)
    if not isinstance(inner, nn.Module) or inner is model:
        raise BaseError(
            f"{_family(model)} models are not supported: no backbone without a head",
            hint="use a base of the llama, mistral, qwen or gemma kind",
        )
    return inner


def head(model: nn.Module) -> Head:
    """The head's weight and constants, so that logits need be taken at chosen positions only.

    For a family outside CHECKED the result is compared with the model's own logits once.
    Raises BaseError when the head is not of this form.
    """
    config: Any = model.config
    module = model.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(module, nn.Linear) or module.bias is not None:
        raise BaseError(
            f"{_family(model)} models are not supported: the head is not a plain linear",
            hint="use a base of the llama, mistral, qwen or gemma kind",
        )
    found = Head(module.weight, getattr(config, "final_logit_softcapping", None), _scale(config))
    if _family(model) not in CHECKED:
        _compare(model, found)
    return found


def logits(hidden: Tensor, head: Head) -> Tensor:
    """z = scale * h W^T, then c * tanh(z / c) where there is a softcap c.

    Shapes: hidden (..., hidden) -> (..., vocab), in hidden's dtype. Mutates nothing.
    """
    z = nn.functional.linear(hidden, head.weight)
    if head.scale != 1.0:
        z = z * head.scale
    if head.softcap is not None:
        z = torch.tanh(z / head.softcap) * head.softcap
    return z


def _scale(config: Any) -> float:
    """Granite divides its logits by `logits_scaling`, Cohere multiplies by `logit_scale`."""
    if getattr(config, "logits_scaling", None):
        return 1.0 / float(config.logits_scaling)
    scale = getattr(config, "logit_scale", None)
    return 1.0 if scale is None else float(scale)


@torch.no_grad()
def _compare(model: nn.Module, found: Head) -> None:
    """Raise BaseError unless backbone + head gives the model's own logits on a short prompt."""
    ids_BT = torch.arange(1, 9, device=found.weight.device)[None] % found.weight.shape[0]
    own = model(input_ids=ids_BT).logits.float()
    ours = logits(backbone(model)(input_ids=ids_BT).last_hidden_state, found).float()
    if not torch.allclose(own, ours, rtol=_TOLERANCE, atol=_TOLERANCE):
        raise BaseError(
            f"{_family(model)} models are not supported: their logits are not a product of the "
            "hidden states with the head",
            hint="use a base of the llama, mistral, qwen or gemma kind",
        )


def _ends(name: str, target: str) -> bool:
    return name == target or (bool(target) and name.endswith("." + target))


def _family(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
