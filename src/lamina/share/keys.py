"""Keys that sign what is shared, and the public keys of people who are trusted.

Everything lies in one folder outside of the store:

```
<keys>/keys.json            public keys: whose they are, and which are revoked
<keys>/<16 hex>.key         a private key of one's own (0600), sealed with a passphrase or not
```

A public key travels as one line in OpenSSH's format, `ssh-ed25519 BASE64 NAME`; its id is the
sha256 of its 32 bytes. The name beside a key is what its owner calls themselves: whoever trusts the
key decides under which name. Keys are ed25519 (RFC 8032).
"""

import base64
import binascii
import contextlib
import os
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from lamina.core.digest import digest_bytes, short
from lamina.core.errors import (
    MissingPartError,
    StoreError,
    UnknownNameError,
    UsageError,
)
from lamina.core.files import atomic_writer, clear_os_errors, locked
from lamina.core.values import Line, Value

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FILE = "keys.json"
SUFFIX = ".key"
ALGORITHM = "ssh-ed25519"
PUBLIC_BYTES = SEED_BYTES = 32
MAX_FILE_BYTES = 1 << 20
"""Largest file of keys that is read."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SCRYPT_LOG_N, _SCRYPT_R, _SCRYPT_P = 15, 8, 1
"""32 MiB and about 0.1 s for a try (RFC 7914)."""
_SEALED_WITH = b"lamina private key, version 1"

Reason = Literal["compromised", "retired"]
"""compromised: somebody else may hold it. retired: given up by its owner, who alone held it."""
AskPassphrase = Callable[[str], str]
"""Called with the key's name where it is sealed; gives the passphrase."""


class Revocation(Value):
    """A key that must not sign any more."""

    at: str
    """UTC, ISO 8601."""
    reason: Reason
    note: Line = ""


class KnownKey(Value):
    """A public key that somebody decided to trust, and whose it is."""

    public: str
    """Base64 of its 32 bytes."""
    name: str
    """Whose it is."""
    added: str
    """UTC, ISO 8601."""
    revoked: Revocation | None = None

    @property
    def id(self) -> str:
        """sha256 of the public key's bytes."""
        return digest_bytes(raw_public(self.public))

    @property
    def line(self) -> str:
        """As it travels: one line, without its end."""
        return public_line(self.public, self.name)


class _File(Value):
    keys: tuple[KnownKey, ...] = ()


class _Private(Value):
    """A private key as it lies on disk."""

    format: Literal["lamina-key-1"] = "lamina-key-1"
    public: str
    seed: str | None = None
    """Base64 of the 32 bytes of RFC 8032's private key; None where it is sealed."""
    box: str | None = None
    """Base64 of the seed under ChaCha20-Poly1305, keyed by scrypt of the passphrase."""
    salt: str = ""
    nonce: str = ""
    log_n: Annotated[int, Field(ge=10, le=20)] = _SCRYPT_LOG_N


@dataclass(frozen=True)
class Signer:
    """A private key, ready to sign."""

    id: str
    public: str
    name: str
    _key: "Ed25519PrivateKey"

    def sign(self, message: bytes) -> bytes:
        """64 bytes (RFC 8032; deterministic)."""
        return self._key.sign(message)


