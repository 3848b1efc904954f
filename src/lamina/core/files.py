"""Files that appear whole or not at all: temp file -> fsync -> rename, in the target's folder.

A reader never sees a half-written file; a kill at any moment leaves at most a `.tmp-` entry,
which `store.collect` sweeps.
"""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from io import RawIOBase
from pathlib import Path
from typing import IO

from lamina.core.errors import ReadOnlyStoreError, StoreBusyError, StoreFullError

TEMP_PREFIX = ".tmp-"
LOCK_SECONDS = 10.0
"""How long another process may hold a file that is edited in a moment."""
POLL_SECONDS = 0.01
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


@contextlib.contextmanager
def clear_os_errors(what: str) -> Iterator[None]:
    """Turn "disk full" and "read-only" from the system into our errors, saying `what` failed."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoreFullError(
                f"no space left while {what}",
                hint="free space (`lamina gc` removes what nothing refers to) and try again; "
                "nothing half-written is kept",
            ) from error
        if error.errno in _READ_ONLY:
            raise ReadOnlyStoreError(
                f"not allowed to write while {what}: {error.filename or ''}",
                hint="check the folder's permissions, or point LAMINA_HOME at a writable folder",
            ) from error
        raise


@contextlib.contextmanager
def locked(path: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold a lock file between processes and threads for a block; it dies with its process.

    Raises StoreBusyError where somebody else holds it for longer than `seconds`.
    """
    import filelock  # here, because reading needs no lock and should start fast

    lock = filelock.FileLock(path)
    with clear_os_errors(f"locking {path}"):
        try:
            lock.acquire(timeout=seconds, poll_interval=POLL_SECONDS)
        except filelock.Timeout:
            raise StoreBusyError(
                f"another process has held {path} for {seconds:g} seconds",
                hint="wait for the other lamina to finish, then try again",
            ) from None
    try:
        yield
    finally:
        lock.release()


def fsync_directory(path: Path) -> None:
    """Make a rename inside `path` durable. Systems that cannot open a folder skip it."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems have no fsync for folders
            raise
    finally:
        os.close(handle)


def temp_beside(path: Path) -> Path:
    """A fresh temp path in the same folder, so that the rename stays on one file system."""
    return path.parent / f"{TEMP_PREFIX}{path.name[:40]}-{uuid.uuid4().hex[:12]}"


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that appears under `path` only if the block ends without an exception."""
    with clear_os_errors(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = temp_beside(path)
        try:
            with temp.open("xb") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temp, path)
            fsync_directory(path.parent)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temp.unlink()


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """The same for libraries that write a file by its name."""
    with clear_os_errors(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = temp_beside(path)
        try:
            yield temp
            with temp.open("rb+") as handle:
                os.fsync(handle.fileno())
            os.replace(temp, path)
            fsync_directory(path.parent)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temp.unlink()


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with atomic_writer(path) as handle:
        handle.write(data)


def append_line(path: Path, line: bytes) -> None:
    """Add one line to a file of lines, durably; what a kill left of an earlier line is ended first.

    The caller sees to it that nobody else appends meanwhile. Where the line does not fit, the file
    is as it was. Raises StoreFullError, ReadOnlyStoreError.
    """
    with clear_os_errors(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with path.open("ab+", buffering=0) as handle:
            before = handle.seek(0, os.SEEK_END)
            torn = False
            if before:
                handle.seek(before - 1)
                torn = handle.read(1) != b"\n"
            whole = (b"\n" if torn else b"") + line.rstrip(b"\n") + b"\n"
            try:
                _write_all(handle, whole)
                os.fsync(handle.fileno())
            except OSError:
                handle.truncate(before)
                raise
        if new:
            fsync_directory(path.parent)


def _write_all(handle: RawIOBase, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[handle.write(left) or 0 :]


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Build a folder that appears under `path` only if the block ends without an exception.

    When `path` exists by then (somebody else built the same thing), ours is dropped: callers key
    the path on the digest of every input, so both are equal.
    """
    with clear_os_errors(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = temp_beside(path)
        temp.mkdir()
        try:
            yield temp
            for file in sorted(temp.rglob("*")):
                if file.is_file() and not file.is_symlink():
                    with file.open("rb+") as handle:
                        os.fsync(handle.fileno())
            with contextlib.suppress(FileExistsError):
                try:
                    os.rename(temp, path)
                except OSError as error:
                    if error.errno != errno.ENOTEMPTY:
                        raise
            fsync_directory(path.parent)
        finally:
            shutil.rmtree(temp, ignore_errors=True)
