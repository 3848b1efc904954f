"""Moving blobs: several at once, each going on where it broke off, each checked on arrival."""

import mmap
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lamina.core.errors import (
    CorruptBlobError,
    DroppedError,
    ShareError,
    StoreFullError,
)
from lamina.core.manifests import Descriptor, ImageManifest
from lamina.core.report import Reporter, Silent
from lamina.share.incoming import BlobSource
from lamina.share.parcel import Parcel
from lamina.share.referrers import Repository
from lamina.share.together import BULK_WORKERS, WORKERS, StoppedError, side_by_side
from lamina.share.wire import Patience
from lamina.store.layout import Store
from lamina.store.partial import discard, resumed

EVENT_SECONDS = 0.2


@dataclass
class Moved:
    """What a transfer moved, for people; `Wire.traffic` counts all that goes over the wire."""

    bytes: int = 0
    """Of blobs."""
    blobs: int = 0
    mounted: int = 0
    """Blobs that the registry took from another of its repositories."""
    retried: int = 0
    """Requests and transfers that had to be tried again."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, *, bytes: int = 0, blobs: int = 0, mounted: int = 0, retried: int = 0) -> None:
        """Count, from any thread."""
        with self._lock:
            self.bytes += bytes
            self.blobs += blobs
            self.mounted += mounted
            self.retried += retried

    def to_json(self) -> dict[str, int]:
        """For --json."""
        names = ("bytes", "blobs", "mounted", "retried")
        return {name: getattr(self, name) for name in names}


class Counter:
    """Progress of several threads as one line."""

    def __init__(self, reporter: Reporter, verb: str, total: int) -> None:
        self._reporter, self._verb, self._total = reporter, verb, total
        self._lock = threading.Lock()
        self._done = 0
        self._began = self._said = time.monotonic()

    def add(self, count: int) -> None:
        """Count bytes, and say so now and then."""
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._said < EVENT_SECONDS:
                return
            self._said = now
            speed = self._done / max(now - self._began, 1e-6)
            left = max(self._total - self._done, 0) / max(speed, 1.0)
            text = (
                f"{self._verb} {self._done / 1e6:.1f} of {self._total / 1e6:.1f} MB · "
                f"{speed / 1e6:.1f} MB/s · {left:.0f} seconds left"
            )
            self._reporter.event(
                {"event": "moving", "text": text, "bytes": self._done, "of": self._total}
            )


def fetch(
    store: Store,
    source: BlobSource,
    items: Sequence[Descriptor],
    *,
    reporter: Reporter | None = None,
    moved: Moved | None = None,
    patience: Patience | None = None,
    workers: int = BULK_WORKERS,
) -> None:
    """Bring blobs into the store: several at once, going on where an earlier try stopped.

    Raises CorruptBlobError when other bytes keep coming, StoreFullError before anything moves
    where there is no room, DroppedError, ShareError, MissingBlobError.
    """
    count, tries = moved or Moved(), patience or Patience()
    total = sum(item.size for item in items)
    _check_room(store, total)
    counter = Counter(reporter or Silent(), "pulling", total)

    def one(item: Descriptor, stop: threading.Event) -> None:
        fetch_one(store, source, item, tries, count, counter.add, stop)

    try:
        side_by_side(one, sorted(items, key=lambda item: -item.size), workers)
    except StoreFullError:
        for item in items:  # halves of blobs are no use on a full disk
            discard(store, item)
        raise


def _check_room(store: Store, total: int) -> None:
    try:
        free = shutil.disk_usage(store.root).free
    except OSError:
        return
    if free < total:
        raise StoreFullError(
            f"{total / 1e6:.1f} MB are to come, {free / 1e6:.1f} MB are free at {store.root}",
            hint="free space (`lamina gc` removes what nothing refers to); nothing was moved",
        )


def fetch_one(
    store: Store,
    source: BlobSource,
    item: Descriptor,
    patience: Patience,
    moved: Moved,
    tell: Callable[[int], None],
    stop: threading.Event,
) -> None:
    """Bring one blob, with retries; those that make headway are not counted against it."""
    failures = 0
    while not (store.has(item.digest) and store.intact(item.digest)):
        before = after = 0
        try:
            with resumed(store, item) as writer:
                before = after = writer.size
                try:
                    if writer.size < item.size or not item.size:
                        for piece in source.blob(item, offset=writer.size):
                            if stop.is_set():
                                raise StoppedError("stopped")
                            writer.write(piece)
                            tell(len(piece))
                finally:
                    after = writer.size
                    moved.add(bytes=after - before)
                if writer.size < item.size:
                    raise DroppedError(f"{item.digest}: {writer.size} of {item.size} bytes came")
                writer.commit(item.digest)
                moved.add(blobs=1)
        except (DroppedError, CorruptBlobError) as error:
            headway = isinstance(error, DroppedError) and after > before
            failures = 1 if headway else failures + 1
            moved.add(retried=1)
            if failures >= patience.attempts:
                raise
            patience.pause(failures, getattr(error, "retry_after", None))


def _view(store: Store, parcel: Parcel, item: Descriptor) -> memoryview:
    """All bytes of an item, mapped, not read into memory; checked against its digest."""
    known = parcel.made.get(item.digest)
    if known is not None or item.size == 0:
        return memoryview(known or b"")
    with store.path(item.digest).open("rb") as handle:
        return memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))


def send(
    store: Store,
    parcel: Parcel,
    repository: Repository,
    *,
    mounts: Mapping[str, str] | None = None,
    reporter: Reporter | None = None,
    moved: Moved | None = None,
    workers: int = WORKERS,
) -> Moved:
    """Bring all of a parcel into a repository but for its tag: blobs, manifests, evidence.

    `mounts`: blob's digest -> another repository of the same registry that has it.
    Raises ShareError, DroppedError, CorruptBlobError for damage of our own store.
    """
    sending = _Sending(store, parcel, repository, mounts or {}, moved or Moved(), workers)
    missing = sending.missing()
    sending.counter = Counter(reporter or Silent(), "pushing", sum(b.size for b in missing))
    side_by_side(sending.blob, sorted(missing, key=lambda item: -item.size), workers)
    try:
        sending.manifests()
    except ShareError as error:
        if "BLOB_UNKNOWN" not in error.message:
            raise
        side_by_side(sending.blob_if_missing, sending.blobs, workers)  # it had lost some
        sending.manifests()
    sending.evidence()
    return sending.moved


class _Sending:
    """One parcel on its way into a repository."""

    def __init__(
        self,
        store: Store,
        parcel: Parcel,
        repository: Repository,
        mounts: Mapping[str, str],
        moved: Moved,
        workers: int,
    ) -> None:
        self.store, self.parcel, self.repository = store, parcel, repository
        self.mounts, self.moved, self.workers = mounts, moved, workers
        self.blobs = (*parcel.blobs, *parcel.carried)
        self.counter = Counter(Silent(), "pushing", 0)
        self._there: set[str] = set()
        """Manifests, and blobs that these name."""
        self._about: dict[str, list[Descriptor]] = {}
        """subject -> evidence that is to be put."""
        self._lock = threading.Lock()

    def missing(self) -> list[Descriptor]:
        """Blobs that the repository lacks, found with as few questions as will do.

        A manifest that is there is there with all that it names: registries see to that.
        """
        self._ask(self.parcel.root, threading.Event())
        rest = [m for m in self.parcel.manifests if m.digest not in self._there]
        side_by_side(self._ask, rest, self.workers)
        side_by_side(self._ask_about, [*dict.fromkeys(self.parcel.subjects.values())], self.workers)
        missing: list[Descriptor] = []

        def look(item: Descriptor, _: threading.Event) -> None:
            if not self.repository.has_blob(item):
                with self._lock:
                    missing.append(item)

        # a layer's manifest that is there as such is not for that a blob, which a stack needs
        root_there = self.parcel.root.digest in self._there
        doubtful = [b for b in self.parcel.blobs if b.digest not in self._there]
        doubtful += [] if root_there else self.parcel.carried
        side_by_side(look, doubtful, self.workers)
        return missing

    def _ask(self, item: Descriptor, _: threading.Event) -> None:
        if self.repository.head_manifest(item.digest) == item.digest:
            self._is_there(item)

    def _is_there(self, item: Descriptor) -> None:
        data = self.parcel.read(self.store, item)
        manifest = ImageManifest.parse(data, item.digest)
        with self._lock:
            self._there |= {
                item.digest,
                manifest.config.digest,
                *(b.digest for b in manifest.layers),
            }

    def _ask_about(self, subject: str, _: threading.Event) -> None:
        ours = [e for e in self.parcel.evidence if self.parcel.subjects[e.digest] == subject]
        listed = {each.digest for each in self.repository.referrers(subject)}
        for item in ours:
            if item.digest in listed:
                self._is_there(item)
        with self._lock:
            self._about[subject] = [item for item in ours if item.digest not in listed]

    def blob(self, item: Descriptor, stop: threading.Event) -> None:
        """Send one blob that is not there."""

        def tell(count: int) -> None:
            if stop.is_set():
                raise StoppedError("stopped")
            self.counter.add(count)

        tell(0)
        data, mount = _view(self.store, self.parcel, item), self.mounts.get(item.digest)
        sent = self.repository.upload(item, data, mount_from=mount, tell=tell)
        self.moved.add(blobs=int(sent), mounted=int(not sent), bytes=item.size if sent else 0)

    def blob_if_missing(self, item: Descriptor, stop: threading.Event) -> None:
        """The same, having looked."""
        if not self.repository.has_blob(item):
            self.blob(item, stop)

    def manifests(self) -> None:
        """Put the manifests that are not there; the root comes last."""

        def put(item: Descriptor, _: threading.Event) -> None:
            if item.digest not in self._there:
                self.repository.put_manifest(self.parcel.read(self.store, item), item.digest)

        side_by_side(put, self.parcel.manifests[:-1], self.workers)
        put(self.parcel.root, threading.Event())

    def evidence(self) -> None:
        """Put evidence that is not there, and see that it is listed."""

        def put(subject: str, _: threading.Event) -> None:
            new = [(item, self.parcel.read(self.store, item)) for item in self._about[subject]]
            self.repository.about.add(subject, new)

        side_by_side(put, [subject for subject, new in self._about.items() if new], self.workers)
