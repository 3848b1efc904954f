"""ChatML for a base that came without a chat template, from tokens its vocabulary already has.

Nothing is added to the vocabulary and no embedding is touched: turn markers reuse special or
reserved tokens where there are any, so that one token ends a turn.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

START, END = "<|im_start|>", "<|im_end|>"
# Turn markers that bases are known to ship, in the order in which they are preferred.
_PAIRS = (
    (START, END),
    ("<start_of_turn>", "<end_of_turn>"),
    ("<|start_header_id|>", "<|eot_id|>"),
)
_RESERVED = re.compile(
    r"<unused\d+>|\[unused\d+\]|<\|reserved_special_token_\d+\|>|<\|?reserved_?\d+\|?>"
    r"|<SPECIAL_\d+>|<\|extra_\d+\|>|<\|dummy_\d+\|>"
)


@dataclass(frozen=True)
class Markers:
    """The strings that open and close a turn. `single` when one token ends a turn."""

    start: str
    end: str
    single: bool
    note: str


def choose_markers(special_tokens: Sequence[str], eos_token: str | None) -> Markers:
    """Pick turn markers from a vocabulary's special tokens, given in the order of their ids.

    Known pairs first, then the first two reserved tokens; without either, the opening marker is
    ordinary text and the end-of-text token closes a turn; without that too, both are text.
    """
    known = set(special_tokens)
    for start, end in _PAIRS:
        if start in known and end in known:
            return Markers(start, end, True, f"ChatML put in, with its turns as {start} … {end}")
    reserved = [token for token in special_tokens if _RESERVED.fullmatch(token)]
    if len(reserved) >= 2:
        start, end = reserved[:2]
        return Markers(
            start, end, True, f"ChatML put in, with its turns as the reserved {start} … {end}"
        )
    if eos_token is not None:
        return Markers(
            START,
            eos_token,
            True,
            f"ChatML put in, with {START} as ordinary text and {eos_token} at a turn's end, "
            "because the vocabulary has no reserved tokens",
        )
    return Markers(START, END, False, "ChatML put in, with both markers as ordinary text")


def chatml(markers: Markers, *, bos: bool) -> str:
    """The template's text; `bos` writes the begin-of-text token once, at the start.

    Rendered templates are tokenised without adding special tokens, so a base that expects the
    begin-of-text token must get it from here.
    """
    return (
        ("{{- bos_token }}" if bos else "")
        + "{%- for message in messages %}"
        + f"{{{{- {markers.start!r} + message['role'] + '\\n' }}}}"
        + f"{{{{- message['content'] + {markers.end!r} + '\\n' }}}}"
        + "{%- endfor %}"
        + "{%- if add_generation_prompt %}"
        + f"{{{{- {markers.start + 'assistant'!r} + '\\n' }}}}"
        + "{%- endif %}"
    )
