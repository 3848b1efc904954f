"""A repository of an OCI registry: manifests and blobs, there and back (distribution-spec 1.1).

Reading is a `BlobSource`. Writing looks first (HEAD), mounts from another repository of the same
registry where it can, and sends large blobs in pieces, going on after a drop at the offset that the
registry has kept.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, Self
from urllib.parse import quote, urljoin, urlsplit

from lamina.core.digest import digest_bytes
from lamina.core.errors import DroppedError, MissingBlobError, ShareError, StoreError
from lamina.core.manifests import INDEX_TYPE, MANIFEST_TYPE, Descriptor
from lamina.share.body import Body
from lamina.share.reference import RegistryRef
from lamina.share.wire import Access, Wire
from lamina.store.manifests import MANIFEST_LIMIT

PIECE_BYTES = 32 << 20
"""Blobs larger than this are sent in pieces of this size; S3 behind a registry wants 5 MB each."""
READ_BYTES = 1 << 18
SMALL_BYTES = 1 << 18
"""Blobs up to this size are read in one go and asked for again where bytes are wrong."""
ACCEPT = f"{MANIFEST_TYPE}, {INDEX_TYPE}"
UNKNOWN_TRIES = 3
"""How often a registry may say that it lacks what a manifest names: Debian's says so for a moment
while somebody else puts the same thing."""
_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")
_KEPT = re.compile(r"(?:bytes=)?0-(\d+)")
_STREAM = "application/octet-stream"
_UNDONE = frozenset({400, 404, 409, 416})
"""Statuses by which a registry says that it has lost an upload, or that other bytes arrived."""
_NO_MOUNT = frozenset({400, 401, 403, 404, 405})
_NO_PIECES = frozenset({405, 411, 415, 501})


class Registry:
    """One repository. Safe to use from several threads."""

    def __init__(self, ref: RegistryRef, access: Access) -> None:
        self.ref = ref
        self.wire = Wire(ref, access)
        self._seen: dict[str, bytes] = {}
        self._pieces = True
        self.repository = _in_full(ref)

    def __enter__(self) -> Self:
        self.wire.greet()
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.close()

    def path(self, *parts: str) -> str:
        """A path of the API in this repository."""
        return f"/v2/{self.repository}/" + "/".join(parts)

    def resolve(self) -> str:
        """The digest of what the reference's tag or digest names.

        Raises ShareError when there is no such tag, StoreError when it names an index.
        """
        if self.ref.digest:
            self.manifest(self.ref.digest)
            return self.ref.digest
        found = self.read_manifest(self.ref.target)
        if found is None:
            raise ShareError(f"there is no {self.ref}", hint=self._known_tags())
        data, media_type = found
        if media_type != MANIFEST_TYPE:
            raise StoreError(f"{self.ref} is no layer, stack or base but {media_type}")
        digest = digest_bytes(data)
        self._seen[digest] = data
        return digest

    def manifest(self, digest: str) -> bytes:
        """A manifest's bytes, not checked. Raises MissingBlobError, ShareError."""
        if digest in self._seen:
            return self._seen[digest]
        found = self.read_manifest(digest)
        if found is None:
            raise MissingBlobError(f"{self.ref.place} has no manifest {digest}")
        return found[0]

    def read_manifest(self, target: str) -> tuple[bytes, str] | None:
        """Bytes and media type of what a tag or digest names; None where nothing does."""
        return self.wire.patiently(lambda: self._read_manifest(target))

    def _read_manifest(self, target: str) -> tuple[bytes, str] | None:
        answer = self.wire.send(
            "GET",
            self.path("manifests", target),
            headers={"Accept": ACCEPT},
            quiet=(404,),
            stream=True,
        )
        with answer:
            if answer.status_code == 404:
                return None
            data = b"".join(self._pieces_of(answer, MANIFEST_LIMIT))
        by_digest = target if target.startswith("sha256:") else None
        said = answer.headers.get("Docker-Content-Digest") or by_digest
        if said and said != digest_bytes(data):
            raise DroppedError(f"{self.ref.host} says {said}, but {digest_bytes(data)} came")
        if "Content-Type" not in answer.headers:  # all have one
            raise DroppedError(f"{self.ref.host} does not say what {target} is")
        return data, answer.headers.get("Content-Type", "").partition(";")[0].strip()

    def head_manifest(self, target: str) -> str | None:
        """The digest of what a tag or digest names; None where nothing does."""
        headers = {"Accept": ACCEPT}
        answer = self.wire.send(
            "HEAD", self.path("manifests", target), headers=headers, quiet=(404,)
        )
        if answer.status_code == 404:
            return None
        said = answer.headers.get("Docker-Content-Digest")
        if said:
            return str(said)
        found = self.read_manifest(target)  # the header is optional
        return digest_bytes(found[0]) if found else None

    def blob(self, item: Descriptor, *, offset: int = 0) -> Iterator[bytes]:
        """A blob's bytes from `offset` on; copes with a registry without ranges.

        A small one is asked for again until its digest is right; others are not checked.
        Raises MissingBlobError, CorruptBlobError, DroppedError, ShareError.
        """
        if not offset and item.size <= SMALL_BYTES:
            yield self.wire.patiently(lambda: self._whole(item))
        else:
            yield from self._from(item, offset)

    def _whole(self, item: Descriptor) -> bytes:
        data = bytearray()
        for piece in self._from(item, 0):
            data += piece
            if len(data) > item.size:
                break
        if (found := digest_bytes(bytes(data))) != item.digest:
            raise DroppedError(
                f"{self.ref.host} was asked for {item.digest}; the {len(data)} bytes that came "
                f"are {found}",
                hint="the transfer or the registry is damaged: try again, or pull from elsewhere",
            )
        return bytes(data)

    def _from(self, item: Descriptor, offset: int) -> Iterator[bytes]:
        url = self.path("blobs", item.digest)
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        answer = self.wire.send("GET", url, headers=headers, quiet=(404, 416), stream=True)
        if answer.status_code == 416:  # it counts otherwise: take all and drop what we have
            answer.close()
            answer = self.wire.send("GET", url, quiet=(404,), stream=True)
        with answer:
            if answer.status_code == 404:
                raise MissingBlobError(f"{self.ref.place} has no blob {item.digest}")
            skip = offset - _starts_at(answer)
            if skip < 0:
                raise DroppedError(f"{self.ref.host} sent bytes from another place than asked for")
            for piece in self._pieces_of(answer, None):
                if skip >= len(piece):
                    skip -= len(piece)
                    continue
                yield piece[skip:]
                skip = 0

    def _pieces_of(self, answer: Any, limit: int | None) -> Iterator[bytes]:
        """An answer's body as it comes. Raises DroppedError when it breaks off."""
        import urllib3

        size = 0
        try:
            while piece := answer.raw.read(READ_BYTES, decode_content=False):
                size += len(piece)
                self.wire.traffic.add(received=len(piece))
                if limit is not None and size > limit:
                    raise StoreError(f"more than {limit} bytes where a manifest should be")
                yield piece
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            if isinstance(error, StoreError):
                raise
            raise DroppedError(
                f"{self.ref.host} broke off after {size} bytes: {type(error).__name__}",
                hint="try again: what has arrived is kept",
            ) from None

    def tags(self, most: int = 50) -> list[str]:
        """Some of the repository's tags."""
        answer = self.wire.send("GET", self.path("tags", f"list?n={most}"), quiet=(404,))
        try:
            found = answer.json().get("tags") if answer.status_code == 200 else None
        except (ValueError, AttributeError):
            return []
        return [tag for tag in found or [] if isinstance(tag, str) and not _internal(tag)]

    def _known_tags(self) -> str:
        with contextlib.suppress(ShareError):
            if tags := self.tags():
                return f"{self.ref.place} has: {', '.join(tags[:20])}"
        return f"check the name; {self.ref.place} has no tag that we may see"

    def has_blob(self, item: Descriptor) -> bool:
        """Whether a blob of this digest and size is there."""
        answer = self.wire.send("HEAD", self.path("blobs", item.digest), quiet=(404,))
        if answer.status_code == 404:
            return False
        said = answer.headers.get("Content-Length")
        return said is None or said == str(item.size)

    def put_manifest(self, data: bytes, target: str, media_type: str = MANIFEST_TYPE) -> bool:
        """Put a manifest under a tag or its digest; whether its subject was taken note of.

        Raises ShareError when what is there afterwards is not what was sent.
        """
        digest, unknown = digest_bytes(data), 0
        for _ in range(self.wire.patience.attempts):
            answer = self.wire.send(
                "PUT",
                self.path("manifests", target),
                headers={"Content-Type": media_type},
                data=data,
                quiet=(400,),
            )
            said = answer.headers.get("Docker-Content-Digest", digest)
            if answer.status_code < 400 and said == digest:
                return "OCI-Subject" in answer.headers
            fault = _text(answer)
            if "BLOB_UNKNOWN" in fault and _names(data, fault):
                unknown += 1
                if unknown == UNKNOWN_TRIES:
                    break
                self.wire.patience.pause(unknown)
            self.wire.traffic.add(retried=1)
        raise ShareError(f"{self.ref.host} did not take manifest {digest}: {fault}")

    def upload(
        self,
        item: Descriptor,
        data: memoryview,
        *,
        mount_from: str | None = None,
        tell: Callable[[int], None] | None = None,
    ) -> bool:
        """Send a blob that is not there; whether it was sent, not mounted. `tell`: bytes sent.

        Raises DroppedError when it won't get through, ShareError for refusals.
        """
        failures = 0
        while True:
            try:
                return self._upload(item, data, mount_from, tell)
            except ShareError as error:
                failures += 1
                lost = isinstance(error, DroppedError) or error.status in _UNDONE
                if not lost or failures >= self.wire.patience.attempts:
                    raise
                self.wire.traffic.add(retried=1)
                self.wire.patience.pause(failures, error.retry_after)
                if self.has_blob(item):  # only the answer was lost
                    return True

    def _upload(
        self,
        item: Descriptor,
        data: memoryview,
        mount_from: str | None,
        tell: Callable[[int], None] | None,
    ) -> bool:
        answer = self._begin(item, mount_from)
        if answer.status_code == 201 and mount_from:
            return False
        url = self._location(answer)
        sent = 0
        if self._pieces and len(data) > PIECE_BYTES:
            try:
                url = self._send_pieces(url, data, _smallest(answer), tell)
                sent = len(data)
            except ShareError as error:
                if error.status not in _NO_PIECES:
                    raise
                self._pieces = False
                raise DroppedError(f"{self.ref.host} takes no pieces") from None
        joint = "&" if "?" in url else "?"
        self.wire.send(
            "PUT",
            f"{url}{joint}digest={quote(item.digest)}",
            headers={"Content-Type": _STREAM, "Content-Length": str(len(data) - sent)},
            data=(lambda: Body(data, tell)) if sent < len(data) else None,
            again=False,
        )
        return True

    def _begin(self, item: Descriptor, mount_from: str | None) -> Any:
        """Begin an upload; status 201 if the blob could be mounted instead."""
        url, headers = self.path("blobs", "uploads/"), {"Content-Length": "0"}
        if mount_from:
            query = f"?mount={item.digest}&from={quote(mount_from)}"
            try:
                return self.wire.send("POST", url + query, headers=headers)
            except ShareError as error:  # we may not read there, or it knows no mounting
                if error.status not in _NO_MOUNT:
                    raise
        return self.wire.send("POST", url, headers=headers)

    def _send_pieces(
        self, url: str, data: memoryview, smallest: int, tell: Callable[[int], None] | None
    ) -> str:
        """Send all bytes piece by piece; where the upload is to be ended."""
        offset = failures = 0
        size = max(PIECE_BYTES, smallest)
        while offset < len(data):
            end = min(offset + size, len(data))
            headers = {
                "Content-Type": _STREAM,
                "Content-Range": f"{offset}-{end - 1}",
                "Content-Length": str(end - offset),
            }
            piece = data[offset:end]
            try:
                answer = self.wire.send(
                    "PATCH", url, headers=headers, data=lambda p=piece: Body(p, tell), again=False
                )
                taken = _KEPT.fullmatch(answer.headers.get("Range", ""))
                if taken and offset < int(taken[1]) + 1 < end:  # not all of it: go on from there
                    end = int(taken[1]) + 1
                url, offset, failures = self._location(answer), end, 0
            except DroppedError as error:
                failures += 1
                self.wire.traffic.add(retried=1)
                if failures >= self.wire.patience.attempts:
                    raise
                self.wire.patience.pause(failures, error.retry_after)
                url, kept = self._kept(url)
                if kept > len(data):
                    raise DroppedError(f"{self.ref.host} has more bytes than were sent") from None
                failures, offset = (0 if kept > offset else failures), kept
        return url

    def _kept(self, url: str) -> tuple[str, int]:
        """Where an upload goes on, and how many bytes are there. Raises DroppedError if it's lost.

        Debian's docker-registry 2.8 keeps an upload only if no piece broke off inside.
        """
        answer = self.wire.send("GET", url, quiet=tuple(_UNDONE))
        match = _KEPT.fullmatch(answer.headers.get("Range", ""))
        if answer.status_code in _UNDONE or match is None:
            raise DroppedError(f"{self.ref.host} has lost an upload that broke off")
        there = int(match[1]) + 1
        if there == 1:  # "0-0" is said of one byte and of none; begin again to be sure
            there = 0
        return (self._location(answer) if "Location" in answer.headers else url), there

    def _location(self, answer: Any) -> str:
        """Where to go on; with TLS kept, which proxies before a registry often drop."""
        said = answer.headers.get("Location")
        if not said:
            raise DroppedError(f"{self.ref.host} does not say where to upload to")
        url = urljoin(str(answer.url), str(said))
        parts = urlsplit(url)
        if parts.scheme == "http" and f"https://{parts.netloc}" == self.wire.origin:
            url = parts._replace(scheme="https").geturl()
        return url


def _in_full(ref: RegistryRef) -> str:
    """The repository as the API knows it: Docker Hub's own have no user in front."""
    if ref.host in ("docker.io", "index.docker.io") and "/" not in ref.repository:
        return f"library/{ref.repository}"
    return ref.repository


def _internal(tag: str) -> bool:
    """Whether a tag is the referrers tag schema's and not for people."""
    return re.fullmatch(r"sha256-[0-9a-f]{64}.*", tag) is not None


def _starts_at(answer: Any) -> int:
    """The first byte's offset in a blob."""
    if answer.status_code != 206:
        return 0
    match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if match is None:
        raise DroppedError("part of a blob came, but not which part")
    return int(match[1])


def _smallest(answer: Any) -> int:
    """The smallest piece that the registry takes."""
    said = answer.headers.get("OCI-Chunk-Min-Length", "")
    return int(said) if said.isdigit() else 0


def _names(data: bytes, fault: str) -> bool:
    """Whether the digests in a refusal are a manifest's own; others tell of bytes that changed on
    the way."""
    return all(digest.encode() in data for digest in re.findall(r"sha256:\w{64}", fault))


def _text(answer: Any) -> str:
    return f"{answer.status_code} {answer.text[:1000]!r}"