class KeyRing:
    """The keys in a folder, as they are now. Making one touches nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def path(self) -> Path:
        """The file of public keys."""
        return self.folder / FILE

    def all(self) -> tuple[KnownKey, ...]:
        """Every known key. Raises StoreError for a damaged file, rather than trust anybody."""
        data = _read_bounded(self.path)
        if data is None:
            return ()
        try:
            keys = _File.parse(data, str(self.path)).keys
            for key in keys:
                raw_public(key.public)
        except UsageError as error:
            raise StoreError(
                error.message, faults=error.faults, hint="put the file back as it was"
            ) from None
        return keys

    def owned(self) -> frozenset[str]:
        """Ids of the keys whose private half lies here."""
        return frozenset(key.id for key in self.all() if self._private_path(key.id).is_file())

    def find(self, text: str) -> KnownKey:
        """The key of this id (or its first digits), or of this name if there is one only.

        Raises UnknownNameError, UsageError when it could be several.
        """
        keys = self.all()
        digits = text.removeprefix("@").removeprefix("sha256:")
        found = [key for key in keys if key.name == text]
        if not found and re.fullmatch(r"[0-9a-f]{6,64}", digits):
            found = [key for key in keys if key.id.startswith(f"sha256:{digits}")]
        if not found:
            known = ", ".join(f"{key.name} ({short(key.id)})" for key in keys)
            raise UnknownNameError(f"there is no key {text!r}", hint=f"keys: {known or 'none'}")
        if len(found) > 1:
            raise UsageError(
                f"{text!r} could be several keys",
                faults=[f"{key.id} {key.name}" for key in found],
                hint="give the id",
            )
        return found[0]

    def new(self, name: str, passphrase: str | None = None) -> KnownKey:
        """Make a key pair of one's own; it is trusted at once. Raises UsageError, MissingPartError.

        The private half is readable by its owner only, and sealed where there is a passphrase.
        """
        _check_name(name)
        ed25519 = _ed25519()
        private = ed25519.Ed25519PrivateKey.generate()
        seed = private.private_bytes_raw()
        public = _text(private.public_key().public_bytes_raw())
        made = KnownKey(public=public, name=name, added=now())
        kept = _seal(public, seed, passphrase) if passphrase else None
        with self._editing():
            _write_private(
                self._private_path(made.id), kept or _Private(public=public, seed=_text(seed))
            )
            self._write((*self.all(), made))
        return made

    def trust(self, line: str, name: str | None = None) -> KnownKey:
        """Take in somebody's public key; `name` instead of the one in the line.

        Raises UsageError when it is no ed25519 key, has no name, or is known under another name
        or as revoked.
        """
        public, given = parse_public(line)
        wanted = name if name is not None else given
        if not wanted:
            raise UsageError("the key has no name", hint="say whose it is: --name anna")
        _check_name(wanted)
        made = KnownKey(public=public, name=wanted, added=now())
        with self._editing():
            keys = self.all()
            known = next((key for key in keys if key.id == made.id), None)
            if known is not None and known.revoked is not None:
                raise UsageError(
                    f"key {short(known.id)} of {known.name} is revoked ({known.revoked.reason})",
                    hint="ask its owner for a new one",
                )
            if known is not None and known.name != wanted:
                raise UsageError(f"key {short(known.id)} is known already, as {known.name}'s")
            if known is None:
                self._write((*keys, made))
        return known or made

    def revoke(self, text: str, reason: Reason, note: str = "") -> KnownKey:
        """From now on the key's signatures do not count (see `signature.standing` for older ones).

        A key revoked as retired can be revoked again as compromised, not the other way.
        Raises UnknownNameError, UsageError.
        """
        with self._editing():
            key = self.find(text)
            if key.revoked is not None and (key.revoked.reason, reason) != (
                "retired",
                "compromised",
            ):
                raise UsageError(f"key {short(key.id)} is revoked already ({key.revoked.reason})")
            revoked = KnownKey.parse(
                key.model_dump() | {"revoked": {"at": now(), "reason": reason, "note": note}},
                "the revocation",
            )
            self._write(tuple(revoked if k.id == key.id else k for k in self.all()))
        return revoked

    def signer(self, text: str | None, ask: AskPassphrase) -> Signer:
        """A private key to sign with; None: the only one that is one's own and not revoked.

        Raises UnknownNameError, UsageError (which of several; revoked; a wrong passphrase).
        """
        key = self.find(text) if text is not None else self._only_one()
        if key.revoked is not None:
            raise UsageError(
                f"key {short(key.id)} is revoked ({key.revoked.reason})",
                hint="make another: lamina key new",
            )
        path = self._private_path(key.id)
        data = _read_bounded(path)
        if data is None:
            raise UsageError(
                f"the private half of key {short(key.id)} ({key.name}) is not here",
                hint="sign where it was made, or make one here: lamina key new",
            )
        _check_mode(path)
        private = _Private.parse(data, str(path))
        seed = _unseal(private, ask(key.name)) if private.box else _bytes(private.seed or "")
        if len(seed) != SEED_BYTES:
            raise UsageError(f"{path} holds no private key")
        made = _ed25519().Ed25519PrivateKey.from_private_bytes(seed)
        if _text(made.public_key().public_bytes_raw()) != key.public:
            raise UsageError(f"{path} belongs to another public key than {key.name}'s")
        return Signer(key.id, key.public, key.name, made)

    def _only_one(self) -> KnownKey:
        owned = self.owned()
        usable = [k for k in self.all() if k.id in owned and k.revoked is None]
        if not usable:
            raise UnknownNameError("there is no key to sign with", hint="make one: lamina key new")
        if len(usable) > 1:
            raise UsageError(
                "there are several keys to sign with",
                faults=[f"{key.id} {key.name}" for key in usable],
                hint="pick one: --key ID",
            )
        return usable[0]

    def _private_path(self, key_id: str) -> Path:
        return self.folder / f"{key_id.removeprefix('sha256:')[:16]}{SUFFIX}"

    @contextlib.contextmanager
    def _editing(self) -> Iterator[None]:
        with clear_os_errors(f"writing {self.path}"):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(Path(f"{self.path}.lock")):
            yield

    def _write(self, keys: tuple[KnownKey, ...]) -> None:
        with atomic_writer(self.path) as handle:
            handle.write(_File(keys=keys).to_bytes())


def now() -> str:
    """UTC to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def public_line(public: str, name: str) -> str:
    """`ssh-ed25519 BASE64 NAME` of a public key's base64 (RFC 4253, section 6.6; RFC 8709)."""
    blob = _ssh_string(ALGORITHM.encode()) + _ssh_string(raw_public(public))
    return f"{ALGORITHM} {_text(blob)} {name}"


