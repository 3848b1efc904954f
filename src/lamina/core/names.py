"""Names and references, parsed once.

Grammar::

    reference = stack-name | base-name | digest
    stack-name = name [ ":" tag ]          support    support:v3
    name      = word { ("." | "_" | "-") word }        at most 100 characters
    word      = 1*( "a".."z" | "0".."9" )
    tag       = 1*128( letter | digit | "_" | "." | "-" ), first not "." or "-"
    digest    = [ "sha256:" ] 6*64( "0".."9" | "a".."f" ), written after "@" if it could be a name

A name without a tag means the newest version (`latest`). Every move of a name also keeps a fixed
version: `support:v1`, `support:v2`, …
"""

import re
from dataclasses import dataclass

from lamina.core.errors import UsageError

LATEST = "latest"
_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"(?:@|sha256:|@sha256:)([0-9a-f]{6,64})")
_VERSION = re.compile(r"v([1-9][0-9]*)")
MAX_NAME = 100


@dataclass(frozen=True, order=True)
class Name:
    """A stack's or base's name with a tag, as in the grammar above."""

    name: str
    tag: str = LATEST

    def __post_init__(self) -> None:
        if len(self.name) > MAX_NAME or not _NAME.fullmatch(self.name):
            raise UsageError(
                f"{_brief(self.name)} is not a name",
                hint="use lower-case letters, digits and single . _ - between them, "
                f"at most {MAX_NAME} characters: support, legal-de.small",
            )
        if not _TAG.fullmatch(self.tag):
            raise UsageError(f"{_brief(self.tag)} is not a tag", hint="for example: support:v3")

    def __str__(self) -> str:
        return self.name if self.tag == LATEST else f"{self.name}:{self.tag}"

    @property
    def full(self) -> str:
        """`name:tag`, also for the newest version."""
        return f"{self.name}:{self.tag}"

    @property
    def version(self) -> int | None:
        """3 for `support:v3`; None for other tags."""
        match = _VERSION.fullmatch(self.tag)
        return int(match[1]) if match else None

    def at_version(self, version: int) -> "Name":
        """The same name with the fixed tag `v<version>`."""
        return Name(self.name, f"v{version}")


@dataclass(frozen=True)
class DigestPrefix:
    """A digest, or its first hex digits (at least six)."""

    hex: str

    def __str__(self) -> str:
        return f"sha256:{self.hex}"


Reference = Name | DigestPrefix


def parse_name(text: str) -> Name:
    """Parse `name[:tag]`. Raises UsageError."""
    name, colon, tag = text.partition(":")
    return Name(name, tag) if colon else Name(name)


def parse_reference(text: str) -> Reference:
    """Parse what a user types for a stack, layer or base. Raises UsageError."""
    match = _DIGEST.fullmatch(text)
    if match:
        return DigestPrefix(match[1])
    if text.startswith(("@", "sha256:")):
        raise UsageError(
            f"{_brief(text)} is not a digest", hint="give at least 6 of its hex digits"
        )
    return parse_name(text)


def _brief(text: str) -> str:
    """A text of any length, quoted, with what is not plain ASCII written out: letters of other
    alphabets look like those that names are made of."""
    return ascii(text if len(text) <= 2 * MAX_NAME else text[: 2 * MAX_NAME] + "…")
