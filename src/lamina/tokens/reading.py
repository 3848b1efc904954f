"""An answer as it comes: which text is content for people, and which is the calls of tools."""

from dataclasses import dataclass

from lamina.data.example import ToolCall
from lamina.tokens.tools import CALL_OPEN, NATIVE_MARKS, parse_tool_calls, visible_text

_BARE = ("{", "[", *NATIVE_MARKS)
_THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Rest:
    """What an answer's end brings."""

    content: str
    """Text that was held back and is no call."""
    calls: tuple[ToolCall, ...]
    faults: tuple[str, ...]
    """One for each call that cannot be read; its text is in the content then."""


class AnswerReader:
    """Takes an answer piece by piece and gives its content as soon as it can be no call.

    What exams parse is what is told: at the end the whole text goes through `parse_tool_calls`.
    """

    def __init__(self) -> None:
        self._text = ""
        self._told = 0

    def push(self, piece: str) -> str:
        """More of the answer -> content that is certain now."""
        self._text += piece
        end = max(self._told, _certain(self._text))
        content, self._told = self._text[self._told : end], end
        return content

    def end(self) -> Rest:
        """The answer is whole."""
        calls, faults = parse_tool_calls(self._text)
        held = self._text[self._told :]
        return Rest("" if calls and not faults else held, calls, faults)


def _certain(text: str) -> int:
    """Up to where `text` is content, whatever follows."""
    begin = len(text) - len(text.lstrip())
    if text.startswith(_THINK_OPEN, begin):
        close = text.find(_THINK_CLOSE)
        if close < 0:
            return len(text) - _partial(text, _THINK_CLOSE)
        begin = len(text) - len(visible_text(text))
    elif _THINK_OPEN.startswith(text[begin:]):
        return 0
    start = text[begin:].lstrip()
    if any(start.startswith(mark) or mark.startswith(start) for mark in _BARE):
        return begin
    call = text.find(CALL_OPEN, begin)
    end = call if call >= 0 else len(text) - _partial(text, CALL_OPEN)
    return begin + len(text[begin:end].rstrip())


def _partial(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`."""
    return next((n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n])), 0)
