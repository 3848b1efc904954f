"""Which repositories of a registry hold which blobs, as far as we have pushed or pulled them.

A blob that another repository of the same registry holds is mounted from there instead of sent.
The record is a cache: losing it costs a transfer, and what it says wrongly costs nothing, since a
registry that cannot mount begins an upload in the same answer.
"""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from lamina.core.digest import canonical_json
from lamina.core.errors import LaminaError
from lamina.core.files import atomic_write
from lamina.core.manifests import Descriptor
from lamina.share.reference import RegistryRef

FILE = "registries.json"
SMALLEST_BYTES = 1 << 14
"""Smaller blobs are sent as quickly as they are mounted."""
MOST = 20_000
"""Blobs on record for one host; the oldest go."""


def known_elsewhere(cache: Path, ref: RegistryRef) -> dict[str, str]:
    """blob's digest -> another repository of the same host that has it."""
    found = _read(cache).get(ref.host, {})
    return {digest: place for digest, place in found.items() if place != ref.repository}


def remember(cache: Path, ref: RegistryRef, blobs: Iterable[Descriptor]) -> None:
    """Record that a repository holds these blobs."""
    new = {blob.digest: ref.repository for blob in blobs if blob.size >= SMALLEST_BYTES}
    if not new:
        return
    record = _read(cache)
    kept = {d: place for d, place in record.get(ref.host, {}).items() if d not in new} | new
    record[ref.host] = dict(list(kept.items())[-MOST:])
    with contextlib.suppress(LaminaError, OSError):
        atomic_write(cache / FILE, canonical_json(record))


def _read(cache: Path) -> dict[str, dict[str, str]]:
    try:
        value = json.loads((cache / FILE).read_bytes())
        return {
            str(host): {str(d): str(place) for d, place in blobs.items()}
            for host, blobs in value.items()
        }
    except (OSError, ValueError, AttributeError):
        return {}
