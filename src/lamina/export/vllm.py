"""A stack as a PEFT adapter that vLLM takes: every module of one rank, and the launch line."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from lamina.core.errors import UsageError
from lamina.export.peft import concatenated, padded, write_joined
from lamina.lowrank.maths import LayerFactors

MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `--max-lora-rank` takes (`MaxLoRARanks` in its vllm/config/lora.py)."""


def write(
    layers: Sequence[LayerFactors],
    linears: Mapping[str, nn.Linear],
    directory: Path,
    base: str,
    revision: str | None = None,
) -> int:
    """Write the adapter folder; returns the value for `--max-lora-rank`.

    vLLM reads `r` and `lora_alpha` alone, no pattern by module: narrower modules are padded with
    zeros to the widest rank. Raises UsageError for no layers, and for a rank beyond vLLM's.
    """
    joined = concatenated(layers)
    rank = max(factors.rank for factors in joined.values())
    allowed = next((some for some in MAX_RANKS if some >= rank), None)
    if allowed is None:
        raise UsageError(
            f"the stack's layers have rank {rank} together, vLLM takes at most {MAX_RANKS[-1]}",
            hint="squash the stack first: lamina squash STACK --name NAME",
        )
    write_joined(padded(joined, rank), linears, directory, base, revision)
    return allowed


def launch(directory: str, name: str, base: str, max_rank: int) -> str:
    """The line that serves the adapter over its base."""
    return (
        f"vllm serve {base} --enable-lora --max-lora-rank {max_rank} "
        f"--lora-modules {name}={directory}"
    )
