"""A review's outcome: what programs and people read of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lamina.core.digest import Digest, short
from lamina.core.licences import Licensed
from lamina.core.proposals import Measured, ProposalEvidence, ReviewEvidence
from lamina.exams.report import value_text
from lamina.flows.inventory import licence_lines


@dataclass(frozen=True)
class Report:
    """What a review found out."""

    evidence: ReviewEvidence
    stack: Digest
    proposal: ProposalEvidence | None
    contributors: tuple[str, ...] = ()
    signed_by: tuple[str, ...] = ()
    """Names of those who may sign it, by the trust policy, and did."""
    licences: Licensed | None = None
    travels: tuple[str, ...] = ()
    weights: dict[str, Any] | None = None
    gate_reasons: tuple[str, ...] = ()
    """Those of the reasons that are the gate's."""
    examined: bool = False
    """It could be read and sat every exam; without that nobody can insist on it."""

    @property
    def accepted(self) -> bool:
        """Nothing speaks against it."""
        return self.evidence.accepted

    @property
    def other_reasons(self) -> tuple[str, ...]:
        """The reasons that are not the gate's."""
        return tuple(text for text in self.evidence.reasons if text not in self.gate_reasons)

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        proposal = self.proposal
        return {
            "stack": self.stack,
            "verdict": "accept" if self.accepted else "refuse",
            **self.evidence.model_dump(mode="json", exclude={"accepted"}),
            "proposal": proposal.model_dump(mode="json", exclude={"claims"}) if proposal else None,
            "contributors": list(self.contributors),
            "signed_by": list(self.signed_by),
            "licences": self.licences.to_json() if self.licences else None,
            "travels": list(self.travels),
            "weights": self.weights,
        }


def render(report: Report) -> str:
    """A report for people; the last line says what to do next."""
    found, proposal = report.evidence, report.proposal
    lines = [_heading(report)]
    if proposal is not None and proposal.note:
        lines.append(f"  they say: {proposal.note}")
    if report.signed_by:
        lines.append(f"  signed by {', '.join(report.signed_by)}")
    if report.contributors:
        lines.append(f"  work of {', '.join(report.contributors)}")
    lines += [f"  {line}" for line in _measured_lines(found.measured)]
    if report.weights is not None:
        lines.append(f"  {_weights_line(report.weights)}")
    if report.licences is not None:
        quiet = replace(report.licences, problems=())  # among the looks and reasons already
        lines += [f"  {line}" for line in licence_lines(quiet.to_json())]
    lines += [f"  comes along: {text}" for text in report.travels]
    lines += [f"  look: {text}" for text in found.looks]
    lines += [f"  against it: {text}" for text in found.reasons]
    lines.append(f"{'ACCEPT' if found.accepted else 'REFUSE'} ({found.seconds:.0f} s)")
    return "\n".join(lines)


def _heading(report: Report) -> str:
    proposal, onto = report.proposal, report.evidence.onto
    name = proposal.name if proposal else "a stack"
    who = f" by {proposal.author}" if proposal and proposal.author else ""
    return f"{name} @{short(report.stack)}{who}" + (f" for {onto}" if onto else "")


def _measured_lines(measured: Sequence[Measured]) -> list[str]:
    lines = []
    for each in measured:
        text = f"{each.exam}: {each.metric} {value_text(each.metric, each.value)}"
        if each.beneath is not None:
            text += f", beneath {value_text(each.metric, each.beneath)}"
        if each.claimed is not None:
            same = {True: ", to the bit", False: "", None: ""}[each.identical]
            text += f"; claimed {value_text(each.metric, each.claimed)}{same}"
        lines.append(f"{text} (n = {each.n})")
    return lines


def _weights_line(weights: dict[str, Any]) -> str:
    largest = weights["largest_against_weights"]
    beneath = ", ".join(f"{each['layer']} {each['cosine']:+.2f}" for each in weights["beneath"])
    return (
        f"weights: {weights['linears']} linears, embeddings untouched, effective rank "
        f"{weights['effective_rank']:.1f}, at most {largest['share']:.1%} of the weights changed"
        + (f"; cosine with {beneath}" if beneath else "")
    )
