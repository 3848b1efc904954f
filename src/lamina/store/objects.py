"""Objects: layers, stacks, bases and evidence, each a config blob, payload blobs and a manifest."""

from collections.abc import Mapping, Sequence

from lamina.core.digest import digest_bytes
from lamina.core.errors import (
    LaminaError,
    MissingBlobError,
    StoreError,
    UnknownNameError,
    UsageError,
)
from lamina.core.manifests import (
    BASE_TYPE,
    CONFIG_SUFFIX,
    IDENTITY,
    LAYER_TYPE,
    MANIFEST_TYPE,
    REF_NAME,
    SOURCE,
    STACK_TYPE,
    BaseConfig,
    Descriptor,
    ImageManifest,
    LayerConfig,
    StackConfig,
    StackedLayer,
)
from lamina.core.names import LATEST, Name
from lamina.core.values import Value
from lamina.store.refs import BASE_PREFIX, RefStore, bare
from lamina.store.strict import ValueT, parse_strictly


class ObjectStore(RefStore):
    """The index, and the objects that lamina keeps in it."""

    def put_object(
        self,
        artifact_type: str,
        config: Value,
        blobs: Sequence[Descriptor] = (),
        *,
        subject: Descriptor | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> Descriptor:
        """Store a config and a manifest over blobs that are there already.

        With a `subject` it is evidence: the index lists it at once, and `referrers` finds it.
        Without one nothing lists it yet: name it or `add_root` within `collect`'s grace.
        Raises MissingBlobError listing every missing blob (or the missing subject), StoreError for
        a config that could not be read again.
        """
        data = config.to_bytes()
        parse_strictly(type(config), data, "the config")
        if subject is not None and not self.has(subject.digest):
            raise MissingBlobError(f"the subject {subject.digest} is not in the store")
        manifest = ImageManifest(
            artifactType=artifact_type,
            config=self.put_bytes(data, artifact_type + CONFIG_SUFFIX),
            layers=tuple(blobs),
            subject=bare(subject) if subject is not None else None,
            annotations=dict(annotations) if annotations else None,
        )
        stored = self.put_manifest(manifest)
        return stored if subject is None else self.add_root(stored)

    def put_evidence(self, artifact_type: str, config: Value, subject: Descriptor) -> Descriptor:
        """Record something about an object that is in the store. Raises MissingBlobError."""
        return self.put_object(artifact_type, config, subject=subject)

    def evidence(
        self, digest: str, artifact_type: str, kind: type[ValueT], *, own: bool = False
    ) -> tuple[ValueT, ...]:
        """Everything recorded about an object, of one type, oldest first.

        `own`: without what came from elsewhere.
        """
        return tuple(
            self.config(self.manifest(entry.digest), kind)
            for entry in self.referrers(digest, artifact_type, own=own)
        )

    def put_layer(self, config: LayerConfig, blobs: Sequence[Descriptor]) -> Descriptor:
        """Store a layer and keep it (a root) until `remove_root`. Raises MissingBlobError."""
        return self.add_root(self.put_object(LAYER_TYPE, config, blobs))

    def put_stack(self, base_identity: str, layers: Sequence[StackedLayer]) -> Descriptor:
        """Store a stack: equal arguments, equal digest. Not listed until it is named.

        It carries each layer's manifest as a blob, followed by that layer's own blobs, so that a
        copy of the stack is complete. Raises UsageError for digests that are no layers, and
        MissingBlobError, each listing all.
        """
        config = StackConfig(base=base_identity, layers=tuple(layers))
        return self.put_object(STACK_TYPE, config, self._carried(layers))

    def describe_stack(self, base_identity: str, layers: Sequence[StackedLayer]) -> Descriptor:
        """What `put_stack` would return, without writing anything. Raises as `put_stack` does."""
        data = StackConfig(base=base_identity, layers=tuple(layers)).to_bytes()
        config = Descriptor(
            mediaType=STACK_TYPE + CONFIG_SUFFIX, digest=digest_bytes(data), size=len(data)
        )
        manifest = ImageManifest(
            artifactType=STACK_TYPE, config=config, layers=self._carried(layers)
        ).to_bytes()
        return Descriptor(
            mediaType=MANIFEST_TYPE,
            artifactType=STACK_TYPE,
            digest=digest_bytes(manifest),
            size=len(manifest),
        )

    def _carried(self, layers: Sequence[StackedLayer]) -> tuple[Descriptor, ...]:
        """Every blob of every layer, once each."""
        carried: dict[str, Descriptor] = {}
        faults: list[tuple[LaminaError, str]] = []
        for digest in dict.fromkeys(item.layer for item in layers):
            try:
                blobs = self._layer_blobs(digest)
            except LaminaError as error:
                faults.append((error, error.message))
                continue
            for blob in blobs:
                carried.setdefault(blob.digest, blob)
        if faults:
            worst = next((e for e, _ in faults if isinstance(e, UsageError)), faults[0][0])
            raise type(worst)(
                "the stack can't be stored",
                faults=[text for _, text in faults],
                hint="give digests of layers that the store has",
            )
        return tuple(carried.values())

    def put_base(self, config: BaseConfig, blobs: Sequence[Descriptor], source: str) -> Descriptor:
        """Store a base and keep it. One with the same identity is returned as it is.

        `source`: where it came from, for people (`hf:org/name@rev`). The descriptor is annotated
        with IDENTITY and SOURCE. Raises MissingBlobError.
        """
        known = self._base_entry(config.identity)
        if known is not None and self._complete(known):
            return known
        stored = self.put_object(BASE_TYPE, config, blobs)
        if known is not None and known.digest != stored.digest:
            self.remove_root(known.digest)
        self.add_root(stored, {IDENTITY: config.identity, SOURCE: source})
        return self.find_base(config.identity)

    def find_base(self, identity: str) -> Descriptor:
        """The base with this identity, annotated with IDENTITY and SOURCE.

        Raises UnknownNameError.
        """
        found = self._base_entry(identity)
        if found is None:
            raise UnknownNameError(
                f"the store has no base with identity {identity}",
                hint="fetch it: lamina base pull NAME (`lamina base pull smollm2-135m`)",
            )
        return found

    def tag_base(self, name: str, base: Descriptor) -> None:
        """Let a base's name point at a base, whatever it pointed at. Raises UsageError."""
        full = BASE_PREFIX + Name(name).full
        with self._editing() as draft:
            entry = self._entry(base, {})
            if self._kind(entry) != BASE_TYPE:
                raise UsageError(f"{base.digest} is no base but {entry.artifactType}")
            root = draft.root(base.digest)
            notes = {**((root.annotations if root else None) or {}), REF_NAME: full}
            draft.put(entry.model_copy(update={"annotations": notes}))

    def bases(self) -> dict[str, Descriptor]:
        """name -> base, annotated with IDENTITY and SOURCE, sorted by name."""
        found = {
            entry.ref_name.removeprefix(BASE_PREFIX).removesuffix(f":{LATEST}"): _unnamed(entry)
            for entry in self.entries()
            if entry.ref_name is not None and entry.ref_name.startswith(BASE_PREFIX)
        }
        return dict(sorted(found.items()))

    def resolve_base(self, name: str) -> Descriptor:
        """The base of this name. Raises UnknownNameError with near names."""
        base = self.bases().get(Name(name).name)
        if base is None:
            raise self._unknown(Name(name))
        return base

    def untag_base(self, name: str) -> None:
        """Remove a base's name; the base stays until `remove_root`. Raises UnknownNameError."""
        with self._editing() as draft:
            if not draft.drop(BASE_PREFIX + Name(name).full):
                raise self._unknown(Name(name))

    def _layer_blobs(self, digest: str) -> list[Descriptor]:
        """A layer's manifest, config and payload, without titles: two layers' would be equal."""
        described = self.describe(digest)
        if described.artifactType != LAYER_TYPE:
            raise UsageError(f"{digest} is no layer but {described.artifactType}")
        manifest = self.manifest(digest)
        return [described, *map(bare, (manifest.config, *manifest.layers))]

    def _complete(self, entry: Descriptor) -> bool:
        try:
            return not self.lacking(self.manifest(entry.digest))
        except StoreError:
            return False

    def _base_entry(self, identity: str) -> Descriptor | None:
        return next(
            (
                _unnamed(entry)
                for entry in self.entries()
                if (entry.annotations or {}).get(IDENTITY) == identity
            ),
            None,
        )


def _unnamed(entry: Descriptor) -> Descriptor:
    """An entry without its name, other annotations kept."""
    notes = {k: v for k, v in (entry.annotations or {}).items() if k != REF_NAME}
    return entry.model_copy(update={"annotations": notes or None})
