"""What is on record about an object: evidence, each a manifest whose `subject` it speaks of.

It holds what varies between two runs of the same work, which the manifests of bases, layers and
stacks leave out: cost, results, moves of names, certificates, signatures.
"""

from typing import Annotated, Any

from pydantic import Field

from lamina.core.digest import Digest
from lamina.core.fields import Count
from lamina.core.manifests import BaseConfig, Descriptor, Rung
from lamina.core.rates import Amount, Rates
from lamina.core.recipe import ScorerName
from lamina.core.values import Value

COST_TYPE = "application/vnd.lamina.evidence.cost.v1"
SCORES_TYPE = "application/vnd.lamina.evidence.scores.v1"
NAMING_TYPE = "application/vnd.lamina.evidence.naming.v1"
CERTIFICATE_TYPE = "application/vnd.lamina.evidence.certificate.v1"
CARRIED_TYPE = "application/vnd.lamina.evidence.carried.v1"
SIGNATURE_TYPE = "application/vnd.lamina.evidence.signature.v1"
STANDS_TYPE = "application/vnd.lamina.evidence.stands.v1"
PROPOSAL_TYPE = "application/vnd.lamina.evidence.proposal.v1"
REVIEW_TYPE = "application/vnd.lamina.evidence.review.v1"
EVIDENCE_PREFIX = "application/vnd.lamina.evidence."
"""What every evidence's artifactType begins with; other tools' referrers are none of ours."""


class CostEvidence(Value):
    """Measured cost of making a layer. Subject: the layer."""

    created: str
    """ISO 8601, UTC."""
    seconds: float
    """Training only, evaluations included."""
    steps: int
    best_step: int
    tokens: int
    """Real tokens trained on, repeats counted."""
    tokens_per_second: float
    peak_bytes: int
    """Peak resident set of the process."""
    loss_before: float | None = None
    """Held-out loss before the first step, nats a token, on the rows looked at in training."""
    loss_after: float | None = None
    hardware: str
    versions: dict[str, str]
    layer_bytes: int
    base_bytes: int
    supervised_tokens: Count | None = None
    """Of `tokens`, those that were predicted; repeats counted."""
    flops: Amount | None = None
    """Useful operations of all steps (`plan.work.useful_flops`) and of the evaluations' forward
    passes; what the layers' own products, padding and teachers take is not in it."""
    joules: Amount | None = None
    """By the machine's counters over those seconds, whatever else ran on it; None: not measured."""
    metered: str | None = None
    """Which counters, or why none."""
    estimated_joules: Amount | None = None
    """Seconds times the watts of the hardware profile, where it has them: no measurement."""
    money: Amount | None = None
    """At `rates`; of energy that was not measured, the estimate's. None: nothing was priced."""
    rates: Rates | None = None
    """What was configured when the run began."""


class ScoresEvidence(Value):
    """One exam's result for one stack, question by question. Subject: the stack."""

    created: str
    exam_digest: Digest
    scorer: ScorerName
    max_new_tokens: int
    engine: Digest
    """Over what else decides the answers: dtype, sampling, code version."""
    items: tuple[tuple[float, float, str | None], ...]
    """(value, weight, answer) in the exam's order."""
    seconds: Amount | None = None
    """What asking took on whatever machine asked, loading the stack for its first exam included."""
    joules: Amount | None = None
    """By that machine's counters; None: not measured."""


class NamingEvidence(Value):
    """A name moved to a stack. Subject: the stack."""

    created: str
    name: str
    version: int
    previous: Digest | None = None
    """Stack that the name pointed at before."""
    compared_with: Digest | None = None
    verdict: dict[str, Any]
    override: str | None = None
    """The reason given with --accept-regression."""
    despite: str | None = None
    """The reason for accepting what a review, or the trust policy, refused beside the gate."""
    author: str | None = None


class Kept(Value):
    """How much of an exam survived: before and after, and what the gain was."""

    exam: str
    layer: str
    metric: str
    before: float
    """Value on the stack it came from."""
    after: float
    retained: float | None = None
    """Share of the gain that was kept; None where there was none."""


class CertificateEvidence(Value):
    """What a squash or merge changed, measured. Subject: the layer it made."""

    created: str
    method: str
    rank: int
    """Largest rank of a module."""
    rank_before: int
    weights: tuple[float, ...] = ()
    """Those that a merge was given; a method that learns them starts there."""
    density: float | None = None
    seed: int | None = None
    """The seed of a method that draws."""
    discarded: float
    """Relative Frobenius norm of what was left out, over all modules:
    sqrt(sum |dW - dW'|^2 / sum |dW|^2)."""
    worst_module: str = ""
    worst_discarded: float = 0.0
    passes: int = 0
    """Passes over rehearsal rows in which a squash trained what its cut left."""
    logits_difference: float
    """max |z - z'| / max |z| over the probe prompts, in float32."""
    probes: int
    exams: tuple[Kept, ...] = ()
    seconds: float
    despite: str | None = None
    """The reason given for combining what a licence forbids to combine."""


class CarriedEvidence(Value):
    """How a layer got to its new parents, and what that cost. Subject: the carried layer."""

    created: str
    rung: Rung
    source: Digest
    """The layer as it was."""
    source_stack: Digest
    """The stack that it was the top of."""
    exams: tuple[Kept, ...] = ()
    retained: float | None = None
    """The smallest share of a gain that was kept; None where there was no gain."""
    tried: tuple[tuple[Rung, str], ...] = ()
    """Cheaper rungs, and why each was not good enough."""
    seconds: float
    """The work of all rungs tried, without the examinations, as a training's cost is given."""
    examine_seconds: float = 0.0
    """The examinations by which the rungs were judged."""
    retrain_seconds: float | None = None
    """What training the layer took when it was made."""


class EnvelopeSignature(Value):
    """One signature in an envelope."""

    keyid: Digest
    sig: Annotated[str, Field(max_length=200)]
    """Base64 of 64 bytes."""


class SignatureEvidence(Value):
    """A DSSE envelope: a statement, and signatures over it. Subject: the object that it names.

    https://github.com/secure-systems-lab/dsse/blob/v1.0.0/envelope.md
    """

    payloadType: Annotated[str, Field(max_length=200)]
    payload: Annotated[str, Field(max_length=20_000)]
    """Base64 of the statement's canonical JSON (`share.signature.Statement`)."""
    signatures: Annotated[tuple[EnvelopeSignature, ...], Field(min_length=1, max_length=1)]
    """One: who else signs makes a statement of their own."""


class StandsEvidence(Value):
    """Which base an object stands on, and where to get it. Subject: the stack or the layer.

    Made when an object is sent, because a stack names its base by identity alone. Holds nothing
    that varies, so sending twice says it once.
    """

    base: BaseConfig
    name: str | None = None
    """What the sender calls it."""
    source: str | None = None
    """Where it came from; None where that was a folder of the sender's."""
    manifest: Descriptor
    """The sender's manifest of it, which may have come along."""
