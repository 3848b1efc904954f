"""A parcel as one file: an OCI image layout in a tar, which skopeo reads as `oci-archive:FILE`.

Equal parcels make equal bytes: sorted names, no times, no owners. What is left out because the
receiver has it (the layers beneath a proposal) is named and not there, as the image layout
specification allows.

A tar from a stranger is never unpacked: only its headers are walked, by a reader that takes regular
files called `oci-layout`, `index.json` and `blobs/sha256/<64 hex digits>` and refuses everything
else (links, other paths, a name twice, headers that rename or resize what follows).
"""

import hashlib
import io
import re
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lamina.core.digest import CHUNK_BYTES
from lamina.core.errors import MissingBlobError, ShareError, UsageError
from lamina.core.files import atomic_writer
from lamina.core.manifests import (
    LAYER_TYPE,
    REF_NAME,
    STACK_TYPE,
    Descriptor,
    ImageIndex,
    ImageManifest,
)
from lamina.share.parcel import Parcel
from lamina.store.layout import LAYOUT_FILE, Layout, Store
from lamina.store.manifests import MANIFEST_LIMIT
from lamina.store.refs import SUBJECT, bare
from lamina.store.strict import parse_strictly

INDEX_FILE = "index.json"
_FOLDER = "blobs/sha256/"
_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})")
_FOLDERS = {"blobs", "blobs/sha256"}
_BLOCK = tarfile.BLOCKSIZE
MEMBERS_LIMIT = 50_000
"""Most files in an archive."""
_EXTENDED_LIMIT = 64 << 10
"""Largest extended header in bytes; those that other tools write hold times."""
_CHANGES = re.compile(rb"\d+ (?:path|size|linkpath|GNU\.sparse[^=]*)=")
"""Records of an extended header that would give what follows another name or size."""


# -- writing ---------------------------------------------------------------------------------------


