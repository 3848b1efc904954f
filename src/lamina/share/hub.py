"""A Hub repository of a stack: what lies where in it, reading it as a source, and one commit to it.

```
README.md                     the model card
adapter_config.json           the whole stack as one PEFT adapter, for everybody else's tools
adapter_model.safetensors
lamina.json                   how that adapter was compared with the stack
lamina/oci-layout             the stack itself: an OCI image layout, as a store is one (ADR 20)
lamina/index.json             the stack first, named `latest`; then its evidence
lamina/blobs/sha256/<hex>
```

Reading and writing go through huggingface_hub, which finds token, endpoint and proxies itself.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # not in its __all__
    build_hf_headers,
    hf_raise_for_status,
    http_stream_backoff,
)

from lamina.bases import hub
from lamina.bases.hub import HubRepo, reason
from lamina.bases.quiet import quiet
from lamina.core.errors import (
    DroppedError,
    MissingBlobError,
    ShareError,
    StoreError,
    UsageError,
)
from lamina.core.manifests import (
    MANIFEST_TYPE,
    REF_NAME,
    Descriptor,
    ImageIndex,
    ImageManifest,
)
from lamina.share.parcel import Parcel
from lamina.share.reference import HubRef, parse_place
from lamina.store.layout import LAYOUT_FILE, Layout, Store
from lamina.store.manifests import MANIFEST_LIMIT
from lamina.store.refs import SUBJECT, bare
from lamina.store.strict import parse_strictly

FOLDER = "lamina/"
INDEX = f"{FOLDER}index.json"
LAYOUT = f"{FOLDER}{LAYOUT_FILE}"
BLOBS = f"{FOLDER}blobs/sha256/"
SECONDS = 30.0
"""How long the Hub may take to say what a repository has."""
SMALL = 64 << 10
"""Files up to this many bytes are uploaded together."""
_AGAIN = (408, 429, 500, 502, 503, 504)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BLOB = re.compile(re.escape(BLOBS) + r"[0-9a-f]{64}")
_MADE_BY_THE_HUB = (".gitattributes", ".gitignore", "README.md", "LICENSE", "LICENSE.md")
"""What a repository may hold and still count as empty."""

Content = bytes | Path
Progress = Callable[[str], None]


@dataclass(frozen=True)
class HubPlace:
    """A branch of a repository that may not exist yet, or a revision to read."""

    repo: str
    """`org/name`."""
    revision: str | None = None
    endpoint: str | None = None
    """In place of the library's own."""

    @property
    def branch(self) -> str:
        """The branch that is written to. Raises UsageError for a commit."""
        if self.revision is not None and _COMMIT.fullmatch(self.revision):
            raise UsageError(
                f"{self} is a commit, which nothing can be pushed to",
                hint="push to a branch: hf:org/name or hf:org/name@branch",
            )
        return self.revision or "main"

    def __str__(self) -> str:
        return f"hf:{self.repo}" + (f"@{self.revision}" if self.revision else "")

    def look(self) -> HubRepo:
        """The repository as it is now. Raises ShareError."""
        return hub.find(
            self.repo, self.revision, endpoint=self.endpoint, seconds=SECONDS, raises=ShareError
        )

    def look_if_there(self) -> HubRepo | None:
        """The same; the main branch, from which others start, where there is no such branch; None
        where there is no such repository, or none that we may see."""
        try:
            return self.look()
        except ShareError as error:
            if isinstance(error.__cause__, RevisionNotFoundError) and self.revision:
                return replace(self, revision=None).look_if_there()
            if type(error.__cause__) is RepositoryNotFoundError:  # a gated one is there
                return None
            raise


def parse_hub_place(text: str) -> HubPlace:
    """A place as `share.reference` has it. Raises UsageError."""
    found = parse_place(text)
    if not isinstance(found, HubRef):
        raise UsageError(f"{text} is no repository of the Hub", hint="for example hf:me/support")
    return HubPlace(found.repository, found.revision)


def is_stack(repo: HubRepo) -> bool:
    """Whether lamina made it."""
    return INDEX in repo.files


def blob_file(digest: str) -> str:
    """Where a blob or manifest lies."""
    return BLOBS + digest.removeprefix("sha256:")


# -- reading ---------------------------------------------------------------------------------------


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


# -- writing ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Upload:
    """One commit: what it adds or replaces, and what of an older push it removes."""

    place: HubPlace
    parent: str | None
    """The commit that it was planned over; None for a repository that is yet to be made."""
    files: Mapping[str, Content] = field(hash=False)
    """path -> content of what differs from what is there."""
    removed: tuple[str, ...]
    unchanged: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """To be uploaded, at most: the Hub may know some of it already."""
        return sum(map(_size, self.files.values()))


def layout(store: Store, parcel: Parcel, kept: Iterable[Descriptor] = ()) -> dict[str, Content]:
    """path -> content of a parcel as an image layout, `kept` being others' evidence to list too.

    Raises StoreError for damaged blobs.
    """
    root = parcel.root.model_copy(update={"annotations": {REF_NAME: "latest"}})
    about = [
        item.model_copy(update={"annotations": {SUBJECT: parcel.subjects[item.digest]}})
        for item in parcel.evidence
    ]
    base = [parcel.base] if parcel.base is not None else []
    index = ImageIndex(manifests=(root, *base, *about, *kept))
    files: dict[str, Content] = {LAYOUT: Layout().to_bytes(), INDEX: index.to_bytes()}
    for item in (*parcel.blobs, *parcel.manifests, *parcel.evidence):
        made = parcel.made.get(item.digest)
        files[blob_file(item.digest)] = store.path(item.digest) if made is None else made
    return files


