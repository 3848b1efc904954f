"""Manifests: the JSON that joins blobs into a base, a layer, a stack or a piece of evidence."""

from typing import Any

from lamina.core.errors import CorruptBlobError, MissingBlobError, StoreError, UsageError
from lamina.core.manifests import CONFIG_SUFFIX, MANIFEST_TYPE, Descriptor, ImageManifest
from lamina.core.strict import loads
from lamina.store.blobs import BlobStore
from lamina.store.strict import ValueT, parse_strictly

MANIFEST_LIMIT = 4 << 20
"""Largest manifest in bytes; registries draw the same line."""
CONFIG_LIMIT = 16 << 20
"""Largest config in bytes; answers to thousands of questions fit."""


class ManifestStore(BlobStore):
    """Blobs, and the manifests that name them."""

    def put_manifest(self, manifest: ImageManifest | bytes) -> Descriptor:
        """Store a manifest; bytes (as pulled from a registry) are kept as they are.

        Raises MissingBlobError listing every blob that it names and the store lacks,
        CorruptBlobError for damaged ones, UsageError when it is too large, StoreError when bytes
        are no manifest.
        """
        data = manifest if isinstance(manifest, bytes) else manifest.to_bytes()
        if len(data) > MANIFEST_LIMIT:
            raise UsageError(f"a manifest of {len(data)} bytes; at most {MANIFEST_LIMIT} are read")
        parsed = parse_strictly(ImageManifest, data, "the manifest")
        self._require(parsed, f"a manifest of type {parsed.artifactType}")
        damaged = [blob.digest for blob in _named(parsed) if not self._renew(blob.digest)]
        if damaged:
            raise CorruptBlobError(
                f"a manifest of type {parsed.artifactType} names damaged blobs",
                faults=damaged,
                hint="put or pull these blobs again, then the manifest",
            )
        return _described(parsed, self.put_bytes(data, MANIFEST_TYPE).digest, len(data))

    def manifest(self, digest: str) -> ImageManifest:
        """Read a manifest: bytes verified, JSON parsed strictly. Raises StoreError."""
        return self._load(digest)[0]

    def describe(self, digest: str) -> Descriptor:
        """The bare descriptor of a stored manifest. Raises StoreError."""
        return self._load(digest)[1]

    def config(self, manifest: ImageManifest, kind: type[ValueT]) -> ValueT:
        """The manifest's config blob as a Value. Raises StoreError."""
        wanted = manifest.artifactType + CONFIG_SUFFIX
        if manifest.config.mediaType != wanted:
            raise StoreError(
                f"config {manifest.config.digest} has type {manifest.config.mediaType}, "
                f"expected {wanted}"
            )
        data = self.read(manifest.config.digest, limit=CONFIG_LIMIT)
        return parse_strictly(kind, data, f"config {manifest.config.digest}")

    def glance(self, digest: str) -> dict[str, Any]:
        """A manifest's config as plain JSON: checked against its digest, but not validated.

        For listings, where validating hundreds of objects would be most of the time.
        Raises StoreError when it is no JSON object.
        """
        try:
            manifest = loads(self.read(digest, limit=MANIFEST_LIMIT))
            config = loads(self.read(manifest["config"]["digest"], limit=CONFIG_LIMIT))
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{digest} is no manifest with a JSON config: {error!r}", hint="run `lamina verify`"
            ) from None
        if not isinstance(config, dict):
            raise StoreError(f"the config of {digest} is no object", hint="run `lamina verify`")
        return config

    def lacking(self, manifest: ImageManifest) -> tuple[str, ...]:
        """One sentence for each blob that it names and that is missing or has another size."""
        faults = []
        for blob in dict.fromkeys((b.digest, b.size, b.title) for b in _named(manifest)):
            digest, size, title = blob
            label = f"{digest} ({title})" if title else digest
            try:
                found = self._blob_path(digest).stat().st_size
            except FileNotFoundError:
                faults.append(f"{label} is not in the store")
                continue
            if found != size:
                faults.append(f"{label} has {found} bytes instead of {size}")
        return tuple(faults)

    def _load(self, digest: str) -> tuple[ImageManifest, Descriptor]:
        data = self.read(digest, limit=MANIFEST_LIMIT)
        manifest = parse_strictly(ImageManifest, data, f"manifest {digest}")
        return manifest, _described(manifest, digest, len(data))

    def _require(self, manifest: ImageManifest, what: str) -> None:
        """Raises MissingBlobError unless every blob that the manifest names is there."""
        if faults := self.lacking(manifest):
            raise MissingBlobError(
                f"{what} names blobs that the store lacks",
                faults=faults,
                hint="put or pull these blobs first, then the manifest",
            )


def _named(manifest: ImageManifest) -> tuple[Descriptor, ...]:
    return (manifest.config, *manifest.layers)


def _described(manifest: ImageManifest, digest: str, size: int) -> Descriptor:
    return Descriptor(
        mediaType=MANIFEST_TYPE, digest=digest, size=size, artifactType=manifest.artifactType
    )
