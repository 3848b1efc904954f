"""A blob that arrives in several goes: what came is kept under its digest and gone on with.

The half of a blob lies beside the blobs as `.tmp-part-<hex>`, so `collect` sweeps it when nobody
has touched it for the grace. Whoever writes holds a lock on the file; a second writer of the same
blob gets a file of its own. Where the system has no such locks, nothing is kept between goes.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lamina.core.digest import CHUNK_BYTES
from lamina.core.errors import CorruptBlobError, StoreFullError
from lamina.core.files import TEMP_PREFIX, clear_os_errors
from lamina.core.manifests import Descriptor
from lamina.store.blobs import BlobStore, BlobWriter

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def resumed(store: BlobStore, item: Descriptor) -> Iterator[BlobWriter]:
    """A writer that goes on where an earlier one stopped: `writer.size` bytes are there already.

    Without a commit they are kept for the next time, unless they are not the blob's: a commit that
    finds other bytes (CorruptBlobError) drops them, and so does a full disk.
    """
    path = _path(store, item)
    with clear_os_errors(f"writing a blob in {store.blobs_dir}"):
        handle = _claim(path)
    if handle is None:
        with store.writer(limit=item.size) as writer:
            yield writer
        return
    # the lock goes with the handle, so the handle stays open until the blob is in its place
    writer = BlobWriter(store, handle, path, item.size, keep_open=True)
    try:
        _take_in(writer, handle, item.size)
        yield writer
        if writer.committed:
            path.unlink(missing_ok=True)  # where another had put the blob already
        else:
            handle.flush()
    except (CorruptBlobError, StoreFullError):
        path.unlink(missing_ok=True)
        raise
    finally:
        with contextlib.suppress(OSError):  # closing flushes again what did not fit
            handle.close()


def discard(store: BlobStore, item: Descriptor) -> None:
    """Drop what came of a blob, unless somebody is writing it."""
    path = _path(store, item)
    if path.exists() and (handle := _claim(path)) is not None:
        path.unlink(missing_ok=True)
        handle.close()


def _path(store: BlobStore, item: Descriptor) -> Path:
    return store.blobs_dir / f"{TEMP_PREFIX}part-{item.digest.removeprefix('sha256:')}"


def _claim(path: Path) -> IO[bytes] | None:
    """The partial file, locked; None when somebody else has it or the system has no locks."""
    if fcntl is None:
        return None
    while True:
        handle = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = os.path.samestat(os.fstat(handle.fileno()), path.stat())
        except FileNotFoundError:
            same = False
        except OSError:
            handle.close()
            return None
        if same:
            return handle
        handle.close()  # it was moved into place between opening and locking


def _take_in(writer: BlobWriter, handle: IO[bytes], size: int) -> None:
    """Hash what is there; more than the blob has is no part of it."""
    if os.fstat(handle.fileno()).st_size > size:
        handle.truncate(0)
    while chunk := handle.read(CHUNK_BYTES):
        writer.take_in(chunk)
    handle.seek(0, os.SEEK_END)
