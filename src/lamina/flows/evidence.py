"""Evidence at a glance: what is on record about many objects, read in one pass over the index."""

from collections.abc import Collection
from typing import Any

from lamina.store.layout import Store
from lamina.store.refs import SUBJECT


def subjects(store: Store, *artifact_types: str) -> set[str]:
    """Digests of all that evidence of some types is about. Raises StoreError."""
    return {
        subject
        for entry in store.entries()
        if (subject := (entry.annotations or {}).get(SUBJECT)) is not None
        and (entry.artifactType or store.manifest(entry.digest).artifactType) in artifact_types
    }


def recorded(
    store: Store, artifact_type: str, subjects: Collection[str]
) -> dict[str, list[dict[str, Any]]]:
    """subject's digest -> the evidence of one type about it as plain JSON, oldest first.

    Checked against its digest, but not validated. Raises StoreError.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in store.entries():
        subject = (entry.annotations or {}).get(SUBJECT)
        if subject is None or subject not in subjects:
            continue
        # other tools drop the type when they rewrite the index
        kind = entry.artifactType or store.manifest(entry.digest).artifactType
        if kind == artifact_type:
            found.setdefault(subject, []).append(store.glance(entry.digest))
    return found
