"""Passphrases: asked for on a terminal or read from a file, never an argument that others see."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from lamina.core.errors import UsageError

File = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file", metavar="FILE", help="Read the key's passphrase from a file's line 1."
    ),
]
_LIMIT = 4096


def from_file(path: Path) -> str:
    """The first line of a file. Raises UsageError when it is empty or cannot be read."""
    try:
        with path.open("rb") as handle:
            data = handle.read(_LIMIT)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    found = data.decode("utf-8", "surrogateescape").split("\n", 1)[0].rstrip("\r")
    if not found:
        raise UsageError(f"the first line of {path} is empty", hint="put the passphrase there")
    return found


def new_passphrase() -> str:
    """Ask twice. Raises UsageError off a terminal."""
    return str(typer.prompt("passphrase", hide_input=True, confirmation_prompt=True, err=True))


def asker(path: Path | None) -> Callable[[str], str]:
    """How to get at a sealed key's passphrase: from a file, else from whoever sits there."""

    def ask(name: str) -> str:
        if path is not None:
            return from_file(path)
        if not sys.stdin.isatty():
            raise UsageError(
                f"the key {name} is sealed, and there is nobody to ask for its passphrase",
                hint="give --passphrase-file FILE",
            )
        return str(typer.prompt(f"passphrase of {name}", hide_input=True, err=True))

    return ask
