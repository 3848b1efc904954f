"""A store to look at strangers' things in: it has all that the real one has, and is thrown away.

Blobs are linked, not copied, and nothing ever writes into a blob; the index is a copy. Killed, it
leaves a `.tmp-` folder in the cache, which `lamina gc` sweeps; the real store has not changed.
"""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from lamina.core.errors import CorruptBlobError
from lamina.core.evidence import SCORES_TYPE
from lamina.core.files import TEMP_PREFIX, atomic_write, clear_os_errors
from lamina.core.manifests import Descriptor
from lamina.flows.questions import PRIVATE
from lamina.share.incoming import BlobSource
from lamina.store.collect import stored_blobs
from lamina.store.layout import Store


@contextlib.contextmanager
def quarantine(store: Store) -> Iterator[Store]:
    """A store that begins as a copy of `store` and is gone in the end.

    Raises StoreError, StoreFullError, ReadOnlyStoreError.
    """
    root = store.cache_dir / f"{TEMP_PREFIX}review-{uuid.uuid4().hex[:12]}"
    try:
        with clear_os_errors(f"making room for a review in {store.cache_dir}"):
            beside = Store.open(root)
            for digest, path in stored_blobs(store):
                _link(path, beside.blobs_dir / digest.partition(":")[2])
            atomic_write(beside.index_path, store.index_path.read_bytes())
            withheld = store.root / PRIVATE
            if withheld.is_dir():
                (root / PRIVATE).symlink_to(withheld, target_is_directory=True)
        yield beside
    finally:
        shutil.rmtree(root, ignore_errors=True)


def move_in(store: Store, source: BlobSource, items: Sequence[Descriptor]) -> None:
    """Take blobs that lie in a quarantine: linked where the system lets us, each checked."""
    assert isinstance(source, Beside)
    for item in items:
        path = source.store.path(item.digest)  # checks the bytes
        put = store.put_file(path, item.mediaType)
        if put.digest != item.digest:
            raise CorruptBlobError(f"{item.digest} changed while it was taken")


class Beside:
    """A quarantine as the place that an accepted object comes from."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def manifest(self, digest: str) -> bytes:
        """A manifest's bytes. Raises MissingBlobError."""
        return self.store.read(digest)

    def blob(self, item: Descriptor, *, offset: int = 0) -> Iterator[bytes]:
        """A blob's bytes. Raises MissingBlobError."""
        with self.store.path(item.digest).open("rb") as handle:
            handle.seek(offset)
            while piece := handle.read(1 << 20):
                yield piece

    def referrers(self, digest: str) -> tuple[Descriptor, ...]:
        """Evidence about a manifest."""
        return self.store.referrers(digest)


def keep_results(store: Store, beside: Store) -> None:
    """Take the results that were measured in a quarantine, of every stack that is in the store."""
    known = {entry.digest for entry in store.entries()}
    for entry in beside.entries():
        if entry.digest in known or entry.artifactType != SCORES_TYPE:
            continue
        data = beside.read(entry.digest)
        manifest = beside.manifest(entry.digest)
        if manifest.subject is None or not store.has(manifest.subject.digest):
            continue
        store.put_bytes(beside.read(manifest.config.digest), manifest.config.mediaType)
        store.add_root(store.put_manifest(data))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # other file systems, or too many links
        target.symlink_to(source)