def others_evidence(source: HubSource, parcel: Parcel) -> tuple[Descriptor, ...]:
    """What others have added in the repository about the same objects, such as signatures."""
    own = {item.digest for item in parcel.evidence}
    known = {parcel.root.digest, *own, *(item.digest for item in parcel.manifests)}
    kept: list[Descriptor] = []
    for item in source.index.manifests:
        subject = (item.annotations or {}).get(SUBJECT)
        if subject in known and item.digest not in own:
            kept.append(item)
            known.add(item.digest)
    return tuple(kept)


def plan(
    place: HubPlace,
    repo: HubRepo | None,
    files: Mapping[str, Content],
    kept: Iterable[str] = (),
) -> Upload:
    """Compare with what is there. `kept`: paths of others' evidence, which stay.

    Raises UsageError for a repository that holds something else.
    """
    if repo is None:
        return Upload(place, None, dict(files), (), ())
    foreign = [name for name in repo.files if name not in _MADE_BY_THE_HUB]
    if foreign and not is_stack(repo):
        raise UsageError(
            f"{place} holds something that lamina did not push",
            faults=foreign,
            hint="push to another repository",
        )
    same = tuple(name for name, content in files.items() if _is_there(repo, name, content))
    wanted = {*files, *kept}
    ours = [name for name in repo.files if _BLOB.fullmatch(name)]
    removed = tuple(name for name in ours if name not in wanted)
    changed = {name: content for name, content in files.items() if name not in same}
    return Upload(place, repo.commit, changed, removed, same)


def _is_there(repo: HubRepo, name: str, content: Content) -> bool:
    """Whether the repository has a file with these bytes."""
    stated = repo.digests.get(name)
    if stated is None or repo.sizes.get(name) != _size(content):
        return False
    return hub.own_digest(content, stated) == stated


def _size(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def send(upload: Upload, message: str, *, private: bool, progress: Progress) -> str:
    """Make the repository where there is none, upload, commit; the commit that now holds all.

    Nothing of the repository changes before the commit, which comes last and is one: whoever reads
    sees the old state or the new. Raises ShareError.
    """
    api = HfApi(endpoint=upload.place.endpoint)
    try:
        with quiet():
            if not upload.files and not upload.removed and upload.parent:
                return upload.parent
            parent = upload.parent or _make(api, upload.place, private=private)
            if upload.place.branch != "main":
                api.create_branch(upload.place.repo, branch=upload.place.branch, exist_ok=True)
            additions = [
                CommitOperationAdd(name, content) for name, content in upload.files.items()
            ]
            _upload(api, upload, additions, progress)
            gone = [CommitOperationDelete(name) for name in upload.removed]
            return _commit(api, upload, [*additions, *gone], message, parent)
    except HfHubHTTPError as error:
        raise _refused(upload.place, error) from error
    except ShareError:
        raise
    except Exception as error:  # as in HubSource
        raise ShareError(
            f"{upload.place}: nothing was committed: {reason(_root_cause(error))}",
            hint="push again: what is uploaded already is not uploaded twice",
        ) from error


def _make(api: HfApi, place: HubPlace, *, private: bool) -> str:
    """Make a repository; the commit that it begins with."""
    api.create_repo(place.repo, private=private or None, exist_ok=True)
    return replace(place, revision=None).look().commit


def _upload(
    api: HfApi, upload: Upload, additions: list[CommitOperationAdd], progress: Progress
) -> None:
    """Upload what goes to large file storage: small files together, large ones one by one."""
    sizes = {name: _size(content) for name, content in upload.files.items()}
    small = [each for each in additions if sizes[each.path_in_repo] <= SMALL]
    large = [each for each in additions if sizes[each.path_in_repo] > SMALL]
    batches = [batch for batch in (small, *([each] for each in large)) if batch]
    done, total = 0, max(upload.bytes, 1)
    for batch in batches:
        progress(f"{upload.place}: {done / 1e6:.1f} of {total / 1e6:.1f} MB uploaded")
        api.preupload_lfs_files(
            upload.place.repo, batch, revision=upload.place.branch, free_memory=False
        )
        done += sum(sizes[each.path_in_repo] for each in batch)


def _commit(
    api: HfApi,
    upload: Upload,
    operations: list[CommitOperationAdd | CommitOperationDelete],
    message: str,
    parent: str,
) -> str:
    """One commit over `parent`. An answer that got lost is looked for before it counts as none."""
    try:
        return str(
            api.create_commit(
                upload.place.repo,
                operations,
                commit_message=message,
                revision=upload.place.branch,
                parent_commit=parent,
            ).oid
        )
    except Exception as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise
        return _landed(upload, parent, error)


def _landed(upload: Upload, parent: str, error: Exception) -> str:
    """The commit, if it came about although its answer did not come; else the error."""
    now = upload.place.look_if_there()
    if now is not None and now.commit != parent:
        gone = not set(upload.removed) & set(now.files)
        if gone and all(_is_there(now, name, each) for name, each in upload.files.items()):
            return now.commit
    raise error


def _refused(place: HubPlace, error: HfHubHTTPError) -> ShareError:
    """What the Hub's refusal means for whoever pushes."""
    status = error.response.status_code
    hints = {
        401: "log in with `hf auth login`, or set HF_TOKEN to a token that may write",
        403: f"the token may not write to {place.repo}: use one that may, or another name",
        404: "check the name; a private repository needs `hf auth login`",
        409: "somebody else pushed meanwhile; look at what is there, then push again",
        412: "somebody else pushed meanwhile; look at what is there, then push again",
        429: "the Hub takes no more requests from you for now: wait, then push again",
    }
    return ShareError(
        f"{place}: nothing was committed: {reason(error)}",
        faults=[error.server_message] if error.server_message else (),
        hint=hints.get(status, "push again later: what is uploaded already is not uploaded twice"),
    )


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
