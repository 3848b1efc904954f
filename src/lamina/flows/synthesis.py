"""A stack writes its own rows: questions in the manner of given ones, and its answers to them.

What a stack can do is rehearsed as well by rows that it writes itself (SSR, arXiv:2403.01244):
they need not be anybody's rows. It goes on with a list of three demonstrated questions, sampled so
that questions differ, and then answers greedily, as it does in exams. The list is plain text, each
question under the functions that it was asked with. A user turn of the chat template, which a
model can be made to continue as well (Magpie, arXiv:2406.08464), asks less well here: a layer that
learned to answer, with a call above all, answers in anybody's turn.

What is written is screened: it must be whole, readable and going somewhere, must differ from what
was written before, and must repeat no forbidden row (`data.filters.Forbidden`). The answers that
the stack itself finds least likely are dropped last: where it wanders, it shows least of what it
learned. Deterministic for one seed on one machine.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lamina.bases.sample import generate
from lamina.bases.sampling import Sampling
from lamina.core.errors import DataError, TrainInterrupted
from lamina.core.report import Reporter
from lamina.core.seeds import derive
from lamina.data.example import Example, Message
from lamina.data.filters import telling
from lamina.data.readers.chat import CHAT
from lamina.flows.examinee import StackExaminee
from lamina.flows.screen import FUNCTIONS, QUESTION, Screen
from lamina.stack.compile import Compiled
from lamina.tokens.chunks import Chunk
from lamina.tokens.mask import encode
from lamina.tokens.tools import function_schema

DEMONSTRATIONS = 3
_END = "\n\n"
"""What ends a question in the list."""
_MOST_FUNCTIONS, _MOST_DESCRIPTION = 8, 200
"""Functions, and characters of a description, that a list shows."""
ROUND = 32
"""Questions written at a time."""
TEMPERATURE, TOP_P = 1.0, 0.95
UNLIKELY = 0.25
"""Share of the rows, those with the least likely answers, that is dropped."""
DRY_ROUNDS = 3
"""Rounds in a row that gave nothing, after which the stack is taken to have nothing to say."""
SHARED_BY = 3
"""Demonstrations that must have a system prompt for it to be used, or that private texts must start
with for an opening to be: one row's own may be about one person."""
_LONGEST_DEMONSTRATION = 1000
"""Characters; longer questions are not shown as long as there are shorter ones."""
_LONGEST_ROW = 1 << 20
_TAIL = 32
"""Newest tokens that are looked at for a stop string."""
_CUT = "\N{REPLACEMENT CHARACTER}"
"""What a text ends in whose last character was cut."""
_BLANK = re.compile(r"\s*\n\s*\n\s*")
_OPENING = re.compile(r"\S+(?:\s+\S+){0,3}")
_LONGEST_OPENING = 24
"""Characters of a text that its continuation starts from: too few to tell whose it was."""


@dataclass(frozen=True)
class _Draft:
    """A question to be written: what leads to it, and what the row keeps of that."""

    ids: tuple[int, ...]
    system: str | None = None
    tools: tuple[str, ...] = ()
    opening: str | None = None
    """Of a plain text; None for a conversation."""

    def row(self, words: str) -> Example:
        """The row as far as it is written."""
        if self.opening is not None:
            return Example(text=self.opening + words.rstrip(_CUT))
        lead = [Message(role="system", content=self.system)] if self.system else []
        return Example(
            messages=(*lead, Message(role="user", content=words.strip())), tools=self.tools
        )


def answered(
    compiled: Compiled,
    prompts: Sequence[Example],
    *,
    max_new_tokens: int = 256,
    seed: int,
    temperature: float = 0.0,
    reporter: Reporter,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Example, ...]:
    """Each prompt (what stands before its last assistant turn) with the stack's own answer.

    An answer of nothing but `<tool_call>` blocks becomes tool calls, as in any row that is read.
    Left out are answers that are empty, that cannot be read, or that have not ended after
    `max_new_tokens`. Raises TrainInterrupted when `stop` says so between two batches.
    """
    fmt = compiled.format

    def progress(done: int) -> None:
        reporter.event({"event": "examining", "text": f"answering: {done} of {len(prompts)}"})
        _heed(stop)

    texts = _texts(
        compiled,
        [fmt.prompt_ids(prompt.prompt, prompt.tools) for prompt in prompts],
        max_new_tokens=max_new_tokens,
        stop_ids=fmt.stop_ids,
        stop_strings=fmt.stop_strings,
        sampling=Sampling(temperature=temperature, seed=derive(seed, "answers")),
        progress=progress,
    )
    rows = (
        _with_answer(prompt, text)
        for prompt, text in zip(prompts, texts, strict=True)
        if text is not None
    )
    return tuple(row for row in rows if row is not None)


