"""What another place offers: read small things first, say no before payloads move, then take it.

`look` reads manifests, configs and the list of evidence, each checked against its digest and parsed
strictly. From that alone a preview can be shown and a policy asked. `admit` then moves the payloads
that the store lacks and puts the manifests, so that none ever names what is not there.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lamina.core.digest import digest_bytes
from lamina.core.errors import CorruptBlobError, MissingBlobError, StoreError
from lamina.core.evidence import STANDS_TYPE, StandsEvidence
from lamina.core.manifests import (
    BASE_TYPE,
    CONFIG_SUFFIX,
    LAYER_TYPE,
    MANIFEST_TYPE,
    STACK_TYPE,
    BaseConfig,
    Descriptor,
    ImageManifest,
    LayerConfig,
    StackConfig,
    StackedLayer,
)
from lamina.share.parcel import travels
from lamina.share.together import side_by_side
from lamina.store.layout import Store
from lamina.store.manifests import MANIFEST_LIMIT
from lamina.store.refs import FROM, bare
from lamina.store.strict import ValueT, parse_strictly

CONFIG_LIMIT = 16 << 20
"""Largest config in bytes; answers to thousands of questions fit."""
SMALL_LIMIT = 256 << 20
"""Most bytes of manifests and configs together that are read before anybody is asked."""
EVIDENCE_LIMIT = 2000
"""Most pieces of evidence that are looked at, over all objects of a parcel."""
LAYERS_LIMIT = 1000
"""Most layers of a stack."""


class BlobSource(Protocol):
    """A place that objects come from: a registry, a Hub repository, an archive.

    Nothing that it says is believed: whoever asks checks bytes against the digest asked for.
    """

    def manifest(self, digest: str) -> bytes:
        """A manifest's bytes, at most MANIFEST_LIMIT. Raises MissingBlobError, ShareError."""

    def blob(self, item: Descriptor, *, offset: int = 0) -> Iterator[bytes]:
        """A blob's bytes from `offset` on, in pieces; fewer or other bytes may come.

        Raises MissingBlobError, ShareError.
        """

    def referrers(self, digest: str) -> tuple[Descriptor, ...]:
        """What is there about a manifest; () where nothing is. Raises ShareError."""


Fetch = Callable[[Store, BlobSource, Sequence[Descriptor]], None]
"""Moves blobs into the store, each checked against its digest and size."""


@dataclass(frozen=True)
class Incoming:
    """What was read of an object so far. `manifests` are in the order in which they can be put."""

    root: Descriptor
    manifests: dict[str, bytes] = field(hash=False)
    """digest -> bytes: layers lowest first, the root last. The base is not among them."""
    evidence: dict[str, bytes] = field(hash=False)
    """digest -> bytes of evidence manifests, each after its subject."""
    configs: dict[str, bytes] = field(hash=False)
    """digest -> bytes of every config."""
    parsed: dict[str, ImageManifest] = field(hash=False)
    """Every manifest, evidence included."""
    left_out: tuple[str, ...]
    """One sentence for each piece of evidence that is not taken, and why."""

    @property
    def kind(self) -> str:
        """The root's artifactType: a stack's, a layer's or a base's."""
        return self.parsed[self.root.digest].artifactType

    @property
    def layers(self) -> tuple[str, ...]:
        """Digests of the layers that come, lowest first."""
        return tuple(d for d in self.manifests if self.parsed[d].artifactType == LAYER_TYPE)

    @property
    def base(self) -> str:
        """Identity of the base that it stands on (or is)."""
        if self.kind == BASE_TYPE:
            return self.config(self.root.digest, BaseConfig).identity
        if self.kind == LAYER_TYPE:
            return self.config(self.root.digest, LayerConfig).base
        return self.config(self.root.digest, StackConfig).base

    @property
    def payload(self) -> tuple[Descriptor, ...]:
        """Blobs that are still to come, once each: all but manifests and configs."""
        known = {*self.manifests, *self.configs}
        found: dict[str, Descriptor] = {}
        for digest in (*self.manifests, *self.evidence):
            for blob in self.parsed[digest].layers:
                if blob.digest not in known:
                    found.setdefault(blob.digest, blob)
        return tuple(found.values())

    def config(self, digest: str, kind: type[ValueT]) -> ValueT:
        """The config of one of the manifests. Raises StoreError."""
        manifest = self.parsed[digest]
        if manifest.config.mediaType != manifest.artifactType + CONFIG_SUFFIX:
            raise StoreError(f"{digest} has a config of type {manifest.config.mediaType}")
        data = self.configs[manifest.config.digest]
        return parse_strictly(kind, data, f"the config of {digest}")

    def about(
        self, digest: str, artifact_type: str, kind: type[ValueT]
    ) -> tuple[tuple[str, ValueT], ...]:
        """(evidence's digest, config) of what comes about one object, of one type."""
        return tuple(
            (each, self.config(each, kind))
            for each in self.evidence
            if self.parsed[each].artifactType == artifact_type and self.subject(each) == digest
        )

    def readable(self, digest: str, artifact_type: str, kind: type[ValueT]) -> list[ValueT]:
        """The configs of what comes about one object, of one type. What cannot be read is none:
        anybody may attach anything."""
        found = []
        for each in self.evidence:
            if self.parsed[each].artifactType == artifact_type and self.subject(each) == digest:
                with contextlib.suppress(StoreError):
                    found.append(self.config(each, kind))
        return found

    def subject(self, evidence: str) -> str:
        """What a piece of evidence speaks of."""
        subject = self.parsed[evidence].subject
        assert subject is not None  # `look` takes no other
        return subject.digest

    def stands_on(self) -> tuple[StandsEvidence, ...]:
        """What was said of where the base is to be had, if it is that base."""
        said = self.about(self.root.digest, STANDS_TYPE, StandsEvidence)
        return tuple(each for _, each in said if each.base.identity == self.base)


