"""Verify: every entry, every reachable blob. Lists all damage, changes nothing, takes no lock."""

import contextlib
from collections.abc import Callable

from lamina.core.digest import digest_file
from lamina.core.errors import StoreError
from lamina.core.evidence import (
    COST_TYPE,
    NAMING_TYPE,
    SCORES_TYPE,
    SIGNATURE_TYPE,
    CostEvidence,
    NamingEvidence,
    ScoresEvidence,
    SignatureEvidence,
)
from lamina.core.manifests import (
    BASE_TYPE,
    IDENTITY,
    LAYER_TYPE,
    STACK_TYPE,
    BaseConfig,
    Descriptor,
    ImageManifest,
    LayerConfig,
    StackConfig,
)
from lamina.core.values import Value
from lamina.store.collect import stored_blobs
from lamina.store.reach import Reach, walk
from lamina.store.refs import SUBJECT, RefStore, index_faults

Progress = Callable[[int, int], None]
"""Called with (bytes checked, bytes to check)."""

_CONFIGS: dict[str, type[Value]] = {
    BASE_TYPE: BaseConfig,
    LAYER_TYPE: LayerConfig,
    STACK_TYPE: StackConfig,
    COST_TYPE: CostEvidence,
    SCORES_TYPE: ScoresEvidence,
    NAMING_TYPE: NamingEvidence,
    SIGNATURE_TYPE: SignatureEvidence,
}


class VerifyReport(Value):
    """What a store holds and what is wrong with it."""

    entries: int
    blobs: int
    """Reachable blobs, manifests included."""
    bytes: int
    """Of the reachable blobs, as their descriptors say."""
    orphans: int
    """Stored blobs that nothing reaches; `lamina gc` removes them. No fault."""
    orphan_bytes: int
    faults: tuple[str, ...]
    """One sentence each."""

    @property
    def clean(self) -> bool:
        """Whether there is no fault."""
        return not self.faults


def verify(store: RefStore, progress: Progress | None = None) -> VerifyReport:
    """Check the index, the size and digest of every reachable blob, and parse what is JSON."""
    faults: list[str] = []
    entries: tuple[Descriptor, ...] = ()
    try:
        entries = store.entries()
    except StoreError as error:
        faults += [error.message, *error.faults]
    faults += index_faults(entries)
    reach = walk(store, entries)
    damaged = _blob_faults(store, reach, progress)
    faults += damaged.values()
    faults += [text for text in reach.faults if not _known(text, damaged)]
    for digest, manifest in reach.manifests.items():
        if manifest.config.digest not in damaged:
            faults += _object_faults(store, digest, manifest)
    for entry in entries:
        if entry.digest in reach.manifests:
            faults += _note_faults(store, entry, reach.manifests[entry.digest])
    orphans = _orphan_sizes(store, reach)
    return VerifyReport(
        entries=len(entries),
        blobs=len(reach.blobs),
        bytes=sum(blob.size for blob in reach.blobs.values()),
        orphans=len(orphans),
        orphan_bytes=sum(orphans),
        faults=tuple(dict.fromkeys(faults)),
    )


def _blob_faults(store: RefStore, reach: Reach, progress: Progress | None) -> dict[str, str]:
    """digest -> what is wrong with the stored bytes."""
    total = sum(blob.size for blob in reach.blobs.values())
    done = 0
    faults: dict[str, str] = {}
    for digest, blob in reach.blobs.items():
        fault = _blob_fault(store, blob)
        if fault:
            faults[digest] = fault
        done += blob.size
        if progress is not None:
            progress(done, total)
    return faults


def _blob_fault(store: RefStore, blob: Descriptor) -> str | None:
    path = store._blob_path(blob.digest)
    label = f"blob {blob.digest} ({blob.title or blob.mediaType})"
    try:
        size = path.stat().st_size
        if size != blob.size:
            return f"{label} has {size} bytes instead of {blob.size}"
        if digest_file(path) != blob.digest:
            return f"{label}: the stored bytes don't match the digest"
    except FileNotFoundError:
        return f"{label} is missing"
    except OSError as error:
        return f"{label} can't be read: {error.strerror}"
    return None


def _known(text: str, damaged: dict[str, str]) -> bool:
    """Whether a walk's fault is about a blob that is listed as damaged already."""
    return any(digest in text for digest in damaged)


def _object_faults(store: RefStore, digest: str, manifest: ImageManifest) -> list[str]:
    """A config that doesn't parse, or a stack that doesn't carry its layers."""
    kind = _CONFIGS.get(manifest.artifactType)
    if kind is None:
        return []
    try:
        config = store.config(manifest, kind)
    except StoreError as error:
        return [error.message, *error.faults]
    if isinstance(config, StackConfig):
        carried = {blob.digest for blob in manifest.layers}
        return [
            f"stack {digest} doesn't carry its layer {item.layer}"
            for item in config.layers
            if item.layer not in carried
        ]
    return []


def _note_faults(store: RefStore, entry: Descriptor, manifest: ImageManifest) -> list[str]:
    """An index entry that says something else than the manifest does."""
    notes = entry.annotations or {}
    faults = []
    if entry.artifactType not in (None, manifest.artifactType):
        faults.append(f"the index calls {entry.digest} a {entry.artifactType}")
    subject = manifest.subject.digest if manifest.subject else None
    if SUBJECT in notes and notes[SUBJECT] != subject:
        faults.append(f"the index gives {entry.digest} another subject than its manifest")
    if manifest.artifactType == BASE_TYPE and IDENTITY in notes:
        with contextlib.suppress(StoreError):  # listed with the object
            identity = store.config(manifest, BaseConfig).identity
            if identity != notes[IDENTITY]:
                faults.append(f"the index gives base {entry.digest} another identity than its own")
    return faults


def _orphan_sizes(store: RefStore, reach: Reach) -> list[int]:
    sizes = []
    for digest, path in stored_blobs(store):
        if digest not in reach.blobs:
            with contextlib.suppress(FileNotFoundError):
                sizes.append(path.stat().st_size)
    return sizes
