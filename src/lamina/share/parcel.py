"""A parcel: all that moves when a base, layer or stack goes from one store to another place.

Content: the object, what it carries, and the evidence about it and about its layers. What stays at
home: records of names (`NAMING_TYPE`), which speak of the sender's names and mean nothing
elsewhere; and answers to withheld questions, of which only the marks travel.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lamina.core.digest import digest_bytes
from lamina.core.errors import UnknownNameError, UsageError
from lamina.core.evidence import (
    EVIDENCE_PREFIX,
    NAMING_TYPE,
    SCORES_TYPE,
    STANDS_TYPE,
    ScoresEvidence,
    StandsEvidence,
)
from lamina.core.manifests import (
    BASE_TYPE,
    CONFIG_SUFFIX,
    LAYER_TYPE,
    MANIFEST_TYPE,
    SOURCE,
    STACK_TYPE,
    BaseConfig,
    Descriptor,
    ImageManifest,
    LayerConfig,
    StackConfig,
)
from lamina.core.values import Value
from lamina.store.layout import Store
from lamina.store.refs import bare


@dataclass(frozen=True)
class Parcel:
    """What moves, each thing after all that it names. Every digest comes once in a tuple."""

    root: Descriptor
    """The object that was asked for; the last of `manifests`."""
    blobs: tuple[Descriptor, ...]
    """Configs and payloads of all manifests, evidence included."""
    manifests: tuple[Descriptor, ...]
    """Base (where it travels), layers lowest first, root."""
    evidence: tuple[Descriptor, ...]
    """Manifests with a subject, each after its subject."""
    subjects: dict[str, str] = field(hash=False)
    """evidence's digest -> its subject's."""
    base: Descriptor | None
    """The base's manifest where it travels."""
    made: dict[str, bytes] = field(hash=False)
    """Bytes of what was made for the journey and is in no store: small."""

    @property
    def carried(self) -> tuple[Descriptor, ...]:
        """The layers' manifests, which a stack names as blobs: where a place keeps manifests apart
        from blobs, they are put as both."""
        base = self.base.digest if self.base is not None else None
        return tuple(m for m in self.manifests if m.digest not in (base, self.root.digest))

    @property
    def size(self) -> int:
        """Bytes of everything."""
        return sum(item.size for item in (*self.blobs, *self.manifests, *self.evidence))

    def read(self, store: Store, item: Descriptor) -> bytes:
        """The bytes of a manifest or config. Raises StoreError."""
        known = self.made.get(item.digest)
        return store.read(item.digest) if known is None else known

    def stream(self, store: Store, item: Descriptor, chunk: int = 1 << 20) -> Iterator[bytes]:
        """The bytes of any item, in pieces; a stored one is checked first. Raises StoreError."""
        known = self.made.get(item.digest)
        if known is not None:
            yield known
            return
        with store.path(item.digest).open("rb") as handle:
            while piece := handle.read(chunk):
                yield piece


def parcel_of(store: Store, digest: str, *, with_base: bool = False) -> Parcel:
    """What moves of a stored base, layer or stack.

    A stack brings its layers, a layer its parents. `with_base` brings the base too. Says which
    base it stands on (StandsEvidence), unless that is on record already.
    Raises UsageError for other objects, StoreError, UnknownNameError when the base is not there.
    """
    packing = _Packing(store)
    root = store.describe(digest)
    manifest = store.manifest(digest)
    kind = manifest.artifactType
    if kind == BASE_TYPE:
        packing.add(root, manifest)
        return packing.packed(root, base=root)
    if kind == STACK_TYPE:
        config: StackConfig | LayerConfig = store.config(manifest, StackConfig)
        beneath = config.layers if isinstance(config, StackConfig) else ()
    elif kind == LAYER_TYPE:
        config = store.config(manifest, LayerConfig)
        beneath = config.parents
    else:
        raise UsageError(f"{digest} is no base, layer or stack but {kind}")
    base = _base(store, config.base, needed=with_base)
    if with_base and base is not None:
        packing.add(bare(base))
    layers = dict.fromkeys(each.layer for each in beneath)
    packing.withhold([*layers, *([digest] if kind == LAYER_TYPE else [])])
    for item in layers:
        packing.add(store.describe(item))
    packing.add(root, manifest)
    if base is not None:
        packing.say_what_it_stands_on(root, base)
    return packing.packed(root, base=bare(base) if base is not None and with_base else None)


def _base(store: Store, identity: str, *, needed: bool) -> Descriptor | None:
    """The base with its annotations; None when it is not at hand and needn't be."""
    try:
        return store.find_base(identity)
    except UnknownNameError:
        if needed:
            raise
        return None


