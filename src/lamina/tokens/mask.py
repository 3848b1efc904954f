"""Examples to training sequences: ids, and which of them are supervised.

Only assistant turns are supervised: content, tool calls and the end-of-turn marker. Of plain text
every token is, but for the first, which nothing predicts.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamina.core.digest import short
from lamina.core.errors import DataError
from lamina.core.recipe import Overlong
from lamina.data.example import Example
from lamina.tokens.chunks import Chunk
from lamina.tokens.template import ChatFormat, Rendering, Span

_BLOCK_ROWS = 1024
_MIN_LENGTH = 4

Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all)."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """One training sequence."""

    ids: NDArray[np.int32]
    """(T,) token ids."""
    mask: NDArray[np.bool_]
    """(T,) True where the token is a target; never at position 0."""
    example: str
    """Digest of the example that it comes from."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def supervised(self) -> int:
        """Targets: what is predicted."""
        return int(self.mask[1:].sum())

    @property
    def answer(self) -> bytes:
        """The targets' ids: equal where rows teach the same."""
        return self.ids[self.mask].tobytes()


@dataclass(frozen=True)
class EncodeReport:
    """What became of the examples; no row disappears without being counted here."""

    rows: int = 0
    """Examples given."""
    tokens: int = 0
    """Tokens of all sequences."""
    supervised_tokens: int = 0
    """Targets among them."""
    overlong: int = 0
    """Sequences that were longer than `max_length`."""
    windows: int = 0
    """Windows that overlong sequences were split into and that were kept."""
    dropped_windows: int = 0
    """Windows that held no target."""
    unstable_template: int = 0
    """Examples whose earlier turns the template renders differently later on: each of their answers
    became a sequence of its own."""
    lost: int = 0
    """Examples of which no target is left."""


@dataclass(frozen=True)
class EncodedSet:
    """The sequences to train on, in the order of the examples, and the counts."""

    rows: tuple[Encoded, ...]
    report: EncodeReport


def encode(
    example: Example, fmt: ChatFormat, *, max_length: int, overlong: Overlong = "split"
) -> tuple[Encoded, ...]:
    """The training sequences of one example (see `encode_all`)."""
    return encode_all([example], fmt, max_length=max_length, overlong=overlong).rows


def encode_all(
    examples: Sequence[Example],
    fmt: ChatFormat,
    *,
    max_length: int,
    overlong: Overlong = "split",
    progress: Progress | None = None,
) -> EncodedSet:
    """Tokenise examples; sequences are at most `max_length` tokens long.

    `overlong`: 'split' into windows (each target is kept exactly once; the windows of a
    conversation overlap by a quarter as context), 'truncate' at the end, or 'refuse'.

    Raises: DataError listing every example that the template refuses, or that is too long under
    'refuse'; ValueError when `max_length` is below 4.
    """
    if max_length < _MIN_LENGTH:
        raise ValueError(f"max_length must be at least {_MIN_LENGTH}, not {max_length}")
    counts: Counter[str] = Counter(rows=len(examples))
    rows: list[Encoded] = []
    faults: list[str] = []
    for start in range(0, len(examples), _BLOCK_ROWS):
        block = examples[start : start + _BLOCK_ROWS]
        for name, sequences in _encode_block(block, start, fmt, counts, faults):
            longest = max(map(len, sequences), default=0)
            if overlong == "refuse" and longest > max_length:
                faults.append(f"{name}: {longest} tokens, {max_length} allowed")
                continue
            kept = [row for each in sequences for row in _fit(each, max_length, overlong, counts)]
            counts["lost"] += not kept
            rows += kept
        if progress is not None:
            progress(min(start + _BLOCK_ROWS, len(examples)), len(examples))
    if faults:
        raise DataError(
            f"{len(faults)} of {len(examples)} rows cannot be trained on",
            faults=faults,
            hint="mend or remove these rows"
            + (", or set overlong to split" if overlong == "refuse" else ""),
        )
    counts["tokens"] = sum(len(row) for row in rows)
    counts["supervised_tokens"] = sum(int(row.mask.sum()) for row in rows)
    return EncodedSet(tuple(rows), EncodeReport(**counts))


