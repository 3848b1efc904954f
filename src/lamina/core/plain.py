r"""Text from strangers: what may stand in a one-line field, and how any text is shown safely.

A terminal obeys control characters (CSI sequences can rewrite what was printed before, or set the
clipboard), and bidirectional overrides make text read differently from what it is (CVE-2021-42574).
"""

import re
import unicodedata

MAX_LINE = 500
"""Most characters of a field that is shown on one line."""
_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_BREAKS = "\u2028\u2029"
_TAGS = "\U000e0000-\U000e007f"
_HIDDEN = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_BIDI}{_BREAKS}{_TAGS}\ud800-\udfff\ufeff]")
_NO_LINE = re.compile(f"[\x00-\x1f\x7f-\x9f{_BIDI}{_BREAKS}{_TAGS}\ud800-\udfff\ufeff]")


def shown(text: str) -> str:
    r"""The text with everything that a terminal would obey written out: `\x1b[2J`.

    Line feeds and tabs stay; so do joiners, which many scripts and emoji need.
    """
    return _HIDDEN.sub(_written_out, text)


def shown_in_line(text: str) -> str:
    """The same, with line feeds and tabs written out too."""
    return _NO_LINE.sub(_written_out, text)


def escaped_json(text: str) -> str:
    r"""A JSON document that says the same, with such characters as `\uXXXX`."""
    return _HIDDEN.sub(
        lambda found: "".join(f"\\u{unit:04x}" for unit in _utf16(ord(found[0]))), text
    )


def _utf16(code: int) -> tuple[int, ...]:
    if code < 0x10000:
        return (code,)
    return 0xD800 + ((code - 0x10000) >> 10), 0xDC00 + ((code - 0x10000) & 0x3FF)


def line_fault(text: str, limit: int = MAX_LINE) -> str | None:
    """Why the text can be no one-line field; None where it can."""
    if len(text) > limit:
        return f"has {len(text)} characters, at most {limit} are read"
    found = _NO_LINE.search(text)
    if found:
        name = unicodedata.name(found[0], f"U+{ord(found[0]):04X}")
        return f"has a control character ({name} at {found.start()})"
    return None


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
