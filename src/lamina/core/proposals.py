"""What a contributor says of a layer and what a reviewer found: evidence about a stack."""

from lamina.core.digest import Digest
from lamina.core.values import Value


class Claim(Value):
    """One exam's result as a contributor states it."""

    exam: str
    layer: str
    """Name of the layer that carries it."""
    exam_digest: Digest
    metric: str
    value: float
    n: int
    beneath: float | None = None
    """Value of the stack without its top layer; None where that did not sit it."""
    withheld: bool = False
    """Its questions do not travel, and so nobody else can ask them."""
    engine: Digest
    """What else decided the answers, as in ScoresEvidence."""


class ProposalEvidence(Value):
    """A layer offered to somebody else's stack. Subject: the stack that it is the top of.

    Holds nothing that varies: the same proposal made twice has the same bytes.
    """

    name: str
    """What its author calls the stack."""
    onto: str | None = None
    """Name of the receiver's that should move."""
    note: str | None = None
    author: str | None = None
    layer: Digest
    """The top layer: what is offered."""
    claims: tuple[Claim, ...] = ()
    despite: str | None = None
    """The reason given for sharing what a licence forbids to share."""


class Measured(Value):
    """One exam on the reviewer's machine."""

    exam: str
    layer: str
    exam_digest: Digest
    metric: str
    value: float
    ci: tuple[float, float]
    n: int
    beneath: float | None = None
    claimed: float | None = None
    identical: bool | None = None
    """Every question scored as claimed, to the bit; None where nothing was claimed of it."""


class ReviewEvidence(Value):
    """What a reviewer found out about a proposal. Subject: the proposed stack."""

    created: str
    reviewer: str | None = None
    onto: str | None = None
    previous: Digest | None = None
    """Stack that `onto` pointed at."""
    accepted: bool
    reasons: tuple[str, ...] = ()
    """Why it was refused, one sentence each."""
    looks: tuple[str, ...] = ()
    """What to look at although it does not refuse."""
    measured: tuple[Measured, ...] = ()
    engine: Digest
    seconds: float