@dataclass(frozen=True)
class _Sequence:
    """A sequence before it is cut to length."""

    whole: Encoded
    bos: int
    """1 if it starts with a bos that every window repeats, else 0."""
    chat: bool

    def __len__(self) -> int:
        return len(self.whole)


def _encode_block(
    block: Sequence[Example],
    start: int,
    fmt: ChatFormat,
    counts: Counter[str],
    faults: list[str],
) -> Iterator[tuple[str, list[_Sequence]]]:
    """Name and sequences of every example that can be rendered, tokenised in one batch."""
    found: list[tuple[str, Example, Rendering]] = []
    for number, example in enumerate(block, start + 1):
        name = f"row {number} ({short(example.content_digest())})"
        try:
            found.append((name, example, _rendering(example, fmt)))
        except DataError as error:
            faults.append(f"{name}: {error.message}")
    spans = [span for _, _, r in found for sequence in r.sequences for span in sequence]
    ids = fmt.encode_chunks([chunk for span in spans for chunk in span.chunks])
    for name, example, rendering in found:
        counts["unstable_template"] += not rendering.stable
        yield name, [_sequence(each, ids, fmt, example) for each in rendering.sequences]


def _rendering(example: Example, fmt: ChatFormat) -> Rendering:
    if example.text is not None:
        return fmt.text_rendering(example.text)
    return fmt.rendering(example.messages, example.tools)


def _sequence(
    spans: Sequence[Span], ids_of: Mapping[Chunk, list[int]], fmt: ChatFormat, example: Example
) -> _Sequence:
    """Concatenate the spans' ids; plain text gets the bos that the tokenizer puts before it."""
    chat = example.text is None
    ids: list[int] = [] if chat or fmt.bos_id is None else [fmt.bos_id]
    mask = [False] * len(ids)
    for span in spans:
        before = len(ids)
        ids += chain.from_iterable(ids_of[chunk] for chunk in span.chunks)
        mask += [span.supervised] * (len(ids) - before)
    mask[:1] = [False] * len(mask[:1])
    bos = int(bool(ids) and ids[0] == fmt.bos_id)
    return _Sequence(_encoded(ids, mask, example.content_digest()), bos, chat)


def _encoded(ids: Any, mask: Any, digest: str) -> Encoded:
    ids_T, mask_T = np.array(ids, dtype=np.int32), np.array(mask, dtype=np.bool_)
    ids_T.flags.writeable = mask_T.flags.writeable = False
    return Encoded(ids_T, mask_T, digest)


def _fit(
    sequence: _Sequence, max_length: int, overlong: Overlong, counts: Counter[str]
) -> list[Encoded]:
    """The sequence in rows of at most `max_length` tokens, each with a target; counts the rest."""
    whole = sequence.whole
    if len(whole) <= max_length:
        return [whole] if whole.mask.any() else []
    counts["overlong"] += 1
    if overlong == "truncate":
        cut = _encoded(whole.ids[:max_length], whole.mask[:max_length], whole.example)
        return [cut] if cut.mask.any() else []
    windows = list(_windows(sequence, max_length))
    kept = [window for window in windows if window.mask.any()]
    counts["windows"] += len(kept)
    counts["dropped_windows"] += len(windows) - len(kept)
    return kept


def _windows(sequence: _Sequence, max_length: int) -> Iterator[Encoded]:
    """Overlapping windows; a target in the overlap counts only in the earlier one."""
    whole, bos = sequence.whole, sequence.bos
    room = max_length - bos
    overlap = max(1, room // 4) if sequence.chat else 1
    for start in range(bos, len(whole) - overlap, room - overlap):
        span = slice(start, start + room)
        mask = whole.mask[span].copy()
        if start > bos:
            mask[:overlap] = False
        ids = np.concatenate([whole.ids[:bos], whole.ids[span]])
        yield _encoded(ids, np.concatenate([whole.mask[:bos], mask]), whole.example)
