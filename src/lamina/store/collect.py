"""Collect: remove what nothing in the index reaches, and what a kill left half-written.

Order: the index loses its orphaned evidence first, then blobs go, all under the index's lock.
What is younger than the grace stays, so that somebody who has put blobs but not yet named them
isn't robbed; putting a blob that is there already makes it young again.
"""

import contextlib
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lamina.core.errors import StoreError
from lamina.core.files import TEMP_PREFIX, clear_os_errors
from lamina.core.manifests import Descriptor
from lamina.core.values import Value
from lamina.store.reach import Reach, walk
from lamina.store.refs import SUBJECT, RefStore, index_faults

GRACE_SECONDS = 3600.0
_HEX = re.compile(r"[0-9a-f]{64}")


class CollectReport(Value):
    """What was removed (or would be)."""

    dry_run: bool
    blobs: tuple[str, ...]
    """Digests, sorted."""
    bytes: int
    """Of the blobs."""
    evidence: tuple[str, ...]
    """Manifests whose subject is gone: entries taken from the index."""
    temporary: tuple[str, ...]
    """Half-written leftovers, as paths under the store's root."""
    young: int
    """Unreached blobs kept because they are younger than the grace."""


@dataclass(frozen=True)
class _Clock:
    """What counts as young."""

    now: float
    grace_seconds: float

    def young(self, path: Path) -> bool:
        """Whether a file, or anything in a folder, changed within the grace; False if absent."""
        with contextlib.suppress(FileNotFoundError):
            newest = path.stat().st_mtime
            if path.is_dir():
                newest = max([newest, *(p.lstat().st_mtime for p in path.rglob("*"))])
            return self.now - newest < self.grace_seconds
        return False


def collect(store: RefStore, *, cache: Path, grace_seconds: float, dry_run: bool) -> CollectReport:
    """Remove unreached blobs, orphaned evidence and stale `.tmp-` entries older than the grace.

    `cache`: folder searched for `.tmp-` entries too. Raises StoreError, removing nothing, when a
    manifest that the index reaches can't be read: what it names would be lost.
    """
    with contextlib.nullcontext() if dry_run else store._locked():
        clock = _Clock(time.time(), grace_seconds)
        entries = store.entries()
        reach, orphaned = _mark(store, entries, clock)
        if not dry_run and orphaned:
            gone = {id(entry) for entry in orphaned}
            store._replace_entries(tuple(entry for entry in entries if id(entry) not in gone))
        blobs, young = _sweep(store, reach, clock, dry_run=dry_run)
        temporary = [path for path in _temporary(store, cache) if not clock.young(path)]
        if not dry_run:
            _remove(temporary)
    return CollectReport(
        dry_run=dry_run,
        blobs=tuple(sorted(blobs)),
        bytes=sum(blobs.values()),
        evidence=tuple(entry.digest for entry in orphaned),
        temporary=tuple(sorted(path.relative_to(store.root).as_posix() for path in temporary)),
        young=young,
    )


def _mark(
    store: RefStore, entries: tuple[Descriptor, ...], clock: _Clock
) -> tuple[Reach, list[Descriptor]]:
    """Everything that stays, and the evidence that doesn't."""
    subjects = {id(entry): _subject(store, entry) for entry in entries}
    reach = walk(store, [entry for entry in entries if subjects[id(entry)] is None])
    waiting = [entry for entry in entries if subjects[id(entry)] is not None]

    def stays(entry: Descriptor) -> bool:
        subject = subjects[id(entry)] or ""
        paths = (store._blob_path(subject), store._blob_path(entry.digest))
        return subject in reach.blobs or any(clock.young(path) for path in paths)

    while ready := [entry for entry in waiting if stays(entry)]:
        walk(store, ready, reach)
        chosen = {id(entry) for entry in ready}
        waiting = [entry for entry in waiting if id(entry) not in chosen]
    if faults := [*index_faults(entries), *reach.faults]:
        raise StoreError(
            "nothing was collected, because the store is damaged",
            faults=faults,
            hint="`lamina verify` lists all damage; pull what is damaged again, or remove its name",
        )
    return reach, waiting


def _subject(store: RefStore, entry: Descriptor) -> str | None:
    """Digest of what an unnamed entry speaks of; None when it stands for itself."""
    if entry.ref_name is not None:
        return None
    noted = (entry.annotations or {}).get(SUBJECT)
    if noted is None:
        with contextlib.suppress(StoreError):  # the walk reports it
            subject = store.manifest(entry.digest).subject
            return subject.digest if subject else None
    return noted


def _sweep(
    store: RefStore, reach: Reach, clock: _Clock, *, dry_run: bool
) -> tuple[dict[str, int], int]:
    """Unreached old blobs with their sizes, removed unless `dry_run`; how many are young."""
    removed: dict[str, int] = {}
    young = 0
    for digest, path in stored_blobs(store):
        if digest in reach.blobs:
            continue
        with contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            if clock.young(path):
                young += 1
                continue
            if not dry_run:
                with clear_os_errors(f"removing {path}"):
                    path.unlink()
            removed[digest] = size
    return removed, young


def stored_blobs(store: RefStore) -> Iterator[tuple[str, Path]]:
    """(digest, file) of every blob on disk, reached or not."""
    with contextlib.suppress(FileNotFoundError):
        for path in store.blobs_dir.iterdir():
            if _HEX.fullmatch(path.name):
                yield f"sha256:{path.name}", path


def _temporary(store: RefStore, cache: Path) -> Iterator[Path]:
    """Every `.tmp-` file or folder in the layout and the cache; never looks into the runs."""
    pattern = f"{TEMP_PREFIX}*"
    yield from store.root.glob(pattern)
    yield from store.blobs_dir.glob(pattern)
    yield from (p for p in cache.rglob(pattern) if not _inside_temporary(p.relative_to(cache)))


def _inside_temporary(path: Path) -> bool:
    return any(part.startswith(TEMP_PREFIX) for part in path.parts[:-1])


def _remove(paths: list[Path]) -> None:
    for path in paths:
        with clear_os_errors(f"removing {path}"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
