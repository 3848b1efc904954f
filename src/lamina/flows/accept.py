"""`lamina accept`: a reviewed proposal gets its name, through the gate."""

from typing import Any

from lamina.core.errors import CheckError, UsageError
from lamina.core.names import Name
from lamina.core.report import Reporter
from lamina.flows.credit import contributors
from lamina.flows.examine import parent_of
from lamina.flows.landing import gate_and_name
from lamina.flows.naming import new_name
from lamina.flows.offers import Offered
from lamina.flows.review import ask_policy, own_review, review
from lamina.flows.reviewed import Report
from lamina.flows.trust import Trust, signatures
from lamina.stack.resolve import ResolvedStack, of_descriptor
from lamina.store.layout import Store


def accept(
    store: Store,
    what: Offered,
    reporter: Reporter,
    *,
    name: str | None = None,
    override: str | None = None,
    despite: str | None = None,
    author: str | None = None,
    trust: Trust | None = None,
) -> dict[str, Any]:
    """Move `name` (the one that it is proposed for) to a proposed stack.

    This machine's own review counts while it holds; without one the review is made now. What it
    refused needs a reason: `override` for the gate, `despite` for all else.
    Raises CheckError with the review's reasons, GateError, UsageError, UnknownNameError.
    """
    target = new_name(store, name) if name else None
    onto = target.name if target else None
    report: Report | None = None
    known = own_review(store, what.stack, onto)
    if known is None:
        report = review(
            store,
            what,
            reporter,
            onto=onto,
            reviewer=author,
            trust=trust,
            insist=lambda found: _insist(found, override, despite),
        )
        known = report.evidence
    else:
        reporter.say(f"reviewed here on {known.created[:10]}: that holds")
    target = target or _proposed(store, known.onto)
    stack = of_descriptor(store, store.describe(what.stack), label=target.name)
    if report is None and trust is not None:
        _still_trusted(store, trust, stack, what, despite)
    beneath = parent_of(store, stack)
    assert beneath is not None  # a review refuses bare bases
    named = gate_and_name(
        store,
        store.describe(stack.layers[-1].digest),
        stack,
        beneath,
        target,
        reporter,
        override=override,
        author=author,
        despite=despite,
    )
    store.remove_root(what.stack)  # its name keeps it from here on
    return {
        "name": str(named.name),
        "stack": stack.digest,
        "layer": stack.layers[-1].digest,
        "accepted_by": author,
        "contributors": list(contributors(store, stack.layers)),
        "reviewed": known.created,
        "override": None if named.examination.verdict.passed else override,
        "despite": despite,
        "review": report.to_json() if report else None,
        "metrics": named.examination.to_json(),
    }


def render(result: dict[str, Any]) -> str:
    """`accept`'s result for people."""
    who = f" by {result['accepted_by']}" if result["accepted_by"] else ""
    lines = [f"{result['name']} is @{result['stack'][7:19]}, accepted{who}"]
    if result["contributors"]:
        lines.append(f"  work of {', '.join(result['contributors'])}")
    for reason in filter(None, (result["override"], result["despite"])):
        lines.append(f"  in spite of its review: {reason}")
    return "\n".join(lines)


def _insist(report: Report, override: str | None, despite: str | None) -> None:
    """Let a refused proposal pass where a reason is given for each kind. Raises CheckError."""
    if not report.examined:
        raise CheckError(
            "not accepted: it could not be examined",
            faults=report.evidence.reasons,
            hint="nothing of it was kept; ask its author for another",
        )
    missing = []
    if report.other_reasons and not despite:
        missing.append('--despite "why"')
    if report.gate_reasons and not override:
        missing.append('--accept-regression "why"')
    if missing:
        raise CheckError(
            "not accepted: the review refuses it",
            faults=report.evidence.reasons,
            hint=f"nothing of it was kept; to accept it all the same: {' '.join(missing)}",
        )


def _still_trusted(
    store: Store, trust: Trust, stack: ResolvedStack, what: Offered, despite: str | None
) -> None:
    """Ask the policy again: keys may have been revoked since the review. Raises CheckError."""
    findings = [
        *signatures(store, trust, stack.digest),
        *signatures(store, trust, stack.layers[-1].digest),
    ]
    said = ask_policy(trust, stack, findings, stack.label, what.label)
    if said is not None and not said.allowed and not despite:
        raise CheckError(
            "not accepted: the trust policy refuses it now",
            faults=said.reasons,
            hint='to accept it all the same: --despite "why"',
        )


def _proposed(store: Store, onto: str | None) -> Name:
    if onto is None:
        raise UsageError("it is proposed for no name", hint="say which one moves: --as NAME")
    return new_name(store, onto)
