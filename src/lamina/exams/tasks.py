"""An exam and its questions, as a layer carries them or a file gives them."""

from dataclasses import dataclass
from functools import cached_property

from lamina.core.digest import digest_bytes, short
from lamina.core.errors import CorruptBlobError, DataError
from lamina.core.manifests import ExamSpec
from lamina.data.exams import ExamItem, from_jsonl
from lamina.exams.scorers.registry import SCORERS
from lamina.exams.scorers.scorer import Scorer

NO_LAYER = "-"
"""Layer name of an exam that was given by file."""


@dataclass(frozen=True)
class Exam:
    """An exam. `items` is None where the questions are withheld or not at hand."""

    spec: ExamSpec
    layer: str
    """Name of the layer that carries it, `NO_LAYER` for an exam given by file."""
    items: tuple[ExamItem, ...] | None

    @property
    def digest(self) -> str:
        """Of the questions."""
        return self.spec.items

    @property
    def name(self) -> str:
        """Its name, not always unique: see `key`."""
        return self.spec.name

    @cached_property
    def key(self) -> tuple[str, str, int]:
        """What decides the result besides the stack: questions, scorer, and where answers are
        generated their longest length. Two exams with one key are the same exam."""
        length = self.spec.max_new_tokens if self.scorer.generates else 0
        return self.spec.items, self.spec.scorer, length

    @property
    def scorer(self) -> Scorer:
        """How it is scored."""
        return SCORERS[self.spec.scorer]


def load(spec: ExamSpec, layer: str, data: bytes | None) -> Exam:
    """An exam from its questions' JSONL; None for one whose questions are withheld.

    Raises: CorruptBlobError when the bytes are not those the layer names; DataError when they
    hold another number of questions, or unreadable ones.
    """
    if data is None:
        return Exam(spec, layer, None)
    if digest_bytes(data) != spec.items:
        raise CorruptBlobError(
            f"the questions of exam {spec.name} (layer {layer}) do not match their digest",
            faults=[f"expected {short(spec.items)}, found {short(digest_bytes(data))}"],
            hint="fetch the layer again, or run `lamina verify`",
        )
    items = from_jsonl(data)
    if len(items) != spec.rows:
        raise DataError(
            f"exam {spec.name} (layer {layer}) names {spec.rows} questions, but holds {len(items)}",
            hint="the layer was made wrongly; ask its author",
        )
    return Exam(spec, layer, items)