def write_rows(
    compiled: Compiled,
    demonstrations: Sequence[Example],
    count: int,
    *,
    forbidden: Sequence[Example] = (),
    seed: int,
    reporter: Reporter,
    private: bool = False,
    max_question_tokens: int = 128,
    max_new_tokens: int = 256,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Example, ...]:
    """At most `count` new rows in the manner of `demonstrations`, none repeating a `forbidden` one.

    A row keeps the tools, and a system prompt that several rows share, of one demonstration; a
    plain text its first words, where demonstrations are private only words that several start with.
    Fewer rows come out where the stack's questions and answers do not pass the screening within
    4 * count / 32 + 2 rounds. Raises TrainInterrupted when `stop` says so.
    """
    writer = _Writer(compiled, demonstrations, private, seed, max_question_tokens, max_new_tokens)
    screen = Screen(forbidden)
    wanted = math.ceil(count / (1 - UNLIKELY))
    pool: list[Example] = []
    dry = 0
    for number in range(math.ceil(4 * count / ROUND) + 2):
        if len(pool) >= wanted or dry == DRY_ROUNDS:
            break
        written = writer.round(number, screen, reporter, stop)
        pool += written
        dry = 0 if written else dry + 1
        reporter.event({"event": "examining", "text": f"writing rows: {len(pool)} of {wanted}"})
    rows = _likeliest(compiled, pool[:wanted], UNLIKELY)[:count]
    reporter.say(f"wrote {len(rows)} rows; dropped {screen.summary() or 'none'}")
    return rows


class _Writer:
    """Writes questions after demonstrations, and answers to them."""

    def __init__(
        self,
        compiled: Compiled,
        demonstrations: Sequence[Example],
        private: bool,
        seed: int,
        max_question_tokens: int,
        max_new_tokens: int,
    ) -> None:
        self._compiled, self._seed = compiled, seed
        self._max_question_tokens, self._max_new_tokens = max_question_tokens, max_new_tokens
        self._rows = [row for row in demonstrations if _question(row)]
        short = [row for row in self._rows if len(_question(row)) <= _LONGEST_DEMONSTRATION]
        self._rows = short or self._rows
        systems = Counter(filter(None, map(_system, self._rows)))
        self._systems = {text for text, rows in systems.items() if rows >= SHARED_BY}
        openings = Counter(_opening(row.text) for row in self._rows if row.text is not None)
        least = SHARED_BY if private else 1
        self._openings = {text for text, rows in openings.items() if rows >= least}

    def round(
        self, number: int, screen: Screen, reporter: Reporter, stop: Callable[[], bool]
    ) -> list[Example]:
        """The rows of one round that pass."""
        drafts = self._drafts(random.Random(derive(self._seed, "demonstrations", number)))
        questions = self._questions(drafts, number, stop)
        screen.lost(len(drafts) - len(questions), "not ended")
        passed = [row for row in questions if screen.question(row) and self._fits(row)]
        texts = [row for row in passed if row.text is not None]
        prompts = [row for row in passed if row.text is None]
        rows = answered(
            self._compiled,
            prompts,
            max_new_tokens=self._max_new_tokens,
            seed=derive(self._seed, "round", number),
            reporter=reporter,
            stop=stop,
        )
        screen.lost(len(prompts) - len(rows), "not answered")
        return [row for row in (*texts, *rows) if screen.answer(row) and self._fits(row)]

    def _drafts(self, chance: random.Random) -> list[_Draft]:
        return [self._draft(chance) for _ in range(ROUND)] if self._rows else []

    def _draft(self, chance: random.Random) -> _Draft:
        lead = chance.choice(self._rows)
        if lead.text is not None:
            opening = _opening(lead.text)
            opening = opening if opening in self._openings else ""
            return _Draft(self._ids(opening), opening=opening)
        others = [
            row
            for row in self._rows
            if row.text is None and bool(row.tools) == bool(lead.tools) and row is not lead
        ]
        shown = chance.sample(others, min(DEMONSTRATIONS, len(others)))
        system = _system(lead)
        return _Draft(
            self._ids(_listed([*shown, lead])),
            system=system if system in self._systems else None,
            tools=lead.tools,
        )

    def _ids(self, text: str) -> tuple[int, ...]:
        """Plain text as it is trained on; for none, what a text or a conversation starts with."""
        fmt, chunk = self._compiled.format, Chunk(text, literal=True)
        bos = () if fmt.bos_id is None else (fmt.bos_id,)
        ids = (*bos, *fmt.encode_chunks([chunk])[chunk])
        return ids or tuple(fmt.prompt_ids([Message(role="user", content="")])[:1])

    def _questions(
        self, drafts: Sequence[_Draft], number: int, stop: Callable[[], bool]
    ) -> list[Example]:
        """What the stack asks; a question that does not end is left out, a text is not."""
        found: list[Example] = []
        sampling = Sampling(TEMPERATURE, TOP_P, seed=derive(self._seed, "questions", number))
        for plain in (False, True):
            some = [draft for draft in drafts if (draft.opening is not None) is plain]
            if not some:
                continue
            texts = _texts(
                self._compiled,
                [draft.ids for draft in some],
                max_new_tokens=self._max_new_tokens if plain else self._max_question_tokens,
                stop_ids=self._compiled.format.stop_ids,
                stop_strings=() if plain else (_END,),
                sampling=sampling,
                progress=lambda done: _heed(stop),
                whole=not plain,
            )
            found += [draft.row(text) for draft, text in zip(some, texts, strict=True) if text]
        return found

    def _fits(self, row: Example) -> bool:
        """Whether a row can be tokenised as training rows are."""
        try:
            if row.answer is None and row.text is None:
                return bool(self._compiled.format.prompt_ids(row.messages, row.tools))
            return bool(encode(row, self._compiled.format, max_length=_LONGEST_ROW))
        except DataError:  # it writes a marker of the template itself
            return False


