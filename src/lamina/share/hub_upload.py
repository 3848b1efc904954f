"""One commit to a Hub repository: only what differs, all of it or nothing."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

from lamina.bases import hub
from lamina.bases.hub import HubRepo, reason
from lamina.bases.quiet import quiet
from lamina.core.errors import MissingBlobError, ShareError, StoreError, UsageError
from lamina.core.manifests import (
    REF_NAME,
    Descriptor,
    ImageIndex,
)
from lamina.share.hub import BLOB, INDEX, LAYOUT, HubPlace, Progress, blob_file, is_stack
from lamina.share.hub_source import HubSource
from lamina.share.parcel import Parcel
from lamina.store.layout import Layout, Store
from lamina.store.refs import SUBJECT

SMALL = 64 << 10
"""Files up to this many bytes are uploaded together."""
_MADE_BY_THE_HUB = (".gitattributes", ".gitignore", "README.md", "LICENSE", "LICENSE.md")
"""What a repository may hold and still count as empty."""

Content = bytes | Path


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


def others_evidence(
    source: HubSource, parcel: Parcel
) -> Iterator[tuple[Descriptor, tuple[str, ...]]]:
    """(index entry, its files) of what others have added there about the same objects, such as
    signatures. What is damaged or not there whole is left out."""
    own = {item.digest for item in parcel.evidence}
    known = {parcel.root.digest, *own, *(item.digest for item in parcel.manifests)}
    for item in source.index.manifests:
        subject = (item.annotations or {}).get(SUBJECT)
        if subject not in known or item.digest in known:
            continue
        try:
            manifest = source.parse(item.digest)
        except (StoreError, MissingBlobError):
            continue
        digests = (item.digest, manifest.config.digest, *(b.digest for b in manifest.layers))
        if all(map(source.has, digests)):
            known.add(item.digest)
            yield item, tuple(map(blob_file, digests))


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
    ours = [name for name in repo.files if BLOB.fullmatch(name)]
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
