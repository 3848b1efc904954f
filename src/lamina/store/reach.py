"""What can be reached from some manifests: configs, payloads, and manifests carried as blobs."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from lamina.core.errors import StoreError
from lamina.core.manifests import MANIFEST_TYPE, Descriptor, ImageManifest
from lamina.store.manifests import ManifestStore


@dataclass
class Reach:
    """What a walk found."""

    blobs: dict[str, Descriptor] = field(default_factory=dict)
    """Every blob, the manifests included, by digest, as the first one to name it describes it."""
    manifests: dict[str, ImageManifest] = field(default_factory=dict)
    """Those that could be read."""
    opened: set[str] = field(default_factory=set)
    """Manifests that were looked into, readable or not."""
    faults: list[str] = field(default_factory=list)
    """One sentence for each manifest that could not be read, and for each contradiction."""


def walk(store: ManifestStore, roots: Iterable[Descriptor], into: Reach | None = None) -> Reach:
    """Follow manifests to all that they name (subjects excepted). Goes on past faults.

    `into` continues an earlier walk.
    """
    reach = into if into is not None else Reach()
    waiting = list(roots)
    while waiting:
        found = waiting.pop()
        known = reach.blobs.setdefault(found.digest, found)
        if known.size != found.size:
            reach.faults.append(
                f"{found.digest} is said to have {known.size} and {found.size} bytes"
            )
        if found.mediaType != MANIFEST_TYPE or found.digest in reach.opened:
            continue
        reach.opened.add(found.digest)
        try:
            manifest = store.manifest(found.digest)
        except StoreError as error:
            reach.faults.append(error.message)
            continue
        reach.manifests[found.digest] = manifest
        waiting += [manifest.config, *manifest.layers]
    return reach
