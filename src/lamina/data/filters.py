"""Which written rows are worth keeping: pure functions over texts.

A text that goes round in circles, says again what another has said, or repeats somebody's private
row is no use as training data, however fluent it is. Words are compared without case and
punctuation.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from lamina.data.example import Example

RUN_WORDS = 8
"""Words in a row that two texts may not share."""
RUN_CHARACTERS = 40
"""The same in characters, for texts that put few spaces between words, and for long words."""
SAME_SHARE = 0.5
"""Two questions that share this part of their runs are one question."""

_WORD = re.compile(r"\w+")
_SPACE = re.compile(r"\s+")
_BETWEEN = re.compile(r"[\s\"'`<>(){}\[\],;:=|]+")
"""What stands between words, in JSON and code too."""
_LONG_WORD = 12
"""Characters a word, on average, from which a text counts as one of few words."""
_FEWEST_CONTAINED = 4
"""A shorter question is too common to be looked for inside another; a shorter text is looked for at
the start of texts only."""
_LOOP_WORDS, _LOOP_SHARE = 4, 0.6
"""Of all runs of this many words, the least part that must be different ones."""
_LOOP_CHARACTERS, _LOOP_CHARACTER_SHARE = 4, 0.25
_SHORTEST_LOOP = 3
"""Times that a run must fit into a text before its loops are looked at."""
_TELLING = 8
_TELLING_DIGITS = 4
"""A word of so many characters with so many digits, or with an @, tells whose it is."""
_KEPT_CONTROLS = "\n\t"


def words(text: str) -> list[str]:
    """Lower-case words and numbers, without punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def normal(text: str) -> str:
    """A text's words, one space between them; equal for texts that say the same."""
    return " ".join(words(text))


def clean(text: str) -> bool:
    """Whether a text has a word in it, and neither broken UTF-8 nor control characters."""
    return bool(words(text)) and not any(
        c == "\N{REPLACEMENT CHARACTER}"
        or (unicodedata.category(c) in ("Cc", "Cs", "Co", "Cn") and c not in _KEPT_CONTROLS)
        for c in text
    )


def loops(text: str) -> bool:
    """Whether a text repeats itself: too few of its runs of words, or of letters, are distinct."""
    said = words(text)
    return _repeats(said, _LOOP_WORDS, _LOOP_SHARE) or _repeats(
        _SPACE.sub(" ", text), _LOOP_CHARACTERS, _LOOP_CHARACTER_SHARE
    )


def _repeats(items: Sequence[str], run: int, least: float) -> bool:
    if len(items) < run * _SHORTEST_LOOP:
        return False
    found = ["\0".join(items[i : i + run]) for i in range(len(items) - run + 1)]
    return len(set(found)) < least * len(found)


def runs(text: str) -> frozenset[str]:
    """Every run of RUN_WORDS words; of a text with fewer, the whole of it."""
    said = words(text)
    return frozenset(_joined(said, RUN_WORDS)) or frozenset({" ".join(said)} - {""})


def _joined(said: Sequence[str], count: int) -> Iterator[str]:
    return (" ".join(said[i : i + count]) for i in range(len(said) - count + 1))


class Said:
    """What has been said already, to keep new questions different from each other."""

    def __init__(self) -> None:
        self._texts: set[str] = set()
        self._runs: list[frozenset[str]] = []

    def add(self, text: str) -> bool:
        """Whether `text` is new; then it is remembered."""
        found = runs(text)
        if normal(text) in self._texts or any(_overlap(found, old) for old in self._runs):
            return False
        self._texts.add(normal(text))
        self._runs.append(found)
        return True


def _overlap(left: frozenset[str], right: frozenset[str]) -> bool:
    return len(left & right) > SAME_SHARE * min(len(left), len(right))


class Forbidden:
    """Rows that no written row may repeat.

    A text repeats them when it shares with what a user or the assistant says in any of them: a run
    of RUN_WORDS words; RUN_CHARACTERS characters, where either has few words for its length; a
    word that tells whose it is (an address, a number); or one of their questions as a whole. A
    plain text also repeats a shorter one that it starts with. Short answers ("yes", "Paris") may
    come again.
    """

    def __init__(self, rows: Iterable[Example]) -> None:
        self._runs: set[int] = set()
        self._pieces: set[int] = set()
        self._telling: set[str] = set()
        self._questions: set[str] = set()
        self._lengths: set[int] = set()
        self._starts: set[str] = set()
        for row in rows:
            for text in spoken(row):
                self._runs.update(map(hash, _joined(words(text), RUN_WORDS)))
                self._pieces.update(map(hash, _pieces(text)))
                self._telling |= telling(text)
            for question in asked(row):
                said = words(question)
                self._questions.add(" ".join(said))
                if _FEWEST_CONTAINED <= len(said) < RUN_WORDS:
                    self._lengths.add(len(said))
            if row.text is not None and len(words(row.text)) < _FEWEST_CONTAINED:
                self._starts.add(normal(row.text))

    def repeated_by(self, row: Example) -> bool:
        """Whether a row asks a forbidden question or holds a piece of a forbidden row."""
        return (
            any(normal(question) in self._questions for question in asked(row))
            or any(self._holds(text) for text in spoken(row))
            or self._starts_with_one(row.text or "")
        )

    def _starts_with_one(self, text: str) -> bool:
        said = words(text)[: _FEWEST_CONTAINED - 1]
        return any(" ".join(said[: i + 1]) in self._starts for i in range(len(said)))

    def _holds(self, text: str) -> bool:
        said = words(text)
        return (
            any(hash(run) in self._runs for run in _joined(said, RUN_WORDS))
            or any(hash(piece) in self._pieces for piece in _windows(_one_line(text)))
            or not self._telling.isdisjoint(telling(text))
            or any(
                run in self._questions for length in self._lengths for run in _joined(said, length)
            )
        )


def asked(row: Example) -> Iterator[str]:
    """What the user says, or the plain text."""
    yield from (m.content for m in row.messages if m.role == "user")
    if row.text is not None:
        yield row.text


def spoken(row: Example) -> Iterator[str]:
    """What the user and the assistant say, the arguments of calls included, or the plain text."""
    yield from asked(row)
    for message in row.messages:
        if message.role == "assistant":
            yield message.content
            yield from (call.arguments for call in message.tool_calls)


def telling(text: str) -> set[str]:
    """Words that tell whose they are: addresses, and numbers or keys that are long enough."""
    found = (word.strip(".!?") for word in _BETWEEN.split(text.casefold()))
    return {
        word
        for word in found
        if len(word) >= _TELLING and ("@" in word or sum(map(str.isdigit, word)) >= _TELLING_DIGITS)
    }


def _one_line(text: str) -> str:
    return _SPACE.sub(" ", text.casefold()).strip()


def _windows(text: str) -> Iterator[str]:
    return (text[i : i + RUN_CHARACTERS] for i in range(len(text) - RUN_CHARACTERS + 1))


def _pieces(text: str) -> Iterator[str]:
    """The windows of characters of a text with few words, else of its longest words only."""
    line = _one_line(text)
    said = words(text)
    if len(said) < RUN_WORDS or len(line) > _LONG_WORD * len(said):
        yield from _windows(line)
    else:
        yield from (piece for word in line.split() for piece in _windows(word))
