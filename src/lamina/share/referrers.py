"""Evidence in a registry: the referrers API where there is one, else the referrers tag schema.

distribution-spec 1.1, "Listing Referrers" and "Pushing Manifests with Subject". A registry without
the API keeps an index under the tag `sha256-<hex>`, which its clients have to update themselves.
Two who do so at once can drop each other's lines, and no registry notices; so every index is read
again when all is pushed (`settle`), and a later push puts back what is missing.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from lamina.core.digest import canonical_json, digest_bytes
from lamina.core.errors import DroppedError, ShareError, UsageError
from lamina.core.manifests import INDEX_TYPE, MANIFEST_TYPE, Descriptor
from lamina.share.reference import RegistryRef
from lamina.share.registry import Registry
from lamina.share.wire import Access
from lamina.store.manifests import MANIFEST_LIMIT

PAGES = 100
"""Most pages of the API's answer that are read."""
ROUNDS = 5
"""How often an index is put again when somebody else keeps dropping our lines."""
_KNOWN = frozenset({"mediaType", "digest", "size", "artifactType", "annotations"})


class Repository(Registry):
    """A repository with what is said of its manifests: a whole `BlobSource`."""

    def __init__(self, ref: RegistryRef, access: Access) -> None:
        super().__init__(ref, access)
        self.about = Referrers(self)

    def referrers(self, digest: str) -> tuple[Descriptor, ...]:
        """What is there about a manifest. Raises ShareError."""
        return self.about.of(digest)


class Referrers:
    """What is said about manifests in one repository."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._api: bool | None = None
        self._lock, self._asking = threading.Lock(), threading.Lock()
        self._added: dict[str, tuple[Descriptor, ...]] = {}

    def of(self, digest: str) -> tuple[Descriptor, ...]:
        """Image manifests about a manifest, as the registry lists them. Raises ShareError."""
        raw = self._by_api_if_any(digest)
        if raw is None:
            raw = self._by_tag(digest)["manifests"]
        return tuple(dict.fromkeys(_descriptors(raw)))

    def _by_api_if_any(self, digest: str) -> list[Any] | None:
        """The API's answer; None where there is none. One asks first, on behalf of all threads."""
        if self._api is None:
            with self._asking:
                if self._api is None:
                    return self._registry.wire.patiently(lambda: self._by_api(digest))
        if self._api is False:
            return None
        return self._registry.wire.patiently(lambda: self._by_api(digest))

    def add(self, subject: str, items: Sequence[tuple[Descriptor, bytes]]) -> None:
        """Put evidence about a manifest, and see that it is listed. Raises ShareError."""
        unlisted = [
            item for item, data in items if not self._registry.put_manifest(data, item.digest)
        ]
        if unlisted:
            self.note(subject, unlisted)

    def note(self, subject: str, items: Sequence[Descriptor]) -> bool:
        """See that the tag schema's index lists these; whether it did not. Raises ShareError."""
        with self._lock:
            self._added[subject] = tuple({*self._added.get(subject, ()), *items})
            index = self._by_tag(subject)
            known = {e.get("digest") for e in index["manifests"] if isinstance(e, dict)}
            new = [item for item in items if item.digest not in known]
            if not new:
                return False
            lines = [item.model_dump(mode="json", exclude_none=True) for item in new]
            data = canonical_json(index | {"manifests": [*index["manifests"], *lines]})
            if len(data) > MANIFEST_LIMIT:
                raise ShareError(
                    f"too much is said of {subject} for one index: {len(data)} bytes",
                    hint="a registry with the referrers API has no such limit",
                )
            self._registry.put_manifest(data, tag_of(subject), INDEX_TYPE)
            return True

    def settle(self) -> None:
        """Read every index again that was changed, and mend it.

        Raises ShareError when others keep changing it.
        """
        for subject, items in list(self._added.items()):
            for _ in range(ROUNDS):
                if not self.note(subject, items):
                    break
            else:
                raise ShareError(
                    f"others keep changing what is said of {subject}", hint="push again"
                )

    def _by_api(self, digest: str) -> list[Any] | None:
        """The API's answer; None where there is no API."""
        found: list[Any] = []
        url = self._registry.path("referrers", digest)
        for _ in range(PAGES):
            answer = self._registry.wire.send(
                "GET", url, headers={"Accept": INDEX_TYPE}, quiet=(400, 404, 405)
            )
            kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
            if answer.status_code != 200 or kind != INDEX_TYPE:
                self._api = False if self._api is None else self._api
                return None
            self._api = True
            try:
                found += _index(answer.content, "the referrers API's answer")["manifests"]
            except ShareError as error:
                raise DroppedError(error.message) from None  # no tag: nobody put it there
            following = answer.links.get("next", {}).get("url")
            if not following:
                break
            if urlsplit(following).netloc not in ("", urlsplit(answer.url).netloc):
                break  # not where we asked
            url = following
        return found

    def _by_tag(self, digest: str) -> dict[str, Any]:
        """The tag schema's index; an empty one where there is none."""
        tag = tag_of(digest)
        found = self._registry.read_manifest(tag)
        if found is None:
            return {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": []}
        return _index(found[0], f"{self._registry.ref.place}:{tag}")


def tag_of(digest: str) -> str:
    """The referrers tag of a manifest: `sha256-<hex>`."""
    return digest.replace(":", "-")


def _index(data: bytes, what: str) -> dict[str, Any]:
    """An index as plain JSON: other tools put keys in that we neither know nor drop."""
    try:
        value = json.loads(data)
        valid = isinstance(value["manifests"], list)
    except (ValueError, KeyError, TypeError, RecursionError):
        valid = False
    if not valid:
        raise ShareError(
            f"{what} is no index ({digest_bytes(data)})",
            hint="somebody put something else there; remove that tag",
        )
    return dict(value)


def _descriptors(raw: Sequence[Any]) -> Iterator[Descriptor]:
    """Those entries that are image manifests; what else is listed is no business of ours."""
    for entry in raw:
        if not isinstance(entry, dict) or entry.get("mediaType") != MANIFEST_TYPE:
            continue
        try:
            yield Descriptor.parse({k: entry[k] for k in _KNOWN & set(entry)}, "an entry")
        except UsageError:
            continue
