"""Questions at hand: the exams that layers carry or files give; withheld ones if they lie here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lamina.core.digest import digest_bytes
from lamina.core.errors import DataError
from lamina.core.files import atomic_write
from lamina.core.manifests import ExamSpec
from lamina.core.recipe import ScorerName
from lamina.data.example import Example, Message
from lamina.data.exams import (
    ExamItem,
    default_scorers,
    items_from_examples,
    read_exam_file,
    to_jsonl,
)
from lamina.data.read import read
from lamina.exams import tasks
from lamina.exams.scorers.registry import SCORERS
from lamina.exams.tasks import NO_LAYER, Exam
from lamina.stack.resolve import ResolvedLayer, ResolvedStack
from lamina.store.layout import Store

ANSWER_TOKENS: dict[ScorerName, int] = {"tool_call": 128, "exact": 48, "numeric": 256}
"""Longest generated answer in an exam, by scorer; others generate nothing."""

PROBES_AN_EXAM = 2
PRIVATE = "private"
"""Folder beside the layout where withheld questions lie."""


def private_path(store: Store, digest: str) -> Path:
    """Where withheld questions lie on the machine that made them; never a blob, never pushed."""
    return store.root / PRIVATE / f"{digest.removeprefix('sha256:')}.jsonl"


def keep_private(store: Store, data: bytes) -> None:
    """Keep withheld questions on this machine."""
    atomic_write(private_path(store, digest_bytes(data)), data)


def carried(store: Store, layers: Sequence[ResolvedLayer]) -> list[Exam]:
    """The exams that layers carry, lowest layer first. Withheld questions are looked up here."""
    return [
        tasks.load(spec, layer.config.name, exam_bytes(store, layer, index))
        for layer in layers
        for index, spec in enumerate(layer.config.exams)
    ]


def exam_bytes(store: Store, layer: ResolvedLayer, index: int) -> bytes | None:
    """The questions of a layer's n-th exam; None where they are withheld elsewhere."""
    blob = layer.manifest.blob(f"exam-{index}.jsonl")
    if blob is not None:
        return store.read(blob.digest)
    path = private_path(store, layer.config.exams[index].items)
    return path.read_bytes() if path.exists() else None


def exam_of(
    name: str, scorer: ScorerName, examples: Sequence[Example], *, private: bool = False
) -> tuple[ExamSpec, bytes]:
    """An exam made of rows, and its questions' bytes. Rows that the scorer can't use stay out.

    Raises DataError when none is left.
    """
    return _made(name, scorer, items_from_examples(examples, scorer), private=private)


def exams_in(
    path: str,
    name: str,
    scorers: Sequence[ScorerName] | None = None,
    *,
    private: bool = False,
) -> list[tuple[ExamSpec, bytes]]:
    """The exams that a file gives: rows of data, or questions as a layer carries them.

    One for each of `scorers`; None: for each that fits. Raises DataError listing what is wrong
    with the rows.
    """
    try:
        examples = read([path]).examples
    except DataError as as_rows:
        try:
            items = read_exam_file(Path(path))
        except DataError:
            raise as_rows from None
        fitting = [scorer for scorer, each in SCORERS.items() if each.usable(items)]
        return [_made(name, scorer, items, private=private) for scorer in scorers or fitting]
    chosen = scorers or default_scorers(examples)
    return [exam_of(name, scorer, examples, private=private) for scorer in chosen]


def _made(
    name: str, scorer: ScorerName, questions: Sequence[ExamItem], *, private: bool
) -> tuple[ExamSpec, bytes]:
    items = SCORERS[scorer].usable(questions)
    if not items:
        raise DataError(
            f"none of {len(questions)} rows has what the scorer {scorer!r} needs for exam {name}",
            hint="choose another with --scorer, or hold out more rows with --held-out",
        )
    data = to_jsonl(items)
    spec = ExamSpec(
        name=f"{name}/{scorer}",
        scorer=scorer,
        items=digest_bytes(data),
        rows=len(items),
        private=private,
        max_new_tokens=ANSWER_TOKENS.get(scorer, 1),
    )
    return spec, data


def from_file(path: str) -> list[Exam]:
    """Exams of a file, one for each scorer that fits it; no layer carries them."""
    return [tasks.load(spec, NO_LAYER, data) for spec, data in exams_in(path, Path(path).stem)]


def probe_prompts(
    store: Store, stack: ResolvedStack, rows: int = PROBES_AN_EXAM
) -> list[tuple[tuple[Message, ...], tuple[str, ...]]]:
    """A few questions of each exam that a stack carries, as (messages, tools)."""
    found: dict[Any, None] = {}
    for exam in carried(store, stack.layers):
        for item in (exam.items or ())[:rows]:
            tools = item.example.tools if item.example else item.tools
            if item.prompt:  # plain text asks nothing
                found[(item.prompt, tools)] = None
    return list(found)
