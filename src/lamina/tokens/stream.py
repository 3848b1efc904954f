"""Token by token back to text: whole characters only, cut before a stop string."""

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


class StreamDecoder:
    """Turns a stream of token ids into pieces of text as soon as they are certain.

    Text that could be the beginning of a stop string is held back until it is known not to be.
    """

    def __init__(self, tokenizer: Any, stop_strings: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stops = tuple(stop_strings)
        self._held = ""

    def push(self, token: int) -> tuple[str, bool]:
        """(text that is certain now, whether a stop string has been met)."""
        self._held += self._stream.step(self._tokenizer, token) or ""
        for stop in self._stops:
            at = self._held.find(stop)
            if at >= 0:
                text, self._held = self._held[:at], ""
                return text, True
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text, False

    def flush(self) -> str:
        """What was held back, at the end of the stream."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next(
        (n for n in range(min(len(text), len(stop)), 0, -1) if stop.startswith(text[-n:])), 0
    )
