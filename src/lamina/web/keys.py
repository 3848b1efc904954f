"""API keys: who may ask, what, and how much. One file, which holds hashes only.

A key is 256 random bits, so that nothing slower than sha256 is needed to keep it unguessable.
"""

import contextlib
import hmac
import os
import re
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lamina.core.digest import Digest, digest_bytes
from lamina.core.errors import StoreError, UnknownNameError, UsageError
from lamina.core.files import atomic_writer, locked
from lamina.core.names import parse_reference
from lamina.core.values import Value

FILE = "access.json"
"""Beside the store's own files."""
PREFIX = "lamina-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Role = Literal["use", "admin"]
Limit = Annotated[int, Field(ge=1)]


class Key(Value):
    """One key, without the key."""

    name: str
    sha256: Digest
    role: Role = "use"
    """`use` asks stacks; `admin` sees metrics and changes things too."""
    stacks: tuple[str, ...] = ()
    """References that alone may be asked; empty: all that is served."""
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    """Tokens of prompts and answers together."""
    created: str = ""
    """UTC, ISO 8601."""


class _File(Value):
    keys: tuple[Key, ...] = ()


class Keys:
    """The keys in a file, as they are now: a change is seen at the next look. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None
        self._keys: tuple[Key, ...] = ()
        self._lock = threading.Lock()

    def all(self) -> tuple[Key, ...]:
        """Every key. Raises StoreError for a file that is damaged, rather than let anybody in."""
        with self._lock:
            try:
                found = os.stat(self.path)
            except FileNotFoundError:
                self._seen, self._keys = None, ()
                return ()
            state = (found.st_mtime_ns, found.st_size, found.st_ino)
            if state != self._seen:
                self._keys = self._read()
                self._seen = state
            return self._keys

    def find(self, secret: str) -> Key | None:
        """The key that this is, if any; every one is compared, in constant time."""
        digest, match = digest_bytes(secret.encode("utf-8", "replace")), None
        for key in self.all():
            if hmac.compare_digest(key.sha256, digest):
                match = key
        return match

    def add(self, key: "NewKey") -> str:
        """Make a key and return it: this is the only time that it can be seen.

        Raises UsageError for a bad or taken name, and for what can be no stack's name or digest.
        """
        for text in key.stacks:
            parse_reference(text)
        if not _NAME.fullmatch(key.name):
            raise UsageError(
                f"{key.name!r} is no name for a key", hint="letters, digits, . _ - ; at most 64"
            )
        secret = PREFIX + secrets.token_urlsafe(32)
        with self._editing():
            keys = self.all()
            if any(other.name == key.name for other in keys):
                raise UsageError(
                    f"there is a key {key.name!r} already",
                    hint=f"choose another name, or: lamina access rm {key.name}",
                )
            made = Key(
                name=key.name,
                sha256=digest_bytes(secret.encode()),
                role=key.role,
                stacks=tuple(key.stacks),
                requests_per_minute=key.requests_per_minute,
                tokens_per_minute=key.tokens_per_minute,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            self._write((*keys, made))
        return secret

    def remove(self, name: str) -> None:
        """Forget a key: whoever holds it is refused from now on. Raises UnknownNameError."""
        with self._editing():
            keys = self.all()
            left = tuple(key for key in keys if key.name != name)
            if len(left) == len(keys):
                raise UnknownNameError(
                    f"there is no key {name!r}",
                    hint=f"keys: {', '.join(key.name for key in keys) or 'none'}",
                )
            self._write(left)

    def _read(self) -> tuple[Key, ...]:
        try:
            return _File.parse(self.path.read_bytes(), str(self.path)).keys
        except UsageError as error:
            raise StoreError(
                error.message,
                faults=error.faults,
                hint="put the file back as it was, or delete it and make new keys: lamina access",
            ) from None

    def _editing(self) -> contextlib.AbstractContextManager[None]:
        return locked(Path(f"{self.path}.lock"))

    def _write(self, keys: tuple[Key, ...]) -> None:
        with atomic_writer(self.path) as handle:
            os.chmod(handle.fileno(), 0o600)
            handle.write(_File(keys=keys).to_bytes())


@dataclass(frozen=True)
class NewKey:
    """What a key is made for; fields as in `Key`."""

    name: str
    role: Role = "use"
    stacks: Sequence[str] = ()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
