"""Blobs: bytes under their sha256, written whole or not at all and checked on every read.

A put streams into a `.tmp-` file in the blobs' folder, hashing as it goes, then fsyncs and renames.
Putting what is there already writes nothing; it only renews the blob's modification time, so that
`collect` counts it as young and leaves it to whoever is about to refer to it.
"""

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lamina.core.digest import CHUNK_BYTES, digest_bytes, digest_file
from lamina.core.errors import CorruptBlobError, MissingBlobError, StoreError, UsageError
from lamina.core.files import clear_os_errors, fsync_directory, temp_beside
from lamina.core.manifests import TITLE, Descriptor

READ_LIMIT = 64 << 20
"""Most bytes that `read` takes into memory unless told otherwise."""

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_UNLINKABLE = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EROFS, errno.ENOTSUP}
_HEAL = "pull it or train it again: putting the right bytes replaces the wrong ones"


class BlobWriter:
    """Bytes on their way to becoming a blob. Made by `BlobStore.writer`."""

    def __init__(
        self,
        store: "BlobStore",
        handle: IO[bytes],
        temp: Path,
        limit: int | None,
        *,
        keep_open: bool = False,
    ) -> None:
        self._store = store
        self._keep_open = keep_open
        self._handle = handle
        self._temp = temp
        self._limit = limit
        self._hash = hashlib.sha256()
        self.size = 0
        """Bytes written so far."""
        self.committed = False

    @property
    def digest(self) -> str:
        """sha256 of the bytes written so far."""
        return "sha256:" + self._hash.hexdigest()

    def write(self, data: bytes | memoryview) -> None:
        """Append. Raises CorruptBlobError past the limit, StoreFullError."""
        self.size += len(data)
        if self._limit is not None and self.size > self._limit:
            raise CorruptBlobError(f"more than the expected {self._limit} bytes arrived")
        with clear_os_errors(f"writing a blob in {self._temp.parent}"):
            self._handle.write(data)
        self._hash.update(data)

    def take_in(self, data: bytes) -> None:
        """Count bytes as written that the file holds already, from its beginning on."""
        self.size += len(data)
        self._hash.update(data)

    def commit(self, expected: str | None = None) -> str:
        """Make the blob visible and return its digest. Nothing appears if it isn't `expected`.

        Raises CorruptBlobError, StoreFullError.
        """
        digest = self.digest
        if expected is not None and expected != digest:
            raise CorruptBlobError(
                f"expected {expected}, but the {self.size} bytes that arrived are {digest}",
                hint="the transfer or its source is damaged: try again, or from elsewhere",
            )
        with clear_os_errors(f"writing a blob in {self._temp.parent}"):
            self._handle.flush()
            os.fsync(self._handle.fileno())
            if not self._keep_open:
                self._handle.close()
        self._store._install(self._temp, digest)
        self.committed = True
        return digest