def parse_public(text: str) -> tuple[str, str]:
    """(base64 of the 32 bytes, name or '') from the line that `public_line` makes.

    Raises UsageError for anything else; further lines are refused too.
    """
    lines = [line for line in text.splitlines() if line.strip()] if len(text) < 4096 else []
    parts = lines[0].split(None, 2) if len(lines) == 1 else []
    hint = "give the one line that `lamina key export` prints: ssh-ed25519 AAAA… name"
    if len(parts) < 2 or parts[0] != ALGORITHM:
        raise UsageError("that is no ed25519 public key on one line", hint=hint)
    blob = _bytes(parts[1])
    head = _ssh_string(ALGORITHM.encode()) + struct.pack(">I", PUBLIC_BYTES)
    if not blob.startswith(head) or len(blob) != len(head) + PUBLIC_BYTES:
        raise UsageError("that is no ed25519 public key on one line", hint=hint)
    return _text(blob[len(head) :]), parts[2].strip() if len(parts) > 2 else ""


def raw_public(public: str) -> bytes:
    """A public key's 32 bytes from their base64. Raises UsageError."""
    raw = _bytes(public)
    if len(raw) != PUBLIC_BYTES or _text(raw) != public:
        raise UsageError("a public key is the base64 of 32 bytes")
    return raw


def verifies(public: str, signature: bytes, message: bytes) -> bool:
    """Whether the holder of this public key signed these bytes. Raises MissingPartError."""
    ed25519 = _ed25519()
    from cryptography.exceptions import InvalidSignature

    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(raw_public(public))
        key.verify(signature, message)
    except (InvalidSignature, ValueError):  # no point of the curve
        return False
    return True


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingPartError(
            "signatures need the `cryptography` library", hint="pip install 'lamina[share]'"
        ) from error
    return ed25519


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name beside a key",
            hint="letters, digits, . _ - @; at most 64, and no . _ - @ first",
        )


def _seal(public: str, seed: bytes, passphrase: str) -> _Private:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    salt, nonce = os.urandom(16), os.urandom(12)
    box = ChaCha20Poly1305(_stretch(passphrase, salt, _SCRYPT_LOG_N)).encrypt(
        nonce, seed, _SEALED_WITH
    )
    return _Private(public=public, box=_text(box), salt=_text(salt), nonce=_text(nonce))


def _unseal(private: _Private, passphrase: str) -> bytes:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    key = _stretch(passphrase, _bytes(private.salt), private.log_n)
    try:
        return ChaCha20Poly1305(key).decrypt(
            _bytes(private.nonce), _bytes(private.box or ""), _SEALED_WITH
        )
    except (InvalidTag, ValueError):
        raise UsageError("the passphrase is wrong, or the key's file is damaged") from None


def _stretch(passphrase: str, salt: bytes, log_n: int) -> bytes:
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    kdf = Scrypt(salt=salt, length=32, n=1 << log_n, r=_SCRYPT_R, p=_SCRYPT_P)
    return kdf.derive(passphrase.encode())


def _write_private(path: Path, private: _Private) -> None:
    with atomic_writer(path) as handle:
        os.chmod(path.parent, 0o700)
        os.chmod(handle.name, 0o600)  # before the first byte of it is there
        handle.write(private.to_bytes())


def _check_mode(path: Path) -> None:
    """Refuse a private key that others can read, as ssh does. Raises UsageError."""
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise UsageError(
            f"others can read the private key {path}",
            hint=f"chmod 600 {path}; if they may have, revoke it: lamina key revoke",
        )


def _read_bounded(path: Path) -> bytes | None:
    """A small file's bytes; None where there is none. Raises StoreError."""
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise StoreError(f"{path} has more than {MAX_FILE_BYTES} bytes")
    return data


def _ssh_string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    """Strict base64. Raises UsageError."""
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise UsageError("that is not base64") from None
