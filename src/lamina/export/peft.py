"""A stack as one ordinary PEFT adapter: the exact concatenation of its layers.

alpha = r with every scale folded into B, so that PEFT, vLLM, LoRAX and llama.cpp agree on the
scale without knowing lamina.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from lamina.bases.families import target_modules
from lamina.core.errors import UsageError
from lamina.core.files import atomic_write
from lamina.lowrank import codec
from lamina.lowrank.maths import Factors, LayerFactors, compose


def concatenated(layers: Sequence[LayerFactors]) -> dict[str, Factors]:
    """All layers as one, each module at scale 1. Raises UsageError for no layers."""
    if not layers:
        raise UsageError("a stack of no layers has no adapter", hint="export it with --to hf")
    return {
        name: Factors(f.a_RI.float(), f.b_OR.float() * f.scale, 1.0)
        for name, f in compose(layers).items()
    }


def write(
    layers: Sequence[LayerFactors],
    linears: Mapping[str, nn.Linear],
    directory: Path,
    base: str,
    revision: str | None = None,
) -> None:
    """Write adapter_config.json and adapter_model.safetensors into `directory`."""
    write_joined(concatenated(layers), linears, directory, base, revision)


def padded(joined: Mapping[str, Factors], rank: int) -> dict[str, Factors]:
    """The same updates, each of rank `rank`: rows of A and columns of B of zeros are added."""
    return {
        name: Factors(
            nn.functional.pad(f.a_RI, (0, 0, 0, rank - f.rank)),
            nn.functional.pad(f.b_OR, (0, rank - f.rank)),
            f.scale,
        )
        for name, f in joined.items()
    }


def write_joined(
    joined: Mapping[str, Factors],
    linears: Mapping[str, nn.Linear],
    directory: Path,
    base: str,
    revision: str | None = None,
) -> None:
    """Write one layer, each module at scale 1, as both files of an adapter."""
    rank = max(factors.rank for factors in joined.values())
    config, weights = codec.encode(
        joined,
        rank=rank,
        alpha=float(rank),
        scaling="lora",
        target_modules=target_modules(linears, tuple(joined)),
        base=base,
        revision=revision,
    )
    atomic_write(directory / codec.WEIGHTS_FILE, weights)
    atomic_write(directory / codec.CONFIG_FILE, config)