class BlobStore:
    """The blobs of a store. Cheap to make; touches the disk only when asked for something."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._verified: dict[str, tuple[int, int, int]] = {}

    @property
    def blobs_dir(self) -> Path:
        """Where the blobs lie, each under the hex digits of its sha256."""
        return self.root / "blobs" / "sha256"

    def has(self, digest: str) -> bool:
        """Whether a blob lies under this digest; doesn't read it. Raises UsageError."""
        return self._blob_path(digest).is_file()

    def intact(self, digest: str) -> bool:
        """Whether the blob is there and its bytes match (hashed once a process and file state)."""
        try:
            self.path(digest)
        except (MissingBlobError, CorruptBlobError):
            return False
        return True

    def read(self, digest: str, *, limit: int = READ_LIMIT) -> bytes:
        """The blob's bytes, checked against the digest every time.

        Raises MissingBlobError, CorruptBlobError, StoreError when it is larger than `limit` bytes.
        """
        path = self._blob_path(digest)
        if path.exists() and not path.is_file():  # a pipe would be read for ever
            raise _corrupt(digest)
        with _missing_if_absent(digest), path.open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            if size > limit:
                raise StoreError(f"blob {digest} has {size} bytes, at most {limit} are read here")
            data = handle.read()
        if digest_bytes(data) != digest:
            raise _corrupt(digest)
        return data

    def path(self, digest: str) -> Path:
        """The blob's file, for mapping into memory.

        Hashed at first use in this process, and again whenever its inode, size or modification
        time changed. Raises MissingBlobError, CorruptBlobError.
        """
        path = self._blob_path(digest)
        with _missing_if_absent(digest):
            state = _state(path)
            if not path.is_file():
                raise _corrupt(digest)
            if self._verified.get(digest) != state:
                if digest_file(path) != digest:
                    raise _corrupt(digest)
                self._verified[digest] = state
        return path

    def put_bytes(self, data: bytes, media_type: str, *, title: str | None = None) -> Descriptor:
        """Store bytes. `title` is the file name that the descriptor carries."""
        digest = digest_bytes(data)
        if not self._renew(digest):
            with self.writer() as writer:
                writer.write(data)
                writer.commit(digest)
        return _descriptor(digest, len(data), media_type, title)

    def put_file(self, path: Path, media_type: str, *, title: str | None = None) -> Descriptor:
        """Store a copy of a file, streamed. Raises UsageError when it can't be read."""
        with _readable(path):
            digest, size = digest_file(path), path.stat().st_size
        if not self._renew(digest):
            digest, size = self._copy_in(path)
        return _descriptor(digest, size, media_type, title)

    def adopt_file(self, path: Path, media_type: str, *, title: str | None = None) -> Descriptor:
        """Store a file by hard link where the file system can, else by copy.

        The caller must not write into the file afterwards (replacing or deleting it is fine).
        Raises UsageError when it can't be read.
        """
        with _readable(path):
            real = path.resolve(strict=True)
            before = _state(real)
            digest = digest_file(real)
            unchanged = _state(real) == before
        size = before[1]
        if not self._renew(digest) and not (unchanged and self._link_in(real, digest)):
            digest, size = self._copy_in(real)
        return _descriptor(digest, size, media_type, title)

    @contextlib.contextmanager
    def writer(self, *, limit: int | None = None) -> Iterator[BlobWriter]:
        """Stream a blob in, for downloads: write, then commit. Without a commit nothing is kept.

        `limit`: most bytes to accept.
        """
        with clear_os_errors(f"writing a blob in {self.blobs_dir}"):
            temp = temp_beside(self.blobs_dir / "blob")
            handle = temp.open("xb")
        try:
            yield BlobWriter(self, handle, temp, limit)
        finally:
            with contextlib.suppress(OSError):  # closing flushes again what did not fit
                handle.close()
            temp.unlink(missing_ok=True)

    def _blob_path(self, digest: str) -> Path:
        match = _DIGEST.fullmatch(digest)
        if not match:
            raise UsageError(f"{digest!r} is not a sha256 digest")
        return self.blobs_dir / match[1]

    def _copy_in(self, path: Path) -> tuple[str, int]:
        """Stream a file into the store; its digest and size as copied."""
        with self.writer() as writer:
            with _readable(path):
                source = path.open("rb")
            with source:
                while chunk := source.read(CHUNK_BYTES):
                    writer.write(chunk)
            return writer.commit(), writer.size

    def _install(self, temp: Path, digest: str) -> None:
        """Put a finished temp file in its place, unless the right bytes are there already."""
        if self._renew(digest):
            return
        target = self._blob_path(digest)
        with clear_os_errors(f"writing blob {digest}"):
            os.replace(temp, target)
            fsync_directory(target.parent)
        self._verified[digest] = _state(target)

    def _link_in(self, source: Path, digest: str) -> bool:
        """Hard-link a file in as a blob; False where the system does not let us."""
        temp = temp_beside(self.blobs_dir / "link")
        try:
            os.utime(source)  # young, so that `collect` leaves it alone
            with source.open("rb") as handle:
                os.fsync(handle.fileno())
            os.link(source, temp)
        except OSError as error:
            if error.errno in _UNLINKABLE:
                return False
            with clear_os_errors(f"linking {source} into the store"):
                raise
        try:
            self._install(temp, digest)
        finally:
            temp.unlink(missing_ok=True)
        return True

    def _renew(self, digest: str) -> bool:
        """Whether the right bytes are there; if so, make them young for `collect`.

        A store that can't be written is never collected, so there it is enough to look.
        """
        if not self.intact(digest):
            return False
        path = self._blob_path(digest)
        with contextlib.suppress(PermissionError):
            try:
                os.utime(path)
            except FileNotFoundError:  # collected since we looked
                return False
            except OSError as error:
                if error.errno != errno.EROFS:
                    raise
            self._verified[digest] = _state(path)
        return True


def _state(path: Path) -> tuple[int, int, int]:
    """What changes when somebody writes into a file: inode, size, modification time."""
    info = path.stat()
    return info.st_ino, info.st_size, info.st_mtime_ns


def _descriptor(digest: str, size: int, media_type: str, title: str | None) -> Descriptor:
    annotations = {TITLE: title} if title is not None else None
    return Descriptor(mediaType=media_type, digest=digest, size=size, annotations=annotations)


def _corrupt(digest: str) -> CorruptBlobError:
    return CorruptBlobError(
        f"the stored bytes of blob {digest} don't match their digest",
        hint=f"`lamina verify` lists all damage; {_HEAL}",
    )


@contextlib.contextmanager
def _missing_if_absent(digest: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise MissingBlobError(f"the store has no blob {digest}", hint=_HEAL) from None


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
