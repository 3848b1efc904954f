"""Refs: `index.json`, which says what the store keeps and what it is called.

Every change goes through one door, `_editing`: under a lock between processes, the new index is
validated as a whole and then replaces the old one atomically. An entry's kinds:

- a name: annotated with REF_NAME `support:v3`, or `base/smollm2-135m:latest` for a base
- a root: no REF_NAME; kept until `remove_root` (layers, bases)
- evidence: a root annotated with SUBJECT; goes when its subject goes
"""

import contextlib
import difflib
import enum
import errno
from collections.abc import Iterator, Mapping
from pathlib import Path

from lamina.core.digest import short
from lamina.core.errors import StoreError, UnknownNameError, UsageError
from lamina.core.files import atomic_write, locked
from lamina.core.manifests import MANIFEST_TYPE, REF_NAME, Descriptor, ImageIndex
from lamina.core.names import DigestPrefix, Name, Reference, parse_name
from lamina.store.manifests import ManifestStore
from lamina.store.strict import parse_strictly

SUBJECT = "dev.lamina.subject"
"""On an index entry: digest of the manifest that this piece of evidence speaks of."""
FROM = "dev.lamina.from"
"""On an index entry of evidence: where it was pulled from. What others measured is shown, but it is
not taken for a measurement of one's own."""
BASE_PREFIX = "base/"
"""Before a base's name in REF_NAME; no stack's name can have it."""
INDEX_LIMIT = 64 << 20
"""Largest index.json in bytes: some 200,000 entries."""
LOCK_FILE = "lamina.lock"
LOCK_SECONDS = 30.0
_RECOVER = (
    "the blobs are untouched: put index.json back from a backup, or pull into a fresh store; "
    "`lamina verify` shows the damage. It is never reset by itself"
)


class Anything(enum.Enum):
    """The type of ANYTHING."""

    ANYTHING = enum.auto()


ANYTHING = Anything.ANYTHING
"""As `expected`: move the name whatever it points at now."""

Expected = str | None | Anything