class _Packing:
    """A parcel on its way."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._blobs: dict[str, Descriptor] = {}
        self._manifests: dict[str, Descriptor] = {}
        self._evidence: dict[str, Descriptor] = {}
        self._subjects: dict[str, str] = {}
        self._made: dict[str, bytes] = {}
        self._withheld: set[str] = set()

    def withhold(self, layers: Iterable[str]) -> None:
        """Take note of the exams of which only results may travel."""
        for digest in layers:
            config = self._store.config(self._store.manifest(digest), LayerConfig)
            self._withheld |= {exam.items for exam in config.exams if exam.private}

    def add(self, item: Descriptor, manifest: ImageManifest | None = None) -> None:
        """Take a manifest, what it names, and what is on record about it."""
        if item.digest in self._manifests:
            return
        found = manifest or self._store.manifest(item.digest)
        for blob in (found.config, *found.layers):
            if blob.digest not in self._manifests:  # a layer in a stack was taken as a manifest
                self._blobs.setdefault(blob.digest, bare(blob))
        self._manifests[item.digest] = item
        self._about(item.digest)

    def _about(self, digest: str) -> None:
        """Take the evidence about a manifest, and what is on record about that."""
        for entry in self._store.referrers(digest):
            manifest = self._store.manifest(entry.digest)
            if entry.digest in self._evidence or not travels(manifest.artifactType):
                continue
            if manifest.artifactType == SCORES_TYPE:
                scores = self._store.config(manifest, ScoresEvidence)
                if scores.exam_digest in self._withheld and any(item[2] for item in scores.items):
                    marks = tuple((value, weight, None) for value, weight, _ in scores.items)
                    self._state(
                        SCORES_TYPE,
                        scores.model_copy(update={"items": marks}),
                        self._store.describe(digest),
                    )
                    continue
            for blob in (manifest.config, *manifest.layers):
                self._blobs.setdefault(blob.digest, bare(blob))
            self._evidence[entry.digest] = entry
            self._subjects[entry.digest] = digest
            self._about(entry.digest)

    def say_what_it_stands_on(self, subject: Descriptor, base: Descriptor) -> None:
        """Add the evidence by which a receiver finds the base."""
        described = bare(base)
        for record in self._store.evidence(subject.digest, STANDS_TYPE, StandsEvidence):
            if record.manifest.digest == described.digest:
                return
        evidence = StandsEvidence(
            base=self._store.config(self._store.manifest(base.digest), BaseConfig),
            name=_name_of(self._store, base.digest),
            source=public_source((base.annotations or {}).get(SOURCE)),
            manifest=described,
        )
        self._state(STANDS_TYPE, evidence, subject)

    def _state(self, artifact_type: str, config: Value, subject: Descriptor) -> None:
        """Add evidence as `put_evidence` would store it, without storing it."""
        data = config.to_bytes()
        described = Descriptor(
            mediaType=artifact_type + CONFIG_SUFFIX, digest=digest_bytes(data), size=len(data)
        )
        manifest = ImageManifest(
            artifactType=artifact_type, config=described, layers=(), subject=bare(subject)
        ).to_bytes()
        self._blobs.setdefault(described.digest, described)
        stated = Descriptor(
            mediaType=MANIFEST_TYPE,
            artifactType=artifact_type,
            digest=digest_bytes(manifest),
            size=len(manifest),
        )
        self._made |= {described.digest: data, stated.digest: manifest}
        self._evidence[stated.digest] = stated
        self._subjects[stated.digest] = subject.digest

    def packed(self, root: Descriptor, *, base: Descriptor | None) -> Parcel:
        """The parcel."""
        return Parcel(
            root=root,
            blobs=tuple(b for b in self._blobs.values() if b.digest not in self._manifests),
            manifests=tuple(self._manifests.values()),
            evidence=tuple(self._evidence.values()),
            subjects=dict(self._subjects),
            base=base,
            made=dict(self._made),
        )


def travels(artifact_type: str) -> bool:
    """Whether evidence of this type goes along: all of ours, but for records of names."""
    return artifact_type.startswith(EVIDENCE_PREFIX) and artifact_type != NAMING_TYPE


def public_source(source: str | None) -> str | None:
    """Where a base came from, if others can get it there too; a folder's name is kept at home."""
    if source is None or not source.startswith(("hf:", "pypi:")):
        return None
    return source


def _name_of(store: Store, digest: str) -> str | None:
    """What a base is called, the first of several names."""
    return next((name for name, base in store.bases().items() if base.digest == digest), None)