def _texts(
    compiled: Compiled,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    stop_strings: Sequence[str],
    sampling: Sampling,
    progress: Callable[[int], None],
    whole: bool = True,
) -> list[str | None]:
    """What the stack says to each prompt; with `whole`, None for what has not come to its end."""
    fmt = compiled.format

    def ended(ids: Sequence[int]) -> bool:
        tail = fmt.decode(ids[-_TAIL:]) if stop_strings else ""
        return any(stop in tail for stop in stop_strings)

    found: list[str | None] = []
    for ids in generate(
        compiled.model,
        prompts,
        max_new_tokens=max_new_tokens,
        stop_ids=stop_ids,
        sampling=sampling,
        pad_id=compiled.pad_id,
        progress=progress,
        ended=ended,
    ):
        text = fmt.decode(ids)
        cut = min((at for s in stop_strings if (at := text.find(s)) >= 0), default=None)
        over = cut is not None or len(ids) < max_new_tokens
        found.append(text[:cut] if over or not whole else None)
    return found


def _with_answer(prompt: Example, text: str) -> Example | None:
    """The prompt and an answer, read as a row of data is; None where it cannot be."""
    messages = (*prompt.prompt, Message(role="assistant", content=text.strip()))
    row = Example(messages=messages, tools=prompt.tools)
    try:
        return CHAT.parse(row.to_json())
    except DataError:
        return None


def _likeliest(compiled: Compiled, rows: Sequence[Example], unlikely: float) -> tuple[Example, ...]:
    """The rows, in order, without the share whose answers the stack finds least likely.

    By the mean over an answer's tokens, so that long answers stand no worse than short ones.
    """
    if not rows:
        return ()
    scores = StackExaminee(compiled).log_likelihood(rows, lambda done, total: None)
    nats = [score.per_token for score in scores]
    worst = set(sorted(range(len(rows)), key=lambda i: -nats[i])[: int(unlikely * len(rows))])
    return tuple(row for i, row in enumerate(rows) if i not in worst)


def _listed(rows: Sequence[Example]) -> str:
    """The questions of rows, each under its functions, up to where the last one's would start."""
    parts = []
    for row in rows:
        shown = []
        for schema in list(map(function_schema, row.tools))[:_MOST_FUNCTIONS]:
            given = ", ".join((schema.get("parameters") or {}).get("properties") or {})
            about = str(schema.get("description") or "")[:_MOST_DESCRIPTION]
            shown.append(f"{schema.get('name')}({given}): {about}".rstrip(": "))
        lead = f"{FUNCTIONS} {'; '.join(shown)}\n" if shown else ""
        parts.append(f"{lead}{QUESTION} {_BLANK.sub(chr(10), _question(row))}")
    last = parts.pop().rpartition(QUESTION)[0]
    return _END.join([*parts, last + QUESTION])


def _question(row: Example) -> str:
    """A row's first question, or the opening of its text; '' where it has none."""
    if row.text is not None:
        return _opening(row.text)
    return next((m.content for m in row.opening if m.role == "user"), "").strip()


def _system(row: Example) -> str | None:
    return next((m.content for m in row.messages if m.role == "system"), None)


def _opening(text: str) -> str:
    """The first words of a text, '' where they tell whose they are."""
    match = _OPENING.match(text.lstrip())
    found = match[0] if match else ""
    while len(found) > _LONGEST_OPENING and " " in found:
        found = found.rpartition(" ")[0]
    return "" if telling(found) else found[:_LONGEST_OPENING]


def _heed(stop: Callable[[], bool]) -> None:
    if stop():
        raise TrainInterrupted(
            "stopped while rows were being written; nothing is lost",
            hint="give the same command again, or: lamina train --resume last",
        )
