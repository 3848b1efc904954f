"""A Hub repository at one commit as a place that objects come from."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from huggingface_hub import hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # not in its __all__
    build_hf_headers,
    hf_raise_for_status,
    http_stream_backoff,
)

from lamina.bases import hub
from lamina.bases.hub import HubRepo, reason
from lamina.core.errors import (
    DroppedError,
    MissingBlobError,
    ShareError,
    StoreError,
)
from lamina.core.manifests import (
    MANIFEST_TYPE,
    Descriptor,
    ImageIndex,
    ImageManifest,
)
from lamina.share.hub import INDEX, SECONDS, HubPlace, Progress, blob_file
from lamina.store.manifests import MANIFEST_LIMIT
from lamina.store.refs import SUBJECT, bare
from lamina.store.strict import parse_strictly

_AGAIN = (408, 429, 500, 502, 503, 504)


class HubSource:
    """A repository at one commit as a `BlobSource`.

    Manifests and configs, many and small, are fetched side by side beforehand; payloads are not.
    """

    def __init__(self, repo: HubRepo, work: Path, place: HubPlace, progress: Progress) -> None:
        """`work`: a folder for what is fetched, which the caller removes. Raises ShareError."""
        self._repo, self._work, self._place, self._progress = repo, work, place, progress
        self._folder = work
        self.fetched = 0
        """Bytes of manifests, configs and the index."""
        self._bring([INDEX])
        self.index = self._index()
        self._bring_small()

    def _bring(self, names: Iterable[str]) -> None:
        """Fetch those of the files that are there and small."""
        sizes = self._repo.sizes
        wanted = [name for name in names if sizes.get(name, MANIFEST_LIMIT + 1) <= MANIFEST_LIMIT]
        if wanted:
            self._folder = hub.download(
                self._repo,
                self._work,
                endpoint=self._place.endpoint,
                progress=self._progress,
                wanted=wanted,
                raises=ShareError,
            )
            self.fetched += sum(sizes[name] for name in wanted)

    def _bring_small(self) -> None:
        """Manifests that the index lists, those that they carry, and the configs of all."""
        new = {item.digest for item in self.index.manifests}
        known: set[str] = set()
        while new:
            self._bring(map(blob_file, sorted(new)))
            known |= new
            parsed = [found for found in map(self._glance, sorted(new)) if found is not None]
            carried = (b for found in parsed for b in found.layers if b.mediaType == MANIFEST_TYPE)
            new = {item.digest for item in (*carried, *(found.config for found in parsed))} - known

    def _glance(self, digest: str) -> ImageManifest | None:
        """A manifest that was fetched; None for what is none: `look` says what is wrong with it."""
        path = self._folder / blob_file(digest)
        try:
            return parse_strictly(ImageManifest, path.read_bytes(), digest)
        except (OSError, StoreError):
            return None

    def _index(self) -> ImageIndex:
        path = self._folder / INDEX
        if not path.is_file():
            raise ShareError(
                f"hf:{self._repo.name} has no {INDEX} of at most {MANIFEST_LIMIT} bytes",
                hint="pull another revision, or ask whoever pushed it",
            )
        return parse_strictly(ImageIndex, path.read_bytes(), f"{INDEX} of hf:{self._repo.name}")

    @property
    def root(self) -> Descriptor:
        """The object that the repository is of. Raises StoreError when there is not exactly one."""
        named = [item for item in self.index.manifests if item.ref_name is not None]
        if len(named) != 1:
            raise StoreError(
                f"{INDEX} of hf:{self._repo.name} names {len(named)} objects, not one",
                hint="its sender's lamina is newer, or it was made by hand: ask the sender",
            )
        return named[0]

    def has(self, digest: str) -> bool:
        """Whether the repository lists a blob or manifest."""
        return blob_file(digest) in self._repo.files

    def manifest(self, digest: str) -> bytes:
        """A manifest's bytes. Raises MissingBlobError, ShareError."""
        return self._whole(digest, MANIFEST_LIMIT)

    def parse(self, digest: str) -> ImageManifest:
        """A manifest, unchecked against its digest. Raises StoreError, ShareError."""
        return parse_strictly(ImageManifest, self.manifest(digest), f"manifest {digest}")

    def blob(self, item: Descriptor, *, offset: int = 0) -> Iterator[bytes]:
        """A blob's bytes from `offset` on. Raises MissingBlobError, ShareError."""
        name = self._name(item.digest)
        at_hand = self._folder / name
        if at_hand.is_file():
            yield at_hand.read_bytes()[offset:]
        else:
            yield from self._stream(name, offset)

    def referrers(self, digest: str) -> tuple[Descriptor, ...]:
        """What the index lists about a manifest."""
        return tuple(
            bare(item)
            for item in self.index.manifests
            if (item.annotations or {}).get(SUBJECT) == digest
        )

    def _whole(self, digest: str, limit: int) -> bytes:
        name = self._name(digest)
        at_hand = self._folder / name
        if at_hand.is_file():
            return at_hand.read_bytes()
        data = bytearray()
        for piece in self._stream(name, 0):
            data += piece
            if len(data) > limit:
                raise ShareError(f"{name} of hf:{self._repo.name} has more than {limit} bytes")
        return bytes(data)

    def _name(self, digest: str) -> str:
        name = blob_file(digest)
        if name not in self._repo.files:
            raise MissingBlobError(
                f"hf:{self._repo.name}@{self._repo.commit[:12]} lacks {digest}",
                hint="it was not pushed whole: ask whoever pushed it to push again",
            )
        return name

    def _stream(self, name: str, offset: int) -> Iterator[bytes]:
        """A file's bytes by plain HTTP, which serves ranges; a token goes to the Hub alone."""
        url = hf_hub_url(
            self._repo.name, name, revision=self._repo.commit, endpoint=self._place.endpoint
        )
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        try:
            with http_stream_backoff(
                "GET",
                url,
                headers=headers,
                follow_redirects=True,
                timeout=SECONDS,
                retry_on_exceptions=(),  # whoever fetches goes on where it broke off
                retry_on_status_codes=(),
            ) as answer:
                hf_raise_for_status(answer)
                left = offset if answer.status_code == 200 else 0  # it knows no ranges
                for piece in answer.iter_bytes():  # as it comes: what came counts when it breaks
                    kept = piece[left:]
                    left -= len(piece) - len(kept)
                    if kept:
                        yield kept
        except HfHubHTTPError as error:
            status = error.response.status_code
            again = status in _AGAIN
            failed = (DroppedError if again else ShareError)(
                f"{name} of hf:{self._repo.name} was refused: {reason(error)}",
                faults=[error.server_message] if error.server_message else (),
                hint="pull again: what is there whole is kept",
            )
            failed.status = status
            asked = error.response.headers.get("Retry-After", "")
            failed.retry_after = float(asked) if asked.isdigit() else None
            raise failed from error
        except Exception as error:  # one library, many transports: each has its own exceptions
            raise DroppedError(
                f"{name} of hf:{self._repo.name} broke off: {reason(error)}",
                hint="pull again: what is there whole is kept",
            ) from error
