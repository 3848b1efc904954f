"""Rehearsal: a small sample of a layer's rows travels with it, and whoever trains above it mixes
the samples of all layers beneath into the training, so that nothing beneath is erased.

A few percent of replay keep most of what continual training forgets (InsCL, arXiv:2403.11435).
"""

import json
from collections.abc import Sequence

from lamina.core.manifests import JSONL_TYPE, Descriptor
from lamina.data.example import Example
from lamina.stack.resolve import ResolvedLayer
from lamina.store.layout import Store
from lamina.tokens.mask import Encoded

FILE = "rehearsal.jsonl"
MOST_ROWS = 64
MOST_BYTES = 64 << 10


def sample(examples: Sequence[Example]) -> bytes:
    """JSONL of at most MOST_ROWS rows and MOST_BYTES bytes: those with the lowest content digest.

    Deterministic, whatever the rows' order, and spread over the data as digests are.
    """
    lines: list[bytes] = []
    size = 0
    for example in sorted(examples, key=Example.content_digest):
        line = json.dumps(example.to_json()).encode() + b"\n"
        if len(lines) < MOST_ROWS and size + len(line) <= MOST_BYTES:
            lines.append(line)
            size += len(line)
    return b"".join(lines)


def put(store: Store, examples: Sequence[Example]) -> Descriptor | None:
    """Store a layer's rehearsal set; None when no row is small enough to travel."""
    data = sample(examples)
    return store.put_bytes(data, JSONL_TYPE, title=FILE) if data else None


def of_layers(store: Store, layers: Sequence[ResolvedLayer]) -> tuple[Example, ...]:
    """The rehearsal sets of layers, lowest layer first; layers without one add nothing."""
    blobs = [layer.manifest.blob(FILE) for layer in layers]
    return tuple(
        Example.from_json(json.loads(line))
        for blob in blobs
        if blob is not None
        for line in store.read(blob.digest).splitlines()
    )


def mixed(own: Sequence[Encoded], old: Sequence[Encoded], share: float) -> tuple[Encoded, ...]:
    """Own rows followed by as many old ones as make `share` of all tokens, over and over again.

    Nothing is mixed in when there are no old rows or the share is 0.
    """
    if not old or share <= 0:
        return tuple(own)
    wanted = share / (1 - share) * sum(map(len, own))
    rows = list(own)
    taken = index = 0
    while taken < wanted:
        row = old[index % len(old)]
        rows.append(row)
        taken += len(row)
        index += 1
    return tuple(rows)
