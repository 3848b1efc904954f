"""Names, references, digests and public keys, as texts from a stranger."""

import atheris

with atheris.instrument_imports(include=["lamina"]):
    from lamina.core import names
    from lamina.core.errors import LaminaError
    from lamina.core.plain import line_fault, shown, shown_in_line
    from lamina.share.keys import parse_public, public_line
    from lamina.share.policy import Policy, Rule, Subject, judge

from tests.fuzz.driver import fuzz
from tests.fuzz.seeds import NAMES, PUBLIC

PATTERNS = Policy(rules=tuple(Rule(name=each) for each in ("*a*b*c*", "?[!x]*-*.*", "sup*")))
ASCII = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def read(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for safe in (shown(text), shown_in_line(text)):
        assert "\x1b" not in safe
        assert "\u202e" not in safe
    assert line_fault(shown_in_line(text), 10 * len(text) + 10) is None
    judge(
        Subject("sha256:" + "0" * 64, names=(text,)),
        (),
        PATTERNS,
    )
    for parse in (names.parse_name, names.parse_reference, public):
        try:
            parse(text)
        except LaminaError:
            continue
    try:
        found = names.parse_name(text)
    except LaminaError:
        return
    assert set(found.name + found.tag) <= ASCII
    assert ".." not in found.name
    assert names.parse_name(found.full) == found == names.parse_name(str(found))


def public(text: str) -> None:
    raw, name = parse_public(text)
    assert parse_public(public_line(raw, name)) == (raw, name)


if __name__ == "__main__":
    fuzz(read, (*NAMES, PUBLIC), max_len=512)
