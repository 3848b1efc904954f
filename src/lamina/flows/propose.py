"""`lamina propose`: a layer, its evidence and its author's word as one file that others review."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lamina.core.digest import short
from lamina.core.errors import UsageError
from lamina.core.evidence import PROPOSAL_TYPE
from lamina.core.names import Name, parse_name, parse_reference
from lamina.core.proposals import Claim, ProposalEvidence
from lamina.core.report import Reporter
from lamina.exams.report import score_of
from lamina.flows import licensing, rehearsal, seen_rows
from lamina.flows.credit import contributors
from lamina.flows.examine import ENGINE, Examination, examine_stack
from lamina.flows.offers import REMOTE, given
from lamina.flows.publish import push
from lamina.share import archive
from lamina.share.parcel import Parcel, parcel_of
from lamina.share.wire import Access
from lamina.stack.resolve import ResolvedLayer, ResolvedStack, resolve
from lamina.store.layout import Store

NOTE_LIMIT = 2000
"""Longest note, in characters."""
SUFFIX = ".oci.tar"


def propose(
    store: Store,
    text: str,
    target: str | None,
    reporter: Reporter,
    *,
    onto: str | None = None,
    note: str | None = None,
    author: str | None = None,
    whole: bool = False,
    despite: str | None = None,
    access: Access | None = None,
) -> dict[str, Any]:
    """Pack the top layer of the stack that `text` means for somebody who has those beneath.

    `target` is a file (NAME.oci.tar by default), or a tag in a registry, which always gets the
    layers beneath too. `onto` is the receiver's name that should move; `whole` puts the layers
    beneath into the file. Exams that are not on record are sat first.
    Raises UsageError, UnknownNameError, WrongParentError, CheckError where a licence forbids it.
    """
    _check(onto, note)
    stack = resolve(store, text)
    if not stack.layers:
        raise UsageError(f"{text} is a bare base: there is no layer to propose")
    name = _name(text, stack)
    licences = licensing.licences_of(store, stack, "share")
    why = licensing.check(licences, f"to share {text}", reporter, despite=despite)
    examination = examine_stack(store, text, reporter)
    proposal = ProposalEvidence(
        name=name,
        onto=onto,
        note=note,
        author=author or stack.layers[-1].config.author,
        layer=stack.layers[-1].digest,
        claims=_claims(examination, stack),
        despite=why,
    )
    stored = store.put_stack(stack.config.base, stack.config.layers)
    evidence = store.put_evidence(PROPOSAL_TYPE, proposal, stored)
    whole = whole or (target or "").startswith(REMOTE)
    beneath = [] if whole else [layer.digest for layer in stack.layers[:-1]]
    place = target or f"{name}{SUFFIX}"
    if place.startswith(REMOTE):
        pushed = push(store, f"@{stored.digest[7:]}", place, given(access), reporter)
        size = pushed["sent"]
    else:
        parcel = parcel_of(store, stored.digest)
        out = [*beneath, *_older(parcel, evidence.digest)]
        size = archive.write(Path(place), store, parcel, name, leave_out=out)
    return {
        "place": place,
        "bytes": size,
        "stack": stored.digest,
        "layer": proposal.layer,
        "onto": onto,
        "left_out": beneath,
        "contributors": list(contributors(store, stack.layers)),
        "claims": [claim.model_dump(mode="json") for claim in proposal.claims],
        "licences": licences.to_json(),
        "travels": travelling(stack.layers if whole else stack.layers[-1:]),
    }


def render(result: dict[str, Any]) -> str:
    """`propose`'s result for people."""
    lines = [
        f"{result['place']}: {result['bytes'] / 1e6:.1f} MB, layer @{short(result['layer'])}"
        + (f" for {result['onto']}" if result["onto"] else "")
    ]
    if result["left_out"]:
        beneath = ", ".join(f"@{short(digest)}" for digest in result["left_out"])
        lines.append(f"  whoever reviews it needs the layers beneath: {beneath} (or --whole)")
    lines += [f"  goes along: {text}" for text in result["travels"]]
    lines.append(f"  they review it with: lamina review {result['place']}")
    return "\n".join(lines)


def travelling(layers: Sequence[ResolvedLayer]) -> list[str]:
    """What of people's rows goes along with layers, one sentence each."""
    found = []
    for layer in layers:
        name = layer.config.name
        for index, exam in enumerate(layer.config.exams):
            if layer.manifest.blob(f"exam-{index}.jsonl") is not None:
                found.append(f"{exam.rows} questions of exam {exam.name} (layer {name})")
            else:
                found.append(f"of exam {exam.name} (layer {name}) its results alone")
        if layer.manifest.blob(rehearsal.FILE) is not None:
            kind = layer.config.rehearsal or "sample"
            shown = f"lamina show @{short(layer.digest)} --rehearsal"
            found.append(f"rehearsal rows of layer {name} ({kind}): {shown}")
        if layer.manifest.blob(seen_rows.FILE) is not None:
            found.append(f"marks that recognise the rows that layer {name} has seen")
    return found


def _check(onto: str | None, note: str | None) -> None:
    if onto is not None and parse_name(onto) != Name(parse_name(onto).name):
        raise UsageError(f"--onto {onto}: give a plain name, without a version")
    if note is not None and len(note) > NOTE_LIMIT:
        raise UsageError(f"--note has {len(note)} characters; at most {NOTE_LIMIT} travel")


def _name(text: str, stack: ResolvedStack) -> str:
    reference = parse_reference(text)
    return reference.name if isinstance(reference, Name) else stack.layers[-1].config.name


def _claims(examination: Examination, stack: ResolvedStack) -> tuple[Claim, ...]:
    withheld = _withheld(stack)
    beneath = {(c.exam, c.exam_digest): c.before for c in examination.comparisons}
    return tuple(
        Claim(
            exam=score.exam,
            layer=score.layer,
            exam_digest=score.exam_digest,
            metric=score.metric,
            value=score.value,
            n=score.n,
            beneath=beneath.get((score.exam, score.exam_digest)),
            withheld=score.exam_digest in withheld,
            engine=ENGINE,
        )
        for score in map(score_of, examination.results)
    )


def _withheld(stack: ResolvedStack) -> set[str]:
    return {exam.items for layer in stack.layers for exam in layer.config.exams if exam.private}


def _older(parcel: Parcel, kept: str) -> list[str]:
    """Earlier proposals of the same stack."""
    return [
        item.digest
        for item in parcel.evidence
        if item.artifactType == PROPOSAL_TYPE and item.digest != kept
    ]
