"""What every layer of every named stack took to make, beside what it weighs."""

from collections.abc import Mapping
from typing import Any

from lamina.core.digest import Digest
from lamina.core.evidence import CARRIED_TYPE, CERTIFICATE_TYPE, COST_TYPE
from lamina.flows.evidence import recorded
from lamina.flows.lineage import Lineage
from lamina.store.layout import Store


def costs(store: Store) -> list[dict[str, Any]]:
    """One row a layer, the newest first; seconds, tokens and bytes. None: not on record.

    `seconds` is the layer's own training, carrying over or computing, as its record says; what an
    older version took is in that version's row.
    """
    lineage = Lineage.of(store)
    named: dict[Digest, list[str]] = {digest: [] for digest in lineage.layers}
    for version in lineage.versions:
        for digest in version.digests:
            named[digest].append(str(version.name))
    trained = recorded(store, COST_TYPE, lineage.layers)
    moved = recorded(store, CARRIED_TYPE, lineage.layers)
    computed = recorded(store, CERTIFICATE_TYPE, lineage.layers)
    rows = []
    for digest, known in lineage.layers.items():
        cost = _newest(trained.get(digest))
        other = _newest(moved.get(digest)) or _newest(computed.get(digest))
        took = cost or other
        rows.append(
            {
                "layer": digest,
                "name": known.name,
                "origin": known.origin,
                "author": known.author,
                "created": took.get("created"),
                "seconds": _seconds(cost, other),
                "tokens": cost.get("tokens"),
                "tokens_per_second": cost.get("tokens_per_second"),
                "peak_bytes": cost.get("peak_bytes"),
                "hardware": cost.get("hardware"),
                "layer_bytes": sum(blob.size for blob in store.manifest(digest).layers),
                "base_bytes": cost.get("base_bytes"),
                "stacks": named[digest],
            }
        )
    return sorted(rows, key=lambda row: str(row["created"] or ""), reverse=True)


def _newest(records: list[dict[str, Any]] | None) -> dict[str, Any]:
    return records[-1] if records else {}


def _seconds(cost: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """Carrying over counts every rung that was tried, a training among them, and its exams."""
    if other.get("seconds") is not None:
        return float(other["seconds"]) + float(other.get("examine_seconds") or 0.0)
    return cost.get("seconds")
