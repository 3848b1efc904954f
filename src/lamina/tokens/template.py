"""A base's chat format: from messages to ids, the same ids in training, in exams and in serving.

A rendered conversation is cut where each answer starts and ends, and every piece is tokenised on
its own (see `chunks`). So for every assistant turn k, `prompt_ids(messages[:k])` is exactly what
stands before that answer in a training sequence.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lamina.core.errors import BaseError, DataError
from lamina.data.example import Message
from lamina.tokens.chunks import Chunk, ChunkEncoder, EscapeMaker, Escapes, strings_in
from lamina.tokens.render import Abilities, Renderer, adapt

_USER = {"role": "user", "content": "probeuser"}
_ANSWER = "probeanswer"


@dataclass(frozen=True)
class Span:
    """Consecutive chunks of one sequence, all supervised or all context."""

    chunks: tuple[Chunk, ...]
    supervised: bool


@dataclass(frozen=True)
class Rendering:
    """An example as sequences of spans: one if the template is stable, else one for each answer."""

    sequences: tuple[tuple[Span, ...], ...]
    stable: bool


@dataclass(frozen=True)
class _Turn:
    """One assistant turn, rendered as the last message of its conversation."""

    prompt: str
    """The generation prompt that leads to it."""
    answer: str
    """Content, calls and end-of-turn marker."""
    regular: bool
    """The rendered conversation starts with the generation prompt."""


class ChatFormat:
    """A fast tokenizer with its chat template (or `template`, if given). Immutable, thread-safe.

    Contents never become control tokens: `<|im_end|>` in a user's message is tokenised as ordinary
    text. Where the end-of-turn marker itself is ordinary text in this vocabulary (`stop_strings`),
    that cannot be told apart, and messages that contain it are refused.

    Raises: BaseError for a tokenizer that is not fast; DataError when there is no chat template, or
    when it does not mark the end of an answer.
    """

    def __init__(self, tokenizer: Any, *, template: str | None = None) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise BaseError(
                f"{type(tokenizer).__name__} is not a fast tokenizer",
                hint="use a base whose folder has a tokenizer.json",
            )
        self.tokenizer = tokenizer
        self._render = Renderer(tokenizer, template)
        self.abilities: Abilities = self._render.probe()
        self._header, self._marker = self._probe_turn()
        control = self._control_tokens()
        self._escapes = EscapeMaker(control)
        self._encoder = ChunkEncoder(tokenizer, control)
        marker_ids = self._encode([Chunk(self._marker)])
        special = any(self._marker.startswith(text) for text in control)
        single = special or len(marker_ids) == 1
        eos = tokenizer.eos_token_id
        stops = [*(marker_ids[:1] if single else ()), *(() if eos is None else (eos,))]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(stops))
        """Ids that end an answer."""
        self.stop_strings: tuple[str, ...] = () if single else (self._marker,)
        """Texts that end an answer, where the marker is several ordinary tokens."""
        self._ends = tuple(control) if single else (*control, self._marker)
        self.bos_id: int | None = self._leading_bos()
        """The id that this tokenizer puts before plain text, if any."""
        self.pad_id: int = _pad_id(tokenizer, self.stop_ids)

    def prompt_ids(self, messages: Sequence[Message], tools: tuple[str, ...] = ()) -> list[int]:
        """Ids of the conversation, up to where the next answer starts. Raises DataError."""
        spans, _ = self._prompt(_Script(self, messages, tools), len(messages))
        return self._encode([chunk for span in spans for chunk in span.chunks])

    def text(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> str:
        """What the template makes of messages in its own form, up to the next answer.

        Control tokens in contents are not told apart here. Raises DataError.
        """
        return self._render(list(messages), tools, prompt=True)

    def rendering(self, messages: Sequence[Message], tools: tuple[str, ...] = ()) -> Rendering:
        """The sequences to train on; every assistant turn is supervised in exactly one of them.

        What follows the last assistant turn is left out, also the white space that the template
        puts after its end-of-turn marker. Raises DataError.
        """
        turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
        if not turns:
            return Rendering((), stable=True)
        script = _Script(self, messages, tools)
        spans, whole = self._prompt(script, turns[-1])
        if whole:
            return Rendering(((*spans, self._answer(script, turns[-1])),), stable=True)
        sequences = []
        for index in turns:
            before, _ = self._prompt(script, index)
            context = tuple(Span(span.chunks, supervised=False) for span in before)
            sequences.append((*context, self._answer(script, index)))
        return Rendering(tuple(sequences), stable=False)

    def text_rendering(self, text: str) -> Rendering:
        """Plain text, all of it supervised; its control tokens are read as ordinary text."""
        return Rendering(((Span((Chunk(text, literal=True),), supervised=True),),), stable=True)

    def encode_chunks(self, chunks: Sequence[Chunk]) -> dict[Chunk, list[int]]:
        """Ids of every distinct chunk, tokenised in one batch."""
        return self._encoder.encode(chunks)

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of `ids`; with `special`, control tokens are written out."""
        return str(
            self.tokenizer.decode(
                list(map(int, ids)),
                skip_special_tokens=not special,
                clean_up_tokenization_spaces=False,
            )
        )

    def _encode(self, chunks: Sequence[Chunk]) -> list[int]:
        ids = self._encoder.encode(chunks)
        return [token for chunk in chunks for token in ids[chunk]]

    def _prompt(self, script: "_Script", stop: int) -> tuple[list[Span], bool]:
        """Spans before the answer at message `stop`; True if every earlier answer is in them."""
        text = script.text(stop, prompt=True)
        spans: list[Span] = []
        position, whole = 0, True
        for index in (i for i in range(stop) if script.messages[i].role == "assistant"):
            turn = script.turn(index)
            end = len(turn.prompt) + len(turn.answer)
            fits = turn.regular and position <= len(turn.prompt)
            if not (fits and text.startswith(turn.prompt + turn.answer)):
                whole = False
                continue
            spans.append(Span(script.chunks(text, position, len(turn.prompt)), supervised=False))
            spans.append(self._answer(script, index))
            position = end
        spans.append(Span(script.chunks(text, position, len(text)), supervised=False))
        return spans, whole

    def _answer(self, script: "_Script", index: int) -> Span:
        """The supervised span of one assistant turn; a marker of ordinary text stands apart."""
        answer = script.turn(index).answer
        cut = len(answer)
        if self.stop_strings and answer.endswith(self._marker):
            cut -= len(self._marker)
        pieces = [(answer[:cut], False), (answer[cut:], False)]
        chunks = [script.escapes.chunks(text, first=first) for text, first in pieces]
        return Span((*chunks[0], *chunks[1]), supervised=True)

    def _read_turn(self, prompt: str, full: str, history: str) -> _Turn:
        """Tell the answer apart from what leads to it.

        `prompt`: rendered up to the answer, with the generation prompt; `history`: without it;
        `full`: with the answer. Raises DataError when the answer cannot be found.
        """
        if full.startswith(prompt):
            return _Turn(prompt, self._until_end(full[len(prompt) :]), regular=True)
        lead = history + self._header
        if full.startswith(lead):
            return _Turn(prompt, self._until_end(full[len(lead) :]), regular=False)
        raise DataError("the chat template renders an answer apart from its generation prompt")

    def _until_end(self, text: str) -> str:
        stripped = text.rstrip()
        return stripped if stripped.endswith(self._ends) else text

    def _probe_turn(self) -> tuple[str, str]:
        """The header before an answer and the marker after it. Raises DataError."""
        history = self._render([_USER], (), prompt=False)
        full = self._render([_USER, {"role": "assistant", "content": _ANSWER}], (), prompt=False)
        before, found, after = full.rpartition(_ANSWER)
        marker = after.strip()
        if not found or not marker:
            raise DataError(
                "the chat template does not mark the end of an answer, "
                "so a model trained with it could never learn to stop",
                hint="give a template that writes a token such as <|im_end|> after each answer",
            )
        return (before[len(history) :] if before.startswith(history) else ""), marker

    def _control_tokens(self) -> dict[str, Any]:
        """Added tokens that only the template may write: the special ones, and its own markers."""
        written = self._render([_USER], (), prompt=False) + self._marker
        return {
            token.content: token
            for token in self.tokenizer.added_tokens_decoder.values()
            if token.content.strip() and (token.special or token.content in written)
        }

    def _leading_bos(self) -> int | None:
        bos = self.tokenizer.bos_token_id
        ids = self.tokenizer("a", add_special_tokens=True)["input_ids"]
        return int(bos) if bos is not None and ids[:1] == [bos] else None


