"""`lamina review`: look at somebody's proposal, sit its exams again here, and say yes or no.

Everything happens in a quarantine (`flows.quarantine`): what is refused leaves nothing in the
store. What passes is kept there without a name, with the report as evidence. Reports that came
from elsewhere are marked in the index, and are not believed.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lamina.core.digest import Digest, short
from lamina.core.errors import (
    CheckError,
    DataError,
    LaminaError,
    LayerError,
    MissingBlobError,
    ReadOnlyStoreError,
    ShareError,
    StoreBusyError,
    StoreError,
    StoreFullError,
    UnknownNameError,
    UsageError,
)
from lamina.core.evidence import (
    PROPOSAL_TYPE,
    REVIEW_TYPE,
    SCORES_TYPE,
    SIGNATURE_TYPE,
    ScoresEvidence,
    SignatureEvidence,
)
from lamina.core.licences import Licensed
from lamina.core.manifests import LAYER_TYPE, STACK_TYPE
from lamina.core.names import LATEST, Name, parse_name
from lamina.core.proposals import Measured, ProposalEvidence, ReviewEvidence
from lamina.core.report import Reporter
from lamina.flows import runs
from lamina.flows.claims import Compared, compare
from lamina.flows.credit import contributors
from lamina.flows.examine import ENGINE, Examination, current, examine_for_gate, parent_of
from lamina.flows.licensing import licences_of
from lamina.flows.offers import Offered
from lamina.flows.propose import travelling
from lamina.flows.quarantine import Beside, keep_results, move_in, quarantine
from lamina.flows.reviewed import Report
from lamina.flows.trust import Trust, findings_of, subject_of
from lamina.share.archive import Archive
from lamina.share.incoming import Incoming, admit, look
from lamina.share.policy import Verdict, judge
from lamina.share.signature import Finding
from lamina.stack.resolve import ResolvedStack, of_descriptor
from lamina.store.layout import Store

QUESTIONS_LIMIT = 10_000
"""Most questions that a proposed layer's own exams may ask."""
ANSWERS_LIMIT = 2_000_000
"""Most tokens that may be written in answer to them."""


def review(
    store: Store,
    what: Offered,
    reporter: Reporter,
    *,
    onto: str | None = None,
    reviewer: str | None = None,
    trust: Trust | None = None,
    insist: Callable[[Report], None] | None = None,
) -> Report:
    """Look at a proposal from every side; keep it, unnamed, where nothing speaks against it.

    `onto`: the name that would move, where the proposal does not say. `trust`: whose signatures
    count, and what its policy says of what they did not sign; None asks nobody. `insist` is asked
    about a proposal that is refused; it is kept too unless that raises.
    Raises UsageError, UnknownNameError where this store lacks the base.
    """
    with quarantine(store) as beside:
        finding = _Finding(what, onto, reviewer, time.monotonic())
        report, incoming = _reviewed(beside, what, reporter, finding, trust)
        try:
            if insist is not None and not report.accepted:
                insist(report)
            if incoming is not None and (report.accepted or insist is not None):
                _keep(store, beside, incoming, report, what.label)
        finally:
            keep_results(store, beside)
    return report


def _reviewed(
    beside: Store,
    what: Offered,
    reporter: Reporter,
    finding: "_Finding",
    trust: Trust | None,
) -> tuple[Report, Incoming | None]:
    """The report, and what was taken into the quarantine; None where that could not be read."""
    try:
        if isinstance(what.source, Archive):
            what.source.check()
        incoming = look(beside, what.source, what.stack)
        finding.left_out(incoming)
        if incoming.kind != STACK_TYPE:
            raise StoreError(f"{what.label} holds no stack but {incoming.kind}")
        finding.proposal = _proposal(incoming)
        _base_is_here(beside, incoming)
        admit(
            beside,
            what.source,
            replace(incoming, evidence={}),
            label=what.label,
            fetch=what.fetcher(reporter),
        )
        stack = of_descriptor(beside, incoming.root, label=_label(finding.proposal, what))
        if not stack.layers:
            raise StoreError(f"{what.label} holds a bare base")
        _not_too_much(stack)
        finding.look_at_place(beside, stack)
        if trust is not None:
            finding.look_at_signatures(stack, incoming, trust)
        finding.look_at_licences(beside, stack)
        finding.look_at_weights(beside, stack, reporter)
        finding.examine(beside, stack, incoming, reporter)
    except (StoreFullError, ReadOnlyStoreError, StoreBusyError):
        raise  # no fault of theirs
    except MissingBlobError as error:
        finding.refuse(error, "ask for the whole stack (lamina propose --whole), or pull it first")
        return finding.report(), None
    except (StoreError, ShareError, LayerError, DataError, CheckError) as error:
        finding.refuse(error)
        return finding.report(), None
    return finding.report(), incoming


