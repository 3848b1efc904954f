"""The rows that a layer has learned or is examined on, so that they are known when they come again.

They travel with the layer as eight bytes a row (`data.seen`). A private layer's stay on the machine
that made it: somebody who guesses a row could check the guess.
"""

from pathlib import Path

from lamina.core.digest import Digest
from lamina.core.files import atomic_write
from lamina.core.manifests import Descriptor
from lamina.data import seen
from lamina.data.provenance import content_digest
from lamina.flows import runs
from lamina.stack.resolve import ResolvedLayer
from lamina.store.layout import Store

FILE = "seen.bin"
TYPE = "application/octet-stream"


def keep(store: Store, run: runs.Run, *, private: bool) -> Descriptor | None:
    """Keep what a run's layer has seen: as a blob, or on this machine alone when private."""
    learned = run.rows(runs.TRAIN_ROWS)
    path = run.directory / runs.SEEN
    older = seen.unpack(path.read_bytes()) if path.exists() else frozenset()
    data = seen.pack(older.union(map(seen.mark, (*learned, *run.rows(runs.HELD_ROWS)))))
    if not private:
        return store.put_bytes(data, TYPE, title=FILE)
    atomic_write(_private(store, content_digest(learned)), data)
    return None


def is_private(layer: ResolvedLayer) -> bool:
    """Whether a layer withholds rows: it learned some and carries no marks of them, or withholds
    questions."""
    unmarked = layer.config.data is not None and layer.manifest.blob(FILE) is None
    return unmarked or any(exam.private for exam in layer.config.exams)


def of_layer(store: Store, layer: ResolvedLayer) -> frozenset[bytes]:
    """What a layer has seen, as far as this machine can tell."""
    blob = layer.manifest.blob(FILE)
    if blob is not None:
        return seen.unpack(store.read(blob.digest))
    if layer.config.data is None:
        return frozenset()
    path = _private(store, layer.config.data.content)
    return seen.unpack(path.read_bytes()) if path.exists() else frozenset()


def _private(store: Store, content: Digest) -> Path:
    return store.root / "private" / f"{content.removeprefix('sha256:')}.seen"
