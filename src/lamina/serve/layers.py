"""Layers in memory: loaded when a request first needs them, the longest unused given up."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from lamina.lowrank.maths import LayerFactors
from lamina.serve.batch import Loaded
from lamina.stack.resolve import ResolvedLayer

Key = tuple[str, float]
"""A layer's digest and its weight in the stack."""


@dataclass(eq=False)
class _Entry:
    layer: Future[Loaded]
    users: int = 0


class LayerCache:
    """Factors by digest and weight. `budget` bytes, or None: as many as come. What running requests
    use is never given up, even over the budget."""

    def __init__(
        self,
        read: Callable[[ResolvedLayer], LayerFactors],
        load: Callable[[LayerFactors], Loaded],
        budget: int | None,
    ) -> None:
        self._read, self._load, self._budget = read, load, budget
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._lock = threading.Lock()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="lamina-layers")
        self.evicted = 0

    def acquire(self, layers: Sequence[ResolvedLayer]) -> list[Future[Loaded]]:
        """One future a layer, in order; each layer counts one more user. From any thread."""
        with self._lock:
            return [self._acquire(layer) for layer in layers]

    def _acquire(self, layer: ResolvedLayer) -> Future[Loaded]:
        key = (layer.digest, layer.weight)
        entry = self._entries.get(key)
        failed = entry is not None and entry.layer.done() and entry.layer.exception() is not None
        if entry is None or (failed and not entry.users):
            entry = self._entries[key] = _Entry(self._loader.submit(self._fetch, layer))
        entry.users += 1
        self._entries.move_to_end(key)
        return entry.layer

    def _fetch(self, layer: ResolvedLayer) -> Loaded:
        return self._load(self._read(layer))

    def release(self, layers: Sequence[ResolvedLayer]) -> None:
        """A user has done with them."""
        with self._lock:
            for layer in layers:
                self._entries[layer.digest, layer.weight].users -= 1
            self._evict()

    def _evict(self) -> None:
        if self._budget is None:
            return
        total = self._bytes()
        for key in [k for k, entry in self._entries.items() if not entry.users]:
            if total <= self._budget:
                return
            total -= _bytes(self._entries.pop(key))
            self.evicted += 1

    def _bytes(self) -> int:
        return sum(map(_bytes, self._entries.values()))

    def held(self) -> tuple[int, int]:
        """How many layers are in memory, and their bytes."""
        with self._lock:
            return sum(1 for entry in self._entries.values() if _bytes(entry)), self._bytes()

    def close(self) -> None:
        """Load nothing more."""
        self._loader.shutdown(cancel_futures=True)


def _bytes(entry: _Entry) -> int:
    done = entry.layer.done() and not entry.layer.cancelled() and entry.layer.exception() is None
    return entry.layer.result().bytes if done else 0