class _Script:
    """One conversation, rendered up to any of its messages; each rendering is made once."""

    def __init__(
        self, fmt: ChatFormat, messages: Sequence[Message], tools: tuple[str, ...]
    ) -> None:
        self.messages = tuple(messages)
        self._fmt = fmt
        self._tools = tools
        adapted = adapt(self.messages, tools, fmt.abilities)
        contents = [text for part in adapted for text in strings_in(part)]
        _refuse_markers(contents, fmt.stop_strings)
        self.escapes: Escapes = fmt._escapes(contents)
        self._texts: dict[tuple[int, bool], str] = {}
        self._turns: dict[int, _Turn] = {}

    def text(self, count: int, *, prompt: bool) -> str:
        """The first `count` messages rendered, stand-ins in place of control tokens."""
        key = (count, prompt)
        if key not in self._texts:
            adapted, native = adapt(self.messages[:count], self._tools, self._fmt.abilities)
            hidden = self.escapes.hide(adapted), self.escapes.hide(native)
            self._texts[key] = self._fmt._render(*hidden, prompt=prompt)
        return self._texts[key]

    def turn(self, index: int) -> _Turn:
        """The assistant turn at message `index`."""
        if index not in self._turns:
            prompt = self.text(index, prompt=True)
            full = self.text(index + 1, prompt=False)
            history = prompt if full.startswith(prompt) else self.text(index, prompt=False)
            self._turns[index] = self._fmt._read_turn(prompt, full, history)
        return self._turns[index]

    def chunks(self, text: str, start: int, end: int) -> tuple[Chunk, ...]:
        """Chunks of `text[start:end]`."""
        return self.escapes.chunks(text[start:end], first=start == 0)


def _refuse_markers(contents: Iterable[str], markers: Sequence[str]) -> None:
    for marker in markers:
        if any(marker in text for text in contents):
            raise DataError(
                f"a message contains {marker!r}, which ends a turn in this base's chat format",
                hint="take it out of the message",
            )


def _pad_id(tokenizer: Any, stop_ids: tuple[int, ...]) -> int:
    """The id for padding: the tokenizer's own, else the one that ends an answer, else 0."""
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    return stop_ids[-1] if stop_ids else 0
