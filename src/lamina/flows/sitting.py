"""`lamina exam --ray`: every exam of a stack and of its parent at once, each in its own process.

The processes put what was answered on record, in the store that all machines share; whoever asked
reads it there. So an exam is the same wherever it was sat, and a sitting that was cut short keeps
what it has.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lamina.core.errors import CheckError, LaminaError
from lamina.core.manifests import ExamSpec, StackConfig
from lamina.core.report import Reporter, Silent
from lamina.data.exams import to_jsonl
from lamina.exams import tasks
from lamina.exams.tasks import Exam
from lamina.fleet.cluster import cluster
from lamina.fleet.pool import Done, Piece, spread
from lamina.flows.elsewhere import store_of, told
from lamina.flows.examine import Examination, asked_of, examine_stack, sit, unanswered
from lamina.stack.resolve import ResolvedStack, of_config
from lamina.store.layout import Store


def examine_across(
    store: Store,
    text: str,
    reporter: Reporter,
    *,
    against: str | None = None,
    files: Sequence[str] = (),
    fresh: bool = False,
    address: str | None = None,
    processors: int = 1,
) -> Examination:
    """As `examine.examine_stack`, the exams spread over a Ray cluster.

    The events of kind `job` are a line for each exam. Raises what `examine_stack` raises,
    FleetError, UsageError where no machine has so many `processors`, ReadOnlyStoreError.
    """
    stack, other, exams = asked_of(store, text, against, files)
    pieces: dict[str, Piece] = {}
    for each in filter(None, (stack, other)):
        asked = [e for e in exams if e.items is not None] if fresh else None
        for exam in unanswered(store, each, exams) if asked is None else asked:
            piece = _piece(store, each, exam)
            pieces[piece.name] = piece
    if pieces:
        _spread(list(pieces.values()), reporter, address, processors)
    return examine_stack(store, text, reporter, against=against, files=files)


def _spread(
    pieces: Sequence[Piece], reporter: Reporter, address: str | None, processors: int
) -> None:
    faults = []
    with cluster(address):
        for done in spread(_work, pieces, lambda: None, processors=processors):
            fault = _fault(done)
            faults += [] if fault is None else [f"{done.name}: {fault}"]
            text = f"sat in {done.seconds:.0f} s" if fault is None else f"failed: {fault}"
            reporter.event({"event": "job", "name": done.name, "text": text, "done": True})
    if faults:
        raise CheckError(
            f"{len(faults)} of {len(pieces)} exams did not come to an end",
            faults=faults,
            hint="the others are on record; the same command asks these again",
        )


def _fault(done: Done) -> str | None:
    return done.fault or done.value["fault"]


def _piece(store: Store, stack: ResolvedStack, exam: Exam) -> Piece:
    stored = store.put_stack(stack.config.base, stack.config.layers)  # refused if read-only
    given = told(store) | {
        "seen": str(store.path(stored.digest)),
        "stack": stack.config.model_dump(mode="json"),
        "label": stack.label,
        "exam": exam.spec.model_dump(mode="json"),
        "layer": exam.layer,
        "questions": to_jsonl(exam.items or ()).decode(),
    }
    return Piece(f"{stack.label} on {exam.name} ({stack.digest[7:19]})", given)


def _work(given: dict[str, Any]) -> dict[str, Any]:
    """One exam, in a process that Ray has begun."""
    try:
        store = store_of(given, Path(given["seen"]))
        config = StackConfig.model_validate(given["stack"])
        stack = of_config(store, config, label=given["label"], force=True)
        spec = ExamSpec.model_validate(given["exam"])
        exam = tasks.load(spec, given["layer"], given["questions"].encode())
        sit(store, stack, [exam], Silent(), fresh=True)
    except LaminaError as error:
        return {"fault": error.render()}
    return {"fault": None}
