"""What a layer's manifest says of where it was imported from."""

from typing import Literal

from lamina.core.digest import Digest
from lamina.core.values import Value

ImportKind = Literal["peft", "checkpoint", "gguf-lora", "kohya", "mlx"]
"""What other tools write and `lamina import` reads."""


class ImportedFile(Value):
    """One file that a layer was imported from."""

    name: str
    sha256: Digest
    bytes: int


class ImportRecord(Value):
    """Where an imported layer comes from, and what was lost on the way."""

    kind: ImportKind
    files: tuple[ImportedFile, ...]
    made_on: str | None = None
    """The base that the source says it was made on, in its own words."""
    error: float | None = None
    """Relative Frobenius norm of what no low-rank layer could keep, over the modules that were
    approximated: sqrt(sum |dW - dW'|^2 / sum |dW|^2). None: nothing was approximated."""
    left_out: tuple[str, ...] = ()
    """Tensors that differ from the base's and that --ignore-rest left out."""
