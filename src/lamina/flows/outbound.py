"""What every export target is given, and what it gives back."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamina.core.errors import UsageError
from lamina.data.example import Message
from lamina.export.likelihood import Likelihood
from lamina.export.parity import Parity
from lamina.stack.resolve import ResolvedStack
from lamina.store.layout import Store

CERTIFICATE = "lamina.json"
"""Name of the certificate in an export's folder."""
FOLDER = "@DIR@"
"""Stands for the export's folder in the commands that use it."""

Probe = tuple[tuple[Message, ...], tuple[str, ...]]
"""One question of the parity check: messages and tools."""


@dataclass(frozen=True)
class Job:
    """One export."""

    store: Store
    stack: ResolvedStack
    directory: Path
    """Empty; becomes the user's folder when all is well."""
    probes: list[Probe]
    precision: str | None
    """As the user gave it."""
    base_gguf: Path | None = None
    """The base alone as a GGUF file in float16, where there is one already."""

    @property
    def base_name(self) -> str:
        """What the store calls the base, or its digest."""
        digest = self.stack.base.digest
        names = [name for name, base in self.store.bases().items() if base.digest == digest]
        return min(names, default=f"@{digest}")


@dataclass(frozen=True)
class Made:
    """What a target wrote, and how it was proved."""

    proof: Parity | Likelihood | None
    """None: nothing here can read it back."""
    unproved: str | None = None
    """Why there is no proof, and how to get one."""
    facts: dict[str, Any] = field(default_factory=dict)
    """More for the certificate."""
    use: tuple[str, ...] = ()
    """Commands that use the export; FOLDER stands for its folder."""


def refuse_precision(job: Job) -> None:
    """Raise UsageError when a precision is given to a target that has none."""
    if job.precision is not None:
        raise UsageError("--precision is for --to gguf and --to ollama")


def refuse_packed(stack: ResolvedStack) -> None:
    """Raise UsageError for a quantised base: layers are merged onto plain weights only."""
    kind = stack.base_config.quantised
    if kind:
        raise UsageError(
            f"{stack.label} stands on weights in {kind}: layers merged into them are rounded "
            "away, and the answers change",
            hint=f"ship it as an adapter of this base: lamina export {stack.label} DIR --to peft; "
            f"or carry it to the plain base, lamina rebase {stack.label} --onto-base BASE, and "
            "export that",
        )
