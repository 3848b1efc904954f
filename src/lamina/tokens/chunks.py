"""Text to ids, chunk by chunk, so that what a person wrote never becomes a control token.

A chunk is tokenised on its own: no merge crosses its ends. Cutting a conversation at the same
places in training and in generation is what makes both see the same ids.
"""

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tokenizers import Tokenizer

_GUARDS = ("\n", ".", "a")


class Chunk(NamedTuple):
    """A piece of text to tokenise on its own."""

    text: str
    literal: bool = False
    """Read control tokens in `text` as ordinary text."""
    first: bool = True
    """Nothing stands before it (some tokenizers put a space before the first word)."""


class ChunkEncoder:
    """Tokenises chunks with private copies of a fast tokenizer; safe to use from several threads.

    `control`: the added tokens that only a template may write. Other added tokens (`<think>`,
    `<tool_call>` where they are not special) are matched in every text.
    """

    def __init__(self, tokenizer: Any, control: Iterable[str]) -> None:
        self._json = tokenizer.backend_tokenizer.to_str()
        self._plain = _backend(self._json, frozenset())
        self._control = frozenset(control)
        self._puts_space = _puts_space(self._plain)

    @functools.cached_property
    def _literal(self) -> Tokenizer:
        return _backend(self._json, self._control)

    def encode(self, chunks: Sequence[Chunk]) -> dict[Chunk, list[int]]:
        """Ids of every distinct chunk, in one batch for each way of reading."""
        distinct = dict.fromkeys(chunks)
        ids: dict[Chunk, list[int]] = {}
        for literal in (False, True):
            group = [chunk for chunk in distinct if chunk.literal is literal]
            if group:
                ids.update(self._encode_group(self._literal if literal else self._plain, group))
        return ids

    def _encode_group(self, backend: Tokenizer, group: list[Chunk]) -> dict[Chunk, list[int]]:
        guarded = [chunk for chunk in group if self._puts_space and not chunk.first]
        whole = [chunk for chunk in group if not self._puts_space or chunk.first]
        encodings = backend.encode_batch([c.text for c in whole], add_special_tokens=False)
        found = {chunk: list(e.ids) for chunk, e in zip(whole, encodings, strict=True)}
        return found | {chunk: _encode_after_text(backend, chunk.text) for chunk in guarded}


def _encode_after_text(backend: Tokenizer, text: str) -> list[int]:
    """Ids of `text` as they are after other text: encode it behind a guard, drop its ids."""
    for guard in _GUARDS:
        encoding = backend.encode(guard + text, add_special_tokens=False)
        inside = [i for i, (start, end) in enumerate(encoding.offsets) if end <= len(guard)]
        kept = len(inside)
        if inside == list(range(kept)) and all(
            start >= len(guard) for start, _ in encoding.offsets[kept:]
        ):
            return list(encoding.ids[kept:])
    return list(backend.encode(text, add_special_tokens=False).ids)


def _puts_space(backend: Tokenizer) -> bool:
    """Whether the first word of a text is tokenised as if a space stood before it."""
    alone = backend.encode("a", add_special_tokens=False).ids
    after = backend.encode("\na", add_special_tokens=False).ids
    return bool(after[-len(alone) :] != alone)


def _backend(serialised: str, literal: frozenset[str]) -> Tokenizer:
    """A copy without truncation and padding; it never matches the added tokens in `literal`."""
    parts = json.loads(serialised) if literal else None
    if parts is not None:
        for token in parts["added_tokens"]:
            token["special"] = token["special"] or token["content"] in literal
        serialised = json.dumps(parts)
    backend = Tokenizer.from_str(serialised)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = parts is not None
    return backend


@dataclass(frozen=True)
class Escapes:
    """Stand-ins for control tokens inside contents, so that a rendered template can be told apart.

    A template is rendered with the stand-ins; in its output every control token is the template's
    own, and every stand-in is turned back into text that is tokenised literally.
    """

    stem: str
    """Prefix of every stand-in; occurs in no content."""
    control: tuple[str, ...]
    """Control tokens, longest first."""
    names: re.Pattern[str]
    """Matches any control token."""
    pattern: re.Pattern[str]
    """Matches any control token, with the white space that it swallows."""
    used: bool
    """False when no content holds a control token: then nothing has to be told apart."""

    def hide(self, value: Any) -> Any:
        """`value` (nested dicts, lists, strings) with stand-ins for control tokens."""
        return _map_strings(value, self._hide_text) if self.used else value

    def chunks(self, text: str, *, first: bool) -> tuple[Chunk, ...]:
        """Chunks of rendered text, stand-ins turned back."""
        if not text:
            return ()
        if not self.used or self.stem not in text:
            return (Chunk(text, False, first),)
        found: list[Chunk] = []
        position = 0
        for match in self.pattern.finditer(text):
            found += self._ordinary(text[position : match.start()], first and not found)
            found.append(Chunk(match[0], False, first and not found))
            position = match.end()
        return (*found, *self._ordinary(text[position:], first and not found))

    def reveal(self, text: str) -> str:
        """`text` with every stand-in turned back."""
        return re.sub(f"{self.stem}(\\d+)E", lambda m: self.control[int(m[1])], text)

    def _ordinary(self, text: str, first: bool) -> list[Chunk]:
        return [Chunk(self.reveal(text), self.stem in text, first)] if text else []

    def _hide_text(self, text: str) -> str:
        return self.names.sub(lambda m: f"{self.stem}{self.control.index(m[0])}E", text)


class EscapeMaker:
    """Makes the `Escapes` of one conversation. `control` maps token text to its AddedToken."""

    def __init__(self, control: Mapping[str, Any]) -> None:
        self._control = tuple(sorted(control, key=lambda text: (-len(text), text)))
        self._names = re.compile("|".join(map(re.escape, self._control)) or r"(?!)")
        self._pattern = re.compile(
            "|".join(
                (r"\s*" if control[text].lstrip else "")
                + re.escape(text)
                + (r"\s*" if control[text].rstrip else "")
                for text in self._control
            )
            or r"(?!)"
        )

    def __call__(self, contents: Iterable[str]) -> Escapes:
        """Escapes for these contents: their stem occurs in none of them."""
        joined = "\n".join(contents)
        number = 0
        while (stem := f"LITERAL{number}x") in joined:
            number += 1
        used = self._names.search(joined) is not None
        return Escapes(stem, self._control, self._names, self._pattern, used)


def strings_in(value: Any) -> list[str]:
    """Every string inside nested dicts and lists, keys too."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.items() for part in item for text in strings_in(part)]
    if isinstance(value, list):
        return [text for item in value for text in strings_in(item)]
    return []


def _map_strings(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_strings(item, change) for item in value]
    return value