def look(store: Store, source: BlobSource, digest: str) -> Incoming:
    """Read what an object is: its manifests, configs and evidence, no payload.

    What the store has already is read there. Raises CorruptBlobError for bytes that don't match
    their digest, StoreError for what is no base, layer or stack, or not put together as one,
    MissingBlobError, ShareError.
    """
    looking = _Looking(store, source)
    root = looking.manifest(digest)
    kind = root.artifactType
    if kind == STACK_TYPE:
        looking.stack(digest, root)
    elif kind == LAYER_TYPE:
        looking.layer(digest, root)
    elif kind == BASE_TYPE:
        looking.config(root, BaseConfig)
    else:
        raise StoreError(
            f"{digest} is no base, layer or stack but {kind}", hint="lamina reads only its own"
        )
    looking.take(digest)
    looking.gather_evidence()
    return looking.done(digest)


class _Looking:
    """An `Incoming` on its way."""

    def __init__(self, store: Store, source: BlobSource) -> None:
        self._store = store
        self._source = source
        self._bytes: dict[str, bytes] = {}
        self._parsed: dict[str, ImageManifest] = {}
        self._manifests: dict[str, bytes] = {}
        self._evidence: dict[str, bytes] = {}
        self._configs: dict[str, bytes] = {}
        self._left_out: list[str] = []
        self._read = 0

    def manifest(self, digest: str) -> ImageManifest:
        """A manifest by digest, from the store or else from the source."""
        if digest not in self._parsed:
            data = self._at_home(digest, MANIFEST_LIMIT)
            if data is None:
                data = self._checked(digest, self._source.manifest(digest))
            self._keep(digest, data)
        return self._parsed[digest]

    def carried(self, item: Descriptor) -> ImageManifest:
        """A manifest that a stack names as a blob."""
        if item.digest not in self._parsed:
            self._keep(item.digest, self._small(item, MANIFEST_LIMIT))
        return self._parsed[item.digest]

    def config(self, manifest: ImageManifest, kind: type[ValueT]) -> ValueT:
        """A manifest's config, kept and parsed."""
        self.take_config(manifest)
        wanted = manifest.artifactType + CONFIG_SUFFIX
        if manifest.config.mediaType != wanted:
            raise StoreError(f"a config of type {manifest.config.mediaType}, expected {wanted}")
        data = self._configs[manifest.config.digest]
        return parse_strictly(kind, data, f"the config of a {manifest.artifactType}")

    def take_config(self, manifest: ImageManifest) -> None:
        """Keep a manifest's config unread."""
        item = manifest.config
        if item.digest not in self._configs:
            self._configs[item.digest] = self._small(item, CONFIG_LIMIT)

    def take(self, digest: str) -> None:
        """Let a manifest be among those that will be put."""
        self._manifests[digest] = self._bytes[digest]

    def stack(self, digest: str, manifest: ImageManifest) -> None:
        """A stack: read its layers, and see that it carries these whole and nothing else."""
        config = self.config(manifest, StackConfig)
        if len(config.layers) > LAYERS_LIMIT:
            raise StoreError(f"a stack of {len(config.layers)} layers; {LAYERS_LIMIT} are taken")
        named = {blob.digest: blob for blob in manifest.layers}
        layers = list(dict.fromkeys(each.layer for each in config.layers))
        if lacking := [item for item in layers if item not in named]:
            raise StoreError(f"stack {digest} doesn't carry all its layers", faults=lacking)
        side_by_side(lambda item, _: self.take_config(self.carried(named[item])), layers)
        wanted: dict[str, Descriptor] = {}
        for item in layers:
            layer = self.carried(named[item])
            self._layer_config(item, layer, config.base)
            self.take(item)
            described = _described(item, len(self._bytes[item]), LAYER_TYPE)
            for blob in (described, layer.config, *layer.layers):
                wanted.setdefault(blob.digest, bare(blob))
        if tuple(wanted.values()) != manifest.layers:
            raise StoreError(
                f"stack {digest} is not put together as lamina does it",
                faults=_differences(tuple(wanted.values()), manifest.layers),
                hint="its sender's lamina is newer, or it was made by hand: ask the sender",
            )

    def layer(self, digest: str, manifest: ImageManifest) -> None:
        """A layer: read its parents too, as far as they are to be had."""
        config = self._layer_config(digest, manifest, None)
        if len(config.parents) > LAYERS_LIMIT:
            raise StoreError(f"a layer of {len(config.parents)} parents; {LAYERS_LIMIT} are taken")
        missing = []
        for item in dict.fromkeys(each.layer for each in config.parents):
            try:
                parent = self.manifest(item)
            except MissingBlobError:
                missing.append(item)
                continue
            self._layer_config(item, parent, config.base)
            self.take(item)
        if missing:
            raise MissingBlobError(
                f"layer {digest} stands on layers that neither the source nor the store has",
                faults=missing,
                hint="pull the stack that it was trained as the top of, or its parents first",
            )

    def _layer_config(self, digest: str, manifest: ImageManifest, base: str | None) -> LayerConfig:
        if manifest.artifactType != LAYER_TYPE:
            raise StoreError(f"{digest} is no layer but {manifest.artifactType}")
        config = self.config(manifest, LayerConfig)
        if base is not None and config.base != base:
            raise StoreError(f"layer {digest} was trained on base {config.base}, not on {base}")
        return config

    def gather_evidence(self) -> None:
        """Read what is there about every object, and about that, and so on."""
        level = list(self._manifests)
        while level:
            listed = side_by_side(lambda subject, _: self._source.referrers(subject), level)
            found: dict[str, tuple[Descriptor, str]] = {}
            for subject, items in zip(level, listed, strict=True):
                for item in items:
                    if item.digest not in self._evidence and item.digest not in self._manifests:
                        found.setdefault(item.digest, (item, subject))
            pairs = list(found.values())
            if len(pairs) > (room := EVIDENCE_LIMIT - len(self._evidence)):
                self._left_out.append(f"more than {EVIDENCE_LIMIT} pieces of evidence")
                pairs = pairs[:room]
            taken = side_by_side(lambda pair, _: self._evidence_of(*pair), pairs)
            level = [digest for piece in taken for digest in piece]
            self._evidence |= {digest: self._bytes[digest] for digest in level}

    def _evidence_of(self, item: Descriptor, subject: str) -> tuple[str, ...]:
        """Its digest if it is ours and whole; what is not whole is left out, and said."""
        if item.artifactType is not None and not travels(item.artifactType):
            return ()  # other tools' signatures and the like: no business of ours
        try:
            manifest = self.manifest(item.digest)
            if not travels(manifest.artifactType):
                return ()
            if manifest.subject is None or manifest.subject.digest != subject:
                raise StoreError(f"{item.digest} speaks of something else than {subject}")
            self.take_config(manifest)
        except (StoreError, MissingBlobError) as error:
            self._left_out.append(f"evidence {item.digest} about {subject}: {error.message}")
            return ()
        return (item.digest,)

    def done(self, digest: str) -> Incoming:
        """What was read."""
        used = {*self._manifests, *self._evidence}
        parsed = {each: manifest for each, manifest in self._parsed.items() if each in used}
        root = _described(digest, len(self._bytes[digest]), parsed[digest].artifactType)
        return Incoming(
            root, self._manifests, self._evidence, self._configs, parsed, tuple(self._left_out)
        )

    def _keep(self, digest: str, data: bytes) -> None:
        if len(data) > MANIFEST_LIMIT:
            raise StoreError(f"manifest {digest} has {len(data)} bytes; {MANIFEST_LIMIT} are read")
        self._parsed[digest] = parse_strictly(ImageManifest, data, f"manifest {digest}")
        self._bytes[digest] = data

    def _at_home(self, digest: str, limit: int) -> bytes | None:
        try:
            return self._store.read(digest, limit=limit) if self._store.has(digest) else None
        except CorruptBlobError:
            return None  # what comes heals it

    def _small(self, item: Descriptor, limit: int) -> bytes:
        """A small blob's bytes, checked."""
        if item.size > limit:
            raise StoreError(f"{item.digest} has {item.size} bytes; at most {limit} are read here")
        data = self._at_home(item.digest, limit)
        if data is None:
            data = self._checked(item.digest, read_whole(self._source, item))
        if len(data) != item.size:
            raise StoreError(f"{item.digest} is said to have {item.size} bytes, not {len(data)}")
        return data

    def _checked(self, digest: str, data: bytes) -> bytes:
        self._read += len(data)
        if self._read > SMALL_LIMIT:
            raise StoreError(f"more than {SMALL_LIMIT} bytes of manifests and configs")
        if (found := digest_bytes(data)) != digest:
            raise CorruptBlobError(
                f"asked for {digest}, but the {len(data)} bytes that came are {found}",
                hint="the transfer or its source is damaged: try again, or from elsewhere",
            )
        return data