class _Finding:
    """A report on its way."""

    def __init__(self, what: Offered, onto: str | None, reviewer: str | None, began: float) -> None:
        self._what, self._began, self._reviewer = what, began, reviewer
        self._given_onto = onto
        self.proposal: ProposalEvidence | None = None
        self._reasons: list[str] = []
        self._against_gate: list[str] = []
        self._looks: list[str] = []
        self._measured: tuple[Measured, ...] = ()
        self._previous: Digest | None = None
        self._contributors: tuple[str, ...] = ()
        self._signed_by: tuple[str, ...] = ()
        self._licences: Licensed | None = None
        self._travels: tuple[str, ...] = ()
        self._weights: dict[str, Any] | None = None
        self._examined = False

    @property
    def onto(self) -> str | None:
        """The name that would move."""
        return self._given_onto or (self.proposal.onto if self.proposal else None)

    def refuse(self, error: LaminaError, hint: str | None = None) -> None:
        """Take an error as the reason."""
        faults = "; ".join(error.faults[:5])
        text = error.message + (f": {faults}" if faults else "")
        more = hint or error.hint
        self._reasons.append(text + (f" ({more})" if more else ""))

    def left_out(self, incoming: Incoming) -> None:
        """What came along and is not taken."""
        self._looks += [f"left out: {text}" for text in incoming.left_out]

    def look_at_place(self, store: Store, stack: ResolvedStack) -> None:
        """Whether it stands where the name that would move stands."""
        self._contributors = contributors(store, stack.layers)
        self._travels = tuple(travelling(stack.layers[-1:]))
        if self.proposal is None:
            self._looks.append("it brings no proposal: nobody says what it is for")
        elif self.proposal.layer != stack.layers[-1].digest:
            self._reasons.append("its proposal speaks of another layer than it brings")
        if self.onto is None:
            return
        try:
            current = store.resolve(Name(self.onto))
        except UnknownNameError:
            self._looks.append(f"there is no {self.onto} here yet: it would be new")
            return
        self._previous = current.digest
        now = of_descriptor(store, current, label=self.onto, force=True)
        top, beneath = stack.layers[-1], stack.config.layers[:-1]
        newer = bool(now.layers) and top.config.supersedes == now.layers[-1].digest
        if beneath == now.config.layers or (newer and beneath == now.config.layers[:-1]):
            return
        if stack.digest != current.digest:
            self._reasons.append(
                f"it stands on [{_names(stack.layers[:-1])}], {self.onto} is "
                f"[{_names(now.layers)}]: it was trained on other parents (its author can carry it "
                f"over: lamina rebase {stack.label} --onto {self.onto})"
            )

    def look_at_signatures(self, stack: ResolvedStack, incoming: Incoming, trust: Trust) -> None:
        """Who signed the stack or its top layer, and what the policy says to that."""
        findings = [
            finding
            for digest, kind in ((stack.digest, STACK_TYPE), (stack.layers[-1].digest, LAYER_TYPE))
            for finding in findings_of(
                trust, digest, kind, incoming.readable(digest, SIGNATURE_TYPE, SignatureEvidence)
            )
        ]
        said = ask_policy(trust, stack, findings, self.onto, self._what.label)
        if said is not None:
            self._signed_by = said.signed_by
            self._reasons += [f"trust policy: {text}" for text in said.reasons]
            self._looks += said.warnings

    def look_at_licences(self, store: Store, stack: ResolvedStack) -> None:
        """What it carries, and what forbids to pass it on."""
        self._licences = licences_of(store, stack, "share")
        said = self.proposal.despite if self.proposal else None
        forbidden = [f"licences: {text}" for text in self._licences.forbidden]
        self._looks += [f"licences: {text}" for text in self._licences.doubts]
        if said:
            self._looks += [f"{text}; its author says: {said}" for text in forbidden]
        else:
            self._reasons += forbidden

    def look_at_weights(self, store: Store, stack: ResolvedStack, reporter: Reporter) -> None:
        """Sizes, spectra, copies, interference. Raises LayerError."""
        from lamina.flows.inspection import inspect  # torch: a bad file is refused without

        found = inspect(store, stack, reporter)
        self._weights = found.to_json()
        self._reasons += [odd.text for odd in found.odd if odd.refused]
        self._looks += [odd.text for odd in found.odd if not odd.refused]

    def examine(
        self, store: Store, stack: ResolvedStack, incoming: Incoming, reporter: Reporter
    ) -> None:
        """Every exam here, the gate's verdict, and the claims beside both."""
        told = incoming.readable(stack.digest, SCORES_TYPE, ScoresEvidence)
        beneath = parent_of(store, stack)
        name = self.onto or f"proposal-{short(stack.digest)}"  # nobody's: nothing to compare with
        found = examine_for_gate(store, stack, beneath, name, reporter)
        self._against_gate += found.verdict.reasons
        self._looks += found.verdict.notes
        claims = self.proposal.claims if self.proposal else ()
        compared: Compared = compare(claims, told, found.results, _before(found))
        self._measured = compared.measured
        self._reasons += compared.reasons
        self._looks += compared.looks
        self._examined = True

    def report(self) -> Report:
        """What was found out."""
        reasons = (*self._reasons, *self._against_gate)
        evidence = ReviewEvidence(
            created=runs.now().isoformat(),
            reviewer=self._reviewer,
            onto=self.onto,
            previous=self._previous,
            accepted=not reasons,
            reasons=reasons,
            looks=tuple(dict.fromkeys(self._looks)),
            measured=self._measured,
            engine=ENGINE,
            seconds=round(time.monotonic() - self._began, 2),
        )
        return Report(
            evidence=evidence,
            stack=self._what.stack,
            proposal=self.proposal,
            contributors=self._contributors,
            signed_by=self._signed_by,
            licences=self._licences,
            travels=self._travels,
            weights=self._weights,
            gate_reasons=tuple(self._against_gate),
            examined=self._examined,
        )