class RefStore(ManifestStore):
    """Manifests, and the index that lists and names them."""

    def __init__(self, root: Path, *, lock_seconds: float = LOCK_SECONDS) -> None:
        super().__init__(root)
        self.lock_seconds = lock_seconds
        self._parsed: tuple[bytes, ImageIndex] | None = None

    @property
    def index_path(self) -> Path:
        """The layout's `index.json`."""
        return self.root / "index.json"

    def entries(self) -> tuple[Descriptor, ...]:
        """The index as it is now, oldest entry first. Raises StoreError when it is damaged."""
        return self._index().manifests

    def tag(self, name: Name, target: Descriptor, *, expected: Expected) -> None:
        """Let `name` point at `target`, if it points at `expected` now (None: at nothing).

        When it points at `target` already nothing is written. Raises StoreError when somebody
        else moved it, StoreBusyError, MissingBlobError, UsageError.
        """
        with self._editing() as draft:
            current = draft.digest_of(name.full)
            if current != target.digest:
                _check_expected(name, current, expected)
                draft.put(self._entry(target, {REF_NAME: name.full}))

    def move(self, name: str, target: Descriptor, *, expected: Expected) -> int:
        """Give `target` the next fixed version of `name` and let `latest` point at it, in one step.

        Returns the version. When `latest` is `target` already, returns its version and writes
        nothing. Raises as `tag`.
        """
        latest = Name(name)
        with self._editing() as draft:
            versions = {
                version: digest
                for tag, digest in draft.tags(name).items()
                if (version := Name(name, tag).version) is not None
            }
            current = draft.digest_of(latest.full)
            same = [v for v, digest in versions.items() if digest == target.digest]
            if current == target.digest and same:
                return max(same)
            if current != target.digest:
                _check_expected(latest, current, expected)
            number = max(versions, default=0) + 1
            draft.put(self._entry(target, {REF_NAME: latest.at_version(number).full}))
            draft.put(self._entry(target, {REF_NAME: latest.full}))
            return number

    def add_root(
        self, target: Descriptor, annotations: Mapping[str, str] | None = None
    ) -> Descriptor:
        """Keep a manifest without naming it; its bare descriptor. Idempotent.

        `annotations` are added to those that the entry has. Raises MissingBlobError.
        """
        return self.add_roots({target: annotations or {}})[0]

    def add_roots(self, targets: Mapping[Descriptor, Mapping[str, str]]) -> tuple[Descriptor, ...]:
        """The same for several, each with its annotations, in one step."""
        with self._editing() as draft:
            entries = []
            for target, annotations in targets.items():
                old = draft.root(target.digest)
                entry = self._entry(target, {**(_notes(old) if old else {}), **annotations})
                if entry != old:
                    draft.put(entry)
                entries.append(bare(entry))
        return tuple(entries)

    def remove_root(self, digest: str) -> bool:
        """Stop keeping an unnamed manifest (or evidence) for its own sake; False if none was."""
        with self._editing() as draft:
            old = draft.root(digest)
            if old is not None:
                draft.entries.remove(old)
        return old is not None

    def untag(self, name: Name) -> None:
        """Remove one tag. What it pointed at stays until `collect`. Raises UnknownNameError."""
        with self._editing() as draft:
            if not draft.drop(name.full):
                raise self._unknown(name)

    def untag_all(self, name: str) -> tuple[str, ...]:
        """Remove a name with all its tags; the tags. Raises UnknownNameError."""
        with self._editing() as draft:
            tags = tuple(draft.tags(Name(name).name))
            if not tags:
                raise self._unknown(Name(name))
            for tag in tags:
                draft.drop(Name(name, tag).full)
        return tags

    def names(self) -> dict[str, dict[str, Descriptor]]:
        """name -> tag -> bare descriptor, sorted by name; bases are not among them."""
        found: dict[str, dict[str, Descriptor]] = {}
        for entry in self.entries():
            if name := _stack_name(entry):
                found.setdefault(name.name, {})[name.tag] = bare(entry)
        return dict(sorted(found.items()))

    def resolve(self, ref: Reference) -> Descriptor:
        """The bare descriptor behind a name, or behind a digest or its first digits.

        A name is a stack's, else a base's. Digits are looked up among the index's entries and the
        manifests that these carry (a layer in a stack); a whole digest among all that is stored.
        Raises UnknownNameError (with near names), UsageError when several begin with the digits,
        StoreError when the manifest is damaged.
        """
        if isinstance(ref, DigestPrefix):
            return self._by_digits(ref)
        wanted = {ref.full, BASE_PREFIX + ref.full}
        found = {e.ref_name: e.digest for e in self.entries() if e.ref_name in wanted}
        if not found:
            raise self._unknown(ref)
        return self.describe(found.get(ref.full) or found[BASE_PREFIX + ref.full])

    def referrers(
        self, digest: str, artifact_type: str | None = None, *, own: bool = False
    ) -> tuple[Descriptor, ...]:
        """Evidence whose subject is this manifest, oldest first, bare; optionally of one type.

        `own`: without what came from elsewhere.
        """
        return tuple(
            bare(entry)
            for entry in self.entries()
            if _notes(entry).get(SUBJECT) == digest
            and (artifact_type is None or self._kind(entry) == artifact_type)
            and not (own and FROM in _notes(entry))
        )

    def _index(self) -> ImageIndex:
        """`index.json`, parsed again only when its bytes changed."""
        try:
            if self.index_path.exists() and not self.index_path.is_file():
                raise OSError(errno.EINVAL, "it is no file")
            with self.index_path.open("rb") as handle:
                data = handle.read(INDEX_LIMIT + 1)
        except OSError as error:
            reason = error.strerror or str(error)
            raise StoreError(f"cannot read {self.index_path}: {reason}", hint=_RECOVER) from error
        if len(data) > INDEX_LIMIT:
            raise StoreError(f"{self.index_path} has more than {INDEX_LIMIT} bytes", hint=_RECOVER)
        if self._parsed is None or self._parsed[0] != data:
            try:
                index = parse_strictly(ImageIndex, data, str(self.index_path))
            except StoreError as error:
                raise StoreError(error.message, faults=error.faults, hint=_RECOVER) from None
            self._parsed = (data, index)
        return self._parsed[1]

    def _kind(self, entry: Descriptor) -> str:
        """An entry's artifact type; other tools drop it when they rewrite the index."""
        return entry.artifactType or self.manifest(entry.digest).artifactType

    def _entry(self, target: Descriptor, annotations: Mapping[str, str]) -> Descriptor:
        """An index entry for a stored, complete manifest, described from its own bytes."""
        manifest, described = self._load(target.digest)
        self._require(manifest, f"{manifest.artifactType} {target.digest}")
        notes = dict(annotations)
        if manifest.subject is not None and REF_NAME not in notes:
            notes[SUBJECT] = manifest.subject.digest
        return described.model_copy(update={"annotations": notes or None})

    def _by_digits(self, ref: DigestPrefix) -> Descriptor:
        whole = f"sha256:{ref.hex}"
        if len(ref.hex) == 64 and self.has(whole):
            with contextlib.suppress(StoreError):
                return self.describe(whole)
            raise UsageError(f"{whole} is a blob, not a layer, stack or base")
        found = {d.digest: d for d in self._listed() if d.digest.startswith(whole)}
        if not found:
            raise UnknownNameError(
                f"nothing has the digest {ref}", hint="check the digits, or `lamina pull` it first"
            )
        if len(found) > 1:
            raise UsageError(
                f"{ref} is ambiguous",
                faults=[f"{d.digest} {d.artifactType or ''}".rstrip() for d in found.values()],
                hint="give more digits",
            )
        return self.describe(next(iter(found)))

    def _listed(self) -> Iterator[Descriptor]:
        """The index's entries, and the manifests that they carry as blobs."""
        for entry in self.entries():
            yield entry
            if SUBJECT not in _notes(entry):
                with contextlib.suppress(StoreError):  # `verify` reports it
                    layers = self.manifest(entry.digest).layers
                    yield from (item for item in layers if item.mediaType == MANIFEST_TYPE)

    def _unknown(self, name: Name) -> UnknownNameError:
        tags: dict[str, list[str]] = {}
        for entry in self.entries():
            ref = (entry.ref_name or "").removeprefix(BASE_PREFIX)
            with contextlib.suppress(UsageError):
                known = parse_name(ref)
                tags.setdefault(known.name, []).append(known.tag)
        if name.name in tags:
            have = ", ".join(tags[name.name])
            return UnknownNameError(
                f"{name.name!r} has no tag {name.tag!r}", hint=f"it has: {have}"
            )
        near = difflib.get_close_matches(name.name, tags, n=3)
        shown = near or sorted(tags)
        lead = "did you mean" if near else "known"
        return UnknownNameError(
            f"nothing is called {name.name!r}",
            hint=f"{lead}: {', '.join(shown[:20])}" if shown else "the store has no names yet",
        )

    @contextlib.contextmanager
    def _editing(self) -> Iterator["_Draft"]:
        """Change the index: lock, edit the draft, validate it as a whole, replace atomically."""
        with self._locked():
            before = self.entries()
            draft = _Draft(before)
            yield draft
            after = tuple(draft.entries)
            if after != before:
                _validate(before, after)
                self._replace_entries(after)

    def _replace_entries(self, entries: tuple[Descriptor, ...]) -> None:
        """Rewrite the index; under the lock only."""
        data = self._index().model_copy(update={"manifests": entries}).to_bytes()
        if len(data) > INDEX_LIMIT:
            raise StoreError(
                f"the store's index would have more than {INDEX_LIMIT} bytes",
                hint="remove names and evidence that nobody needs, or begin another store",
            )
        atomic_write(self.index_path, data)

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the store's lock between processes and threads. Raises StoreBusyError."""
        return locked(self.root / LOCK_FILE, self.lock_seconds)