def _described(digest: str, size: int, artifact_type: str) -> Descriptor:
    return Descriptor(mediaType=MANIFEST_TYPE, artifactType=artifact_type, digest=digest, size=size)


def _differences(wanted: Sequence[Descriptor], found: Sequence[Descriptor]) -> list[str]:
    faults = [f"{blob.digest} ({blob.mediaType}) should be there" for blob in wanted]
    faults = [text for text, blob in zip(faults, wanted, strict=True) if blob not in found]
    faults += [f"{b.digest} ({b.mediaType}) should not be there" for b in found if b not in wanted]
    return faults or ["the order of its blobs"]


def read_whole(source: BlobSource, item: Descriptor) -> bytes:
    """A small blob's bytes, no more than its size. Not checked. Raises CorruptBlobError."""
    data = bytearray()
    for piece in source.blob(item):
        data += piece
        if len(data) > item.size:
            raise CorruptBlobError(f"{item.digest}: more than the expected {item.size} bytes came")
    return bytes(data)


def admit(
    store: Store,
    source: BlobSource,
    incoming: Incoming,
    *,
    label: str,
    fetch: Fetch | None = None,
) -> Descriptor:
    """Take what was looked at: payloads, then manifests, then the evidence. Returns what is kept.

    That is the root, or for a layer the stack that it is the top of: listed in the index, not
    named. `label`: the place, as the index says of the evidence. Killed anywhere, nothing in the
    index names what is not there, and a second call goes on.
    Raises CorruptBlobError, StoreError, ShareError.
    """
    missing = [blob for blob in incoming.payload if not store.intact(blob.digest)]
    (fetch or stream_in)(store, source, missing)
    _put_configs(store, incoming)
    side_by_side(lambda data, _: store.put_manifest(data), [*incoming.manifests.values()][:-1])
    root = store.put_manifest(incoming.manifests[incoming.root.digest])
    if incoming.kind == LAYER_TYPE:  # a layer alone would not keep its parents
        config = incoming.config(root.digest, LayerConfig)
        root = store.put_stack(config.base, (*config.parents, StackedLayer(layer=root.digest)))
    known = {entry.digest for entry in store.entries()}  # one's own may come back, and stays so
    new = [digest for digest in incoming.evidence if digest not in known]
    side_by_side(lambda digest, _: store.put_manifest(incoming.evidence[digest]), new)
    store.add_roots({root: {}, **{store.describe(digest): {FROM: label} for digest in new}})
    return root


def _put_configs(store: Store, incoming: Incoming) -> None:
    types = {m.config.digest: m.config.mediaType for m in incoming.parsed.values()}
    side_by_side(
        lambda digest, _: store.put_bytes(incoming.configs[digest], types[digest]), list(types)
    )


def stream_in(store: Store, source: BlobSource, items: Sequence[Descriptor]) -> None:
    """The plainest `Fetch`: one blob after the other, each from its beginning."""
    for item in items:
        with store.writer(limit=item.size) as writer:
            for piece in source.blob(item):
                writer.write(piece)
            if writer.size != item.size:
                raise CorruptBlobError(f"{item.digest}: {writer.size} of {item.size} bytes came")
            writer.commit(item.digest)