# -- what is kept ----------------------------------------------------------------------------------


def _keep(store: Store, beside: Store, incoming: Incoming, report: Report, label: str) -> None:
    """Take what passed into the store, unnamed, with the report.

    The contributor's own results stay out: those measured here are on record instead.
    """
    taken = {
        digest: data
        for digest, data in incoming.evidence.items()
        if incoming.parsed[digest].artifactType != SCORES_TYPE
    }
    source = Beside(beside)
    root = admit(store, source, replace(incoming, evidence=taken), label=label, fetch=move_in)
    store.put_evidence(REVIEW_TYPE, report.evidence, root)


def ask_policy(
    trust: Trust,
    stack: ResolvedStack,
    findings: Sequence[Finding],
    onto: str | None,
    source: str,
) -> Verdict | None:
    """What the trust policy says to accepting the top layer; None where it is not to be asked."""
    policy = trust.policy
    if "accept" not in policy.check:
        return None
    names = [name for name in (onto, stack.label) if name]
    config = stack.layers[-1].config
    return judge(subject_of(stack.digest, [config], names=names, source=source), findings, policy)


def own_review(store: Store, stack: Digest, onto: str | None) -> ReviewEvidence | None:
    """This machine's own review of a stack, where it still holds.

    It passed, by the same engine, and the name that would move has not moved since.
    """
    if not store.has(stack):
        return None
    for found in reversed(store.evidence(stack, REVIEW_TYPE, ReviewEvidence, own=True)):
        if not found.accepted or found.engine != ENGINE or onto not in (None, found.onto):
            continue
        now = current(store, found.onto) if found.onto else None
        if now in (found.previous, stack):
            return found
    return None


# -- reading ---------------------------------------------------------------------------------------


def _proposal(incoming: Incoming) -> ProposalEvidence | None:
    found = incoming.readable(incoming.root.digest, PROPOSAL_TYPE, ProposalEvidence)
    proposal = found[-1] if found else None
    if proposal is not None and proposal.onto is not None:
        try:
            known = parse_name(proposal.onto)
        except UsageError as error:
            raise StoreError(f"it is proposed for no name: {error.message}") from None
        if known.tag != LATEST:
            raise StoreError(f"it is proposed for a version, {proposal.onto}, and not for a name")
    return proposal


def _not_too_much(stack: ResolvedStack) -> None:
    """Refuse exams that would keep this machine for days. Raises DataError."""
    exams = stack.layers[-1].config.exams
    asked, written = sum(e.rows for e in exams), sum(e.rows * e.max_new_tokens for e in exams)
    if asked > QUESTIONS_LIMIT or written > ANSWERS_LIMIT:
        raise DataError(
            f"its exams ask {asked} questions and take answers of up to {written} tokens together",
            hint=f"{QUESTIONS_LIMIT} and {ANSWERS_LIMIT} are sat here: ask for smaller exams",
        )


def _base_is_here(store: Store, incoming: Incoming) -> None:
    try:
        store.find_base(incoming.base)
    except UnknownNameError as error:
        said = [each.source or each.name for each in incoming.stands_on()]
        where = next(filter(None, said), None)
        raise UnknownNameError(
            "the base that it stands on is not here",
            faults=[f"base {incoming.base}" + (f", says to be {where}" if where else "")],
            hint=f"fetch it first: lamina base pull {where or 'NAME'}",
        ) from error


def _label(proposal: ProposalEvidence | None, what: Offered) -> str:
    try:
        return parse_name(proposal.name).name if proposal else Path(what.label).name
    except UsageError:
        return Path(what.label).name


def _names(layers: Sequence[Any]) -> str:
    return ", ".join(f"{layer.config.name} @{short(layer.digest)}" for layer in layers)


def _before(found: Examination) -> dict[tuple[str, str], float]:
    return {(c.exam, c.exam_digest): c.before for c in reversed(found.comparisons)}