class _Draft:
    """The index's entries while they are being edited."""

    def __init__(self, entries: tuple[Descriptor, ...]) -> None:
        self.entries = list(entries)

    def digest_of(self, ref_name: str) -> str | None:
        """What a full name points at."""
        return next((e.digest for e in self.entries if e.ref_name == ref_name), None)

    def root(self, digest: str) -> Descriptor | None:
        """The unnamed entry of a manifest."""
        return next((e for e in self.entries if e.digest == digest and e.ref_name is None), None)

    def tags(self, name: str) -> dict[str, str]:
        """tag -> digest for one name, oldest first."""
        known = ((_stack_name(entry), entry.digest) for entry in self.entries)
        return {n.tag: digest for n, digest in known if n is not None and n.name == name}

    def put(self, entry: Descriptor) -> None:
        """Replace the entry of the same name (or the same root), else append."""
        for place, old in enumerate(self.entries):
            same_root = entry.ref_name is None and old.digest == entry.digest
            if old.ref_name == entry.ref_name and (entry.ref_name is not None or same_root):
                self.entries[place] = entry
                return
        self.entries.append(entry)

    def drop(self, ref_name: str) -> bool:
        """Remove the entry of a full name; False if there is none."""
        kept = [e for e in self.entries if e.ref_name != ref_name]
        dropped = len(kept) < len(self.entries)
        self.entries = kept
        return dropped


def bare(entry: Descriptor) -> Descriptor:
    """A descriptor without annotations: what it is, not what somebody calls it."""
    return entry.model_copy(update={"annotations": None})


def index_faults(entries: tuple[Descriptor, ...]) -> list[str]:
    """What is wrong with an index taken as a whole, one sentence each."""
    faults = []
    refs: set[str] = set()
    for entry in entries:
        if entry.mediaType != MANIFEST_TYPE:
            faults.append(f"entry {entry.digest} is no image manifest but {entry.mediaType}")
        if entry.ref_name is not None:
            if entry.ref_name in refs:
                faults.append(f"the name {entry.ref_name} is listed twice")
            refs.add(entry.ref_name)
    names = {ref.partition(":")[0] for ref in refs}
    both = sorted(n for n in names if BASE_PREFIX + n in names)
    return faults + [f"{name!r} names a base and a stack" for name in both]


def _validate(before: tuple[Descriptor, ...], after: tuple[Descriptor, ...]) -> None:
    """Raises UsageError for what a change makes wrong (not for what was wrong before)."""
    old = index_faults(before)
    if faults := [fault for fault in index_faults(after) if fault not in old]:
        raise UsageError("the index can't be changed so", faults=faults, hint="choose another name")


def _check_expected(name: Name, current: str | None, expected: Expected) -> None:
    if expected is ANYTHING or current == expected:
        return
    now = f"points at {short(current)}" if current else "does not exist"
    wanted = f"to point at {short(expected)}" if isinstance(expected, str) else "not to exist"
    raise StoreError(
        f"somebody else moved {name.full}: it {now}, expected {wanted}",
        hint="nothing was changed; look at what it points at now, then try again",
    )


def _notes(entry: Descriptor) -> dict[str, str]:
    return entry.annotations or {}


def _stack_name(entry: Descriptor) -> Name | None:
    """The name of an entry that is one of ours; other tools may write other ref names."""
    if entry.ref_name is None:
        return None
    try:
        return parse_name(entry.ref_name)
    except UsageError:
        return None
