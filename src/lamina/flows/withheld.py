"""What must stay at home, checked before anything is sent, and what of the data goes along."""

from typing import Any

from lamina.core.digest import short
from lamina.core.errors import UsageError
from lamina.core.sizes import size_text
from lamina.flows import rehearsal, seen_rows
from lamina.share.parcel import Parcel
from lamina.stack.resolve import ResolvedLayer, ResolvedStack


def check_withheld(stack: ResolvedStack, parcel: Parcel) -> None:
    """Raise UsageError where a layer carries what it says it withholds.

    That is the questions of a private exam, a sample of private rows, or marks of them. Answers to
    withheld questions are left out of every parcel (`share.parcel`).
    """
    faults = [fault for layer in stack.layers for fault in _faults(layer, parcel)]
    if faults:
        raise UsageError(
            f"{stack.label} carries what its layers withhold; nothing was sent",
            faults=faults,
            hint="train the layer again with --private, which keeps all of that on this machine",
        )


def _faults(layer: ResolvedLayer, parcel: Parcel) -> list[str]:
    name = f"layer {layer.config.name} ({short(layer.digest)})"
    travelling = {blob.digest for blob in parcel.blobs}
    hidden = [
        (index, spec) for index, spec in enumerate(layer.config.exams) if spec.private
    ]  # fmt: skip
    faults = [
        f"{name}: the questions of its private exam {spec.name}"
        for index, spec in hidden
        if layer.manifest.blob(f"exam-{index}.jsonl") or spec.items in travelling
    ]
    if hidden and layer.config.rehearsal == "sample" and layer.manifest.blob(rehearsal.FILE):
        faults.append(f"{name}: a sample of its rows, which are private")
    if hidden and layer.manifest.blob(seen_rows.FILE):
        faults.append(f"{name}: marks by which its rows can be guessed, which are private")
    return faults


def travelling_data(stack: ResolvedStack, parcel: Parcel) -> list[dict[str, Any]]:
    """What of each layer's data goes along: a row a layer, lowest first."""
    there = {blob.digest for blob in parcel.blobs}
    rows = []
    for layer in stack.layers:
        asked = [
            spec.rows
            for index, spec in enumerate(layer.config.exams)
            if (blob := layer.manifest.blob(f"exam-{index}.jsonl")) and blob.digest in there
        ]
        sample = layer.manifest.blob(rehearsal.FILE)
        rows.append(
            {
                "layer": layer.digest,
                "name": layer.config.name,
                "questions": sum(asked),
                "questions_withheld": sum(s.rows for s in layer.config.exams if s.private),
                "rehearsal_bytes": sample.size if sample else 0,
                "rehearsal": layer.config.rehearsal,
                "marks": layer.manifest.blob(seen_rows.FILE) is not None,
                "files": [f.name for f in layer.config.data.files] if layer.config.data else [],
            }
        )
    return rows


def say(row: dict[str, Any]) -> str:
    """One layer's row of `travelling_data` as a sentence."""
    kind = {"sample": "of its own", "synthesised": "that its stack wrote"}.get(row["rehearsal"], "")
    parts = [
        f"{row['questions']} exam questions" if row["questions"] else "",
        f"{row['questions_withheld']} questions withheld" if row["questions_withheld"] else "",
        f"{size_text(row['rehearsal_bytes'])} of rows {kind}" if row["rehearsal_bytes"] else "",
        "marks of the rows it has seen" if row["marks"] else "",
        f"the names of its data files ({', '.join(row['files'])})" if row["files"] else "",
    ]
    return f"{row['name']}: " + (", ".join(filter(None, parts)) or "none of its data")
