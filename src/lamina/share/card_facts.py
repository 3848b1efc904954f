"""What a model card says, as values; `flows.card` gathers them, `share.card` writes them down."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lamina.core.evidence import CarriedEvidence, CertificateEvidence, CostEvidence, NamingEvidence
from lamina.core.manifests import BaseConfig, Credit, LayerConfig
from lamina.exams.report import Matrix

Form = Literal[
    "hub",
    "hub-images",
    "peft",
    "hf",
    "gguf",
    "gguf-lora",
    "ollama",
    "vllm",
    "mlx",
    "diffusers",
    "diffusers-base",
    "kohya",
]
"""What the files beside a card are: an export's target, or a repository that `lamina push` made (of
a stack that talks, or of one that draws)."""


@dataclass(frozen=True)
class CardBase:
    """The base that a stack stands on."""

    config: BaseConfig
    source: str
    """Where it came from, as the store has it; '' where that is not known."""


@dataclass(frozen=True)
class CardLayer:
    """One layer of the stack, and the newest of each kind of record about it."""

    digest: str
    weight: float
    config: LayerConfig
    bytes: int
    cost: CostEvidence | None = None
    certificate: CertificateEvidence | None = None
    carried: CarriedEvidence | None = None
    credits: tuple[Credit, ...] = ()
    """Whose work is in it, through squash, merge and update."""


@dataclass(frozen=True)
class Facts:
    """All that a card says of a stack."""

    label: str
    """What its maker calls it."""
    stack: str
    """Digest."""
    base: CardBase
    layers: tuple[CardLayer, ...]
    """Lowest first."""
    results: Matrix
    """Rows: the base, then the stack up to each layer; columns: every exam that a layer carries.
    What was not sat is absent."""
    withheld: frozenset[str] = frozenset()
    """Columns whose questions do not travel."""
    namings: tuple[NamingEvidence, ...] = ()
    """How names came to point at this very stack, oldest first."""
    obligations: tuple[str, ...] = ()
    """What the licences ask for, one sentence each; plain text."""
    doubts: tuple[str, ...] = ()
    """What to look at in the licences, and what they forbid; plain text."""
    parity: Mapping[str, Any] | None = None
    """How the files beside the card were compared with the stack."""
    max_lora_rank: int | None = None
    """What vLLM is to be told of the adapter beside the card; None: it takes no such adapter."""
    where: str | None = None
    """`org/name` of the repository that the card is written for."""

    @property
    def draws(self) -> bool:
        """Whether the stack makes images."""
        return self.base.config.draws


def hub_name(source: str) -> str | None:
    """`org/name` where a base came from the Hub, as its source says."""
    name = source.removeprefix("hf:").partition("@")[0]
    return name if source.startswith("hf:") and name else None


def hub_commit(source: str) -> str | None:
    """The commit that a base of the Hub was taken at."""
    return source.partition("@")[2] or None if source.startswith("hf:") else None