def write(
    path: Path, store: Store, parcel: Parcel, name: str, *, leave_out: Collection[str] = ()
) -> int:
    """Write a parcel's content to a file that is there whole or not at all; its size in bytes.

    The root is listed as `name`, each layer that is in as `<its place>.layer` of it (so that other
    tools can copy one). `leave_out`: manifests of layers that are not put in, with their evidence.
    Raises UsageError for a file that exists, StoreError.
    """
    if path.exists():
        raise UsageError(f"{path} exists already", hint="give a file that does not exist")
    items, index = _content(store, parcel, name, frozenset(leave_out))
    with (
        atomic_writer(path) as handle,
        tarfile.open(fileobj=handle, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for digest in sorted(items):
            data = _Pieces(parcel.stream(store, items[digest], CHUNK_BYTES))
            tar.addfile(_header(_FOLDER + digest.partition(":")[2], items[digest].size), data)
        for file, text in ((INDEX_FILE, index.to_bytes()), (LAYOUT_FILE, Layout().to_bytes())):
            tar.addfile(_header(file, len(text)), io.BytesIO(text))
    return path.stat().st_size


def _content(
    store: Store, parcel: Parcel, name: str, leave_out: frozenset[str]
) -> tuple[dict[str, Descriptor], ImageIndex]:
    """Everything that goes in by digest, and the index that lists it."""
    manifests = [item for item in parcel.manifests if item.digest not in leave_out]
    gone = set(leave_out)
    evidence = []
    for item in parcel.evidence:
        if parcel.subjects[item.digest] in gone or item.digest in gone:
            gone.add(item.digest)
        else:
            evidence.append(item)
    items: dict[str, Descriptor] = {}
    known = {item.digest: item for item in parcel.blobs}
    for item in (*manifests, *evidence):
        items[item.digest] = item
        manifest = parse_strictly(ImageManifest, parcel.read(store, item), f"{item.digest}")
        carried = () if manifest.artifactType == STACK_TYPE else manifest.layers
        for blob in (manifest.config, *carried):
            items.setdefault(blob.digest, known.get(blob.digest, bare(blob)))
    entries = [_listed(parcel.root, {REF_NAME: name})]
    layers = [item for item in parcel.manifests if item.artifactType == LAYER_TYPE]
    for place, item in enumerate(layers, start=1):
        if item in manifests and item.digest != parcel.root.digest:
            entries.append(_listed(item, {REF_NAME: f"{name}.{place}"}))
    if parcel.base is not None:
        entries.append(_listed(parcel.base, {REF_NAME: f"{name}.base"}))
    entries += [_listed(each, {SUBJECT: parcel.subjects[each.digest]}) for each in evidence]
    return items, ImageIndex(manifests=tuple(entries))


def _listed(item: Descriptor, notes: dict[str, str]) -> Descriptor:
    return item.model_copy(update={"annotations": notes})


def _header(name: str, size: int) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size, found.mode = size, 0o644
    return found


class _Pieces(io.RawIOBase):
    """Pieces of bytes as a file that can be read from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; fewer only at the end."""
        parts = [self._rest]
        have = len(self._rest)
        while have < size and (piece := next(self._pieces, b"")):
            parts.append(piece)
            have += len(piece)
        data = b"".join(parts)
        self._rest = data[size:]
        return data[:size]


# -- reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where a file's bytes lie in the tar."""

    offset: int
    size: int


class Archive:
    """An archive as a place that objects come from (`share.incoming.BlobSource`)."""

    def __init__(self, path: Path) -> None:
        """Read the headers and the index. Raises ShareError listing every fault, UsageError."""
        self.path = path
        try:
            with path.open("rb") as handle:
                self._places = _walk(handle, path)
        except ShareError:  # an OSError too
            raise
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
        missing = [file for file in (LAYOUT_FILE, INDEX_FILE) if file not in self._places]
        if missing:
            raise _refused(path, [f"no {file} in it" for file in missing])
        parse_strictly(Layout, self._small(LAYOUT_FILE), f"{LAYOUT_FILE} of {path}")
        data = self._small(INDEX_FILE)
        self._entries = parse_strictly(ImageIndex, data, f"{INDEX_FILE} of {path}").manifests

    @property
    def size(self) -> int:
        """Bytes of all files in it."""
        return sum(place.size for place in self._places.values())

    def check(self) -> None:
        """See that every blob is what its name says. Raises ShareError listing all that are not."""
        faults = []
        with self.path.open("rb") as handle:
            for name, place in self._places.items():
                match = _BLOB.fullmatch(name)
                if match is None:
                    continue
                handle.seek(place.offset)
                found, left = hashlib.sha256(), place.size
                while left > 0 and (piece := handle.read(min(left, CHUNK_BYTES))):
                    found.update(piece)
                    left -= len(piece)
                if found.hexdigest() != match[1]:
                    faults.append(f"{name} has other bytes than its name says")
        if faults:
            raise ShareError(
                f"{self.path} is damaged",
                faults=faults,
                hint="it was changed or cut on its way: ask for it again",
            )

    def root(self) -> str:
        """Digest of the object that it was made for: the first one that has a name.

        Raises ShareError.
        """
        for entry in self._entries:
            if entry.ref_name is not None and SUBJECT not in (entry.annotations or {}):
                return entry.digest
        raise ShareError(
            f"{self.path} names no object", hint="make it anew: lamina propose STACK FILE"
        )

    def manifest(self, digest: str) -> bytes:
        """A manifest's bytes. Raises MissingBlobError, ShareError."""
        return self._small(self._name(digest))

    def blob(self, item: Descriptor, *, offset: int = 0) -> Iterator[bytes]:
        """A blob's bytes from `offset` on, in pieces. Raises MissingBlobError, ShareError."""
        place = self._places[self._name(item.digest)]
        with self.path.open("rb") as handle:
            handle.seek(place.offset + offset)
            left = place.size - offset
            while left > 0 and (piece := handle.read(min(left, CHUNK_BYTES))):
                left -= len(piece)
                yield piece

    def referrers(self, digest: str) -> tuple[Descriptor, ...]:
        """What its index lists as evidence about a manifest."""
        return tuple(
            bare(entry)
            for entry in self._entries
            if (entry.annotations or {}).get(SUBJECT) == digest
        )

    def _name(self, digest: str) -> str:
        name = _FOLDER + digest.partition(":")[2]
        if not digest.startswith("sha256:") or name not in self._places:
            raise MissingBlobError(f"{self.path} has no {digest}")
        return name

    def _small(self, name: str) -> bytes:
        place = self._places[name]
        if place.size > MANIFEST_LIMIT:
            raise ShareError(f"{name} in {self.path} has {place.size} bytes: too large to read")
        with self.path.open("rb") as handle:
            handle.seek(place.offset)
            return handle.read(place.size)


def _walk(handle: BinaryIO, path: Path) -> dict[str, _Place]:
    """Name -> place of every file, from the headers alone. Raises ShareError."""
    end = handle.seek(0, io.SEEK_END)
    if end < _BLOCK or end % _BLOCK:
        raise _refused(path, [f"{end} bytes are no whole number of blocks: cut off, or compressed"])
    found: dict[str, _Place] = {}
    at = 0
    while at < end:
        handle.seek(at)
        block = handle.read(_BLOCK)
        if not block.strip(b"\0"):
            return found
        header = _parsed(block, at, path)
        at += _BLOCK
        if header.size < 0 or at + header.size > end:
            raise _refused(path, [f"it ends inside of {header.name!a}"])
        if header.type in (tarfile.XHDTYPE, tarfile.XGLTYPE):
            _harmless(handle, header, path)
        elif header.isdir() and header.size == 0 and _plain(header.name) in _FOLDERS | {""}:
            pass
        elif fault := _fault(header, found):
            raise _refused(path, [fault])
        else:
            found[_plain(header.name)] = _Place(at, header.size)
        at += -(-header.size // _BLOCK) * _BLOCK
        if len(found) > MEMBERS_LIMIT:
            raise _refused(path, [f"more than {MEMBERS_LIMIT} files"])
    raise _refused(path, ["its end is missing"])


def _parsed(block: bytes, at: int, path: Path) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeError, ValueError) as error:
        raise _refused(path, [f"no tar header at byte {at}: {error}"]) from None


def _harmless(handle: BinaryIO, header: tarfile.TarInfo, path: Path) -> None:
    """Refuse an extended header that changes what the next header says."""
    if header.size > _EXTENDED_LIMIT:
        raise _refused(path, [f"an extended header of {header.size} bytes"])
    if _CHANGES.search(handle.read(header.size)):
        raise _refused(path, ["an extended header that renames or resizes a file"])


def _fault(header: tarfile.TarInfo, found: dict[str, _Place]) -> str | None:
    """Why a file is not taken, None where it is."""
    name = _plain(header.name)
    if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        return f"{header.name!a} is no regular file"
    if name not in (LAYOUT_FILE, INDEX_FILE) and not _BLOB.fullmatch(name):
        return f"{header.name!a} has no place in an image layout"
    if name in found:
        return f"{header.name!a} comes twice"
    return None


def _plain(name: str) -> str:
    """Without the `./` that some tools put before every name, and a folder's last slash."""
    return name.removeprefix("./").rstrip("/") if name not in (".", "./") else ""


def _refused(path: Path, faults: list[str]) -> ShareError:
    return ShareError(
        f"{path} is not an archive that lamina reads",
        faults=faults,
        hint="it has to be an uncompressed OCI archive: lamina propose STACK FILE, or "
        "skopeo copy … oci-archive:FILE",
    )
