"""The facts of a stack's model card, from manifests and evidence; `share.card` writes them down."""

from collections.abc import Mapping, Sequence
from typing import Any

from lamina.core.evidence import (
    CARRIED_TYPE,
    CERTIFICATE_TYPE,
    COST_TYPE,
    NAMING_TYPE,
    SCORES_TYPE,
    CarriedEvidence,
    CertificateEvidence,
    CostEvidence,
    NamingEvidence,
)
from lamina.core.manifests import SOURCE
from lamina.exams.report import Matrix, matrix
from lamina.exams.runner import ExamResult
from lamina.exams.tasks import Exam
from lamina.flows.credit import credits_of
from lamina.flows.evidence import recorded
from lamina.flows.scoreboard import results
from lamina.share.card import render
from lamina.share.card_facts import CardBase, CardLayer, Facts, Form
from lamina.share.parcel import public_source
from lamina.stack.resolve import ResolvedLayer, ResolvedStack
from lamina.store.layout import Store

_BASE_ROW = "base"


def card(
    store: Store,
    stack: ResolvedStack,
    form: Form,
    *,
    certificate: Mapping[str, Any],
    where: str | None = None,
) -> str:
    """The model card of a stack as Markdown, beside an export with this certificate.

    Reads manifests and evidence, never a tensor.
    """
    return render(gather(store, stack, certificate=certificate, where=where), form)


def gather(
    store: Store,
    stack: ResolvedStack,
    *,
    certificate: Mapping[str, Any],
    where: str | None = None,
) -> Facts:
    """All that is on record. Of several records of one kind the newest counts, whatever the order
    in which they came into this store. Raises StoreError.
    """
    exams = [
        Exam(spec, layer.config.name, None)
        for layer in stack.layers
        for spec in layer.config.exams
    ]  # fmt: skip
    found = _results(store, stack, exams)
    hidden = {(exam.name, exam.digest) for exam in exams if exam.spec.private}
    labels = dict(zip(_columns(exams), found["exams"], strict=True))
    licences = certificate["licences"]
    namings = store.evidence(stack.digest, NAMING_TYPE, NamingEvidence)
    return Facts(
        label=_called(stack),
        stack=stack.digest,
        base=CardBase(
            stack.base_config, public_source((stack.base.annotations or {}).get(SOURCE)) or ""
        ),
        layers=tuple(_layer(store, layer) for layer in stack.layers),
        results=found,
        withheld=frozenset(
            labels[exam.key] for exam in exams if (exam.name, exam.digest) in hidden
        ),
        namings=tuple(sorted(namings, key=lambda move: (move.created, move.name, move.version))),
        obligations=tuple(licences["obligations"]),
        doubts=tuple(problem["text"] for problem in licences["problems"]),
        parity=certificate["parity"],
        max_lora_rank=certificate.get("max_lora_rank"),
        where=where,
    )


def _called(stack: ResolvedStack) -> str:
    """What the user calls it; by a digest, what its top layer is called."""
    by_digest = stack.label.startswith(("@", "sha256:"))
    return stack.layers[-1].config.name if by_digest and stack.layers else stack.label


def _columns(exams: Sequence[Exam]) -> list[tuple[str, str, int]]:
    """Keys of the matrix's columns, in its order."""
    return list(dict.fromkeys(exam.key for exam in exams))


def _results(store: Store, stack: ResolvedStack, exams: Sequence[Exam]) -> Matrix:
    """The base and the stack up to each layer, by what is on record about them."""
    stacked = stack.config.layers
    digests = [
        store.describe_stack(stack.config.base, stacked[:count]).digest
        for count in range(len(stacked) + 1)
    ]
    records = recorded(store, SCORES_TYPE, set(digests))
    names = [_BASE_ROW, *(f"{n}. {each.config.name}" for n, each in enumerate(stack.layers, 1))]
    rows: list[tuple[str, list[ExamResult]]] = []
    for name, digest in zip(names, digests, strict=True):
        oldest_first = sorted(
            records.get(digest, ()), key=lambda record: (str(record["created"]), str(record))
        )
        rows.append((name, results(exams, oldest_first)))
    return matrix(rows, exams)


def _layer(store: Store, layer: ResolvedLayer) -> CardLayer:
    return CardLayer(
        digest=layer.digest,
        weight=layer.weight,
        config=layer.config,
        bytes=sum(blob.size for blob in layer.manifest.layers),
        credits=credits_of(store, layer.config),
        cost=_newest(store.evidence(layer.digest, COST_TYPE, CostEvidence)),
        certificate=_newest(store.evidence(layer.digest, CERTIFICATE_TYPE, CertificateEvidence)),
        carried=_newest(store.evidence(layer.digest, CARRIED_TYPE, CarriedEvidence)),
    )


def _newest(records: Sequence[Any]) -> Any:
    return max(records, key=lambda record: (record.created, record.to_bytes()), default=None)
