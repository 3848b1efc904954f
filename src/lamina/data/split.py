"""The split into training rows and held-out rows, by a hash of each row's own question.

The question is what stands before a row's *first* answer (all of a plain text). Every answer of a
conversation is trained on, so two rows that start with the same question would share a supervised
question; by this hash they never end up on two sides, whatever their answers, and neither do a
conversation and a longer version of it. Of an image, the image is the question: it may have
several captions.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lamina.core.digest import Digest, digest_json
from lamina.data.example import Example, Message

_HEX_DIGITS = 16
_ALL = 16**_HEX_DIGITS


@dataclass(frozen=True)
class Split:
    """Three sides that share no question."""

    train: tuple[Example, ...]
    """In the order given."""
    held_out: tuple[Example, ...]
    """In the order of their hashes, which is the same whatever order the rows came in."""
    unused: tuple[Example, ...] = ()
    """Rows of the held-out side beyond the cap: neither trained on nor asked."""


def split(examples: Sequence[Example], held_out: float, cap: int) -> Split:
    """Hold out about the share `held_out` of the questions, at most `cap` rows.

    A row's side depends on its own question only, so rows keep their sides when others are added;
    a row added to the held-out side can push another over the cap, never into training.

    Exceptions, for small sets: where the hash would hold out nothing, the question with the
    smallest hash is held out (its rows are at least one); where it would hold out everything, the
    question with the largest hash is trained on. Where all rows start with the same question,
    the whole prompt before the last answer is the question instead. One question alone, or
    `held_out` 0: everything is trained on.

    Raises: ValueError unless 0 <= held_out < 1 and cap >= 1.
    """
    if not 0 <= held_out < 1 or cap < 1:
        raise ValueError(f"held_out must be in [0, 1) and cap at least 1: {held_out}, {cap}")
    rows = _by_question(examples, lambda example: example.opening)
    if len(rows) == 1:
        rows = _by_question(examples, lambda example: example.prompt)
    if held_out == 0 or len(rows) < 2:
        return Split(tuple(examples), ())
    hashes = sorted(rows)
    out = {text for text in hashes if int(text[:_HEX_DIGITS], 16) < held_out * _ALL}
    out = out or {hashes[0]}
    out -= {hashes[-1]}
    taken = [
        index
        for text in sorted(out)
        for index in sorted(rows[text], key=lambda i: examples[i].content_digest())
    ]
    left = set(range(len(examples))) - set(taken)
    return Split(
        train=tuple(examples[i] for i in sorted(left)),
        held_out=tuple(examples[i] for i in taken[:cap]),
        unused=tuple(examples[i] for i in taken[cap:]),
    )


def _by_question(
    examples: Sequence[Example], question: Callable[[Example], tuple[Message, ...]]
) -> dict[str, list[int]]:
    """Indices of the rows of each question, by the hex digits of its hash."""
    found: dict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        digest = question_digest(question(example), example.matter)
        found[digest.removeprefix("sha256:")].append(index)
    return found


def question_digest(messages: Sequence[Message], text: str | None = None) -> Digest:
    """Of a question alone: two rows with one question and different answers share it.

    `text`: the `matter` of a row without messages."""
    return digest_json({"messages": [message.to_json() for message in messages], "text": text})
