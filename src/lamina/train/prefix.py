"""What the layers below the first trained one make of a row: computed once, then looked up.

Nothing below the first trained layer changes while a run lasts, so what enters that layer is
decided by the row's token ids alone, provided that a row is always computed in the same way: by
itself, whatever batch it stands in. So a run gets the same bits whether its rows' activations are
remembered, left by an earlier run (`train.packs`) or computed again (docs/adr/0022).
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lamina.bases.families import backbone
from lamina.bases.supplied import SuppliedLinear
from lamina.core.files import TEMP_PREFIX
from lamina.tokens.batch import Batch
from lamina.train.packs import SHARE_OF_DISK, Item, Packs

MEMORY = 64 << 20
"""Bytes of activations that a run keeps in memory; further ones go to a file."""
FILE = 4 << 30
"""Bytes of that file, at most (and no more of its disk than packs take)."""
_PROBE = 11
"""Tokens of the row by which it is seen whether a model can go on from remembered activations."""

Compute = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""The activations (T, C) of rows of token ids (T,), each computed by itself."""


class Counts(NamedTuple):
    """What there was to remember."""

    computed: int
    """Rows."""
    found: int
    """Times that a row was looked up instead."""
    left: int
    """Rows among those that an earlier run had left."""
    memory: int
    """Bytes."""
    file: int
    """Bytes."""


class _Place(NamedTuple):
    start: int
    shape: tuple[int, int]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.dtype.itemsize


class Prefixes:
    """Activations by rows, for as long as one model's lower layers stay as they are.

    Bytes as they were computed: in memory up to a bound, then in a file without a name in `folder`,
    which goes with the process, however that ends. What neither holds, nor `packs`, is computed
    again.
    """

    def __init__(
        self, folder: Path, memory: int = MEMORY, file: int = FILE, packs: Packs | None = None
    ) -> None:
        self._folder, self._memory, self._most, self._packs = folder, memory, file, packs
        self._near: dict[bytes, Tensor] = {}
        self._far: dict[bytes, _Place] = {}
        self._file: int | None = None
        self._seen: set[bytes] = set()
        self.counts = Counts(0, 0, 0, 0, 0)

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)

    def of(self, rows: Sequence[Tensor], compute: Compute) -> list[Tensor]:
        """What enters the first trained layer, (T, C) each, of rows of token ids (T,)."""
        keys = [key_of(ids_T) for ids_T in rows]
        found = {key: self._look_up(key) for key in dict.fromkeys(keys)}
        of_key = dict(zip(keys, rows, strict=True))
        missing = [key for key, x_TC in found.items() if x_TC is None]
        if missing:
            for key, x_TC in zip(missing, compute([of_key[key] for key in missing]), strict=True):
                found[key] = x_TC
                self._keep(key, x_TC)
        self._count(computed=len(missing), found=len(found) - len(missing))
        return [x_TC for x_TC in map(found.get, keys) if x_TC is not None]

    def _look_up(self, key: bytes) -> Tensor | None:
        if key in self._near:
            return self._near[key]
        place = self._far.get(key)
        if place is None or self._file is None:
            return self._left(key)
        x_TC = torch.empty(place.shape, dtype=place.dtype)
        view, done = _bytes_of(x_TC), 0
        while done < len(view):
            got = os.preadv(self._file, [view[done:]], place.start + done)
            if not got:
                return None
            done += got
        return x_TC

    def _left(self, key: bytes) -> Tensor | None:
        x_TC = None if self._packs is None else self._packs.look_up(key.hex())
        if x_TC is not None and key not in self._seen:
            self._seen.add(key)
            self._count(left=1)
        return x_TC

    def leave(self) -> None:
        """Leave what was computed to later runs."""
        keys = [*self._near, *self._far]
        if self._packs is None or not keys:
            return
        items = []
        for key in keys:
            x_TC = self._look_up(key)
            if x_TC is not None:
                content = hashlib.sha256(_bytes_of(x_TC.contiguous())).hexdigest()
                items.append(Item(key.hex(), content, tuple(x_TC.shape), x_TC.dtype))
        again = (self._look_up(bytes.fromhex(item.row)) for item in items)
        self._packs.add(items, (x_TC for x_TC in again if x_TC is not None))

    def _keep(self, key: bytes, x_TC: Tensor) -> None:
        size = x_TC.numel() * x_TC.itemsize
        if self.counts.memory + size <= self._memory:
            self._near[key] = x_TC.clone()
            self._count(memory=size)
        elif self.counts.file + size <= self._most:
            self._write(key, x_TC)

    def _write(self, key: bytes, x_TC: Tensor) -> None:
        """Into the file; where it does not take it, it is left as large as it is."""
        start = self.counts.file
        try:
            if self._file is None:
                free = shutil.disk_usage(self._folder).free
                self._most = min(self._most, int(SHARE_OF_DISK * free))
                with tempfile.TemporaryFile(prefix=TEMP_PREFIX, dir=self._folder) as nameless:
                    self._file = os.dup(nameless.fileno())
            view, done = _bytes_of(x_TC.contiguous()), 0
            while done < len(view):
                done += os.pwrite(self._file, view[done:], start + done)
        except OSError:
            self._most = start
            return
        place = _Place(start, (len(x_TC), x_TC.shape[1]), x_TC.dtype)
        self._far[key] = place
        self._count(file=place.bytes)

    def _count(self, **more: int) -> None:
        now = self.counts._asdict()
        self.counts = Counts(**{name: value + more.get(name, 0) for name, value in now.items()})


def key_of(ids_T: Tensor) -> bytes:
    """What a row is known by."""
    return hashlib.sha256(ids_T.long().numpy().tobytes()).digest()


def _bytes_of(x_TC: Tensor) -> memoryview:
    return memoryview(x_TC.view(torch.uint8).flatten().numpy())  # type: ignore[arg-type]


class ResumedModules:
    """A model through transformers' own modules, from its first trained layer on.

    The layers below give what is remembered of a row instead of computing.
    """

    def __init__(self, model: nn.Module, first: int, prefixes: Prefixes) -> None:
        self.model = model
        self._first, self._prefixes = first, prefixes
        self._inner: Any = backbone(model)
        self._tuples = False

    def predicting(self, batch: Batch) -> Tensor:
        """(N, C) the hidden states that predict the batch's targets."""
        rows = [ids_T[:length] for ids_T, length in zip(batch.ids, batch.lengths, strict=True)]
        with torch.no_grad():
            found = self._prefixes.of(rows, self._alone)
            x_BTC = nn.utils.rnn.pad_sequence(list(found), batch_first=True)
        hidden_BTC = self._from(batch.ids, x_BTC)
        chosen_NC: Tensor = hidden_BTC.flatten(0, 1).index_select(0, batch.positions)
        return chosen_NC

    def _from(self, ids_BT: Tensor, x_BTC: Tensor) -> Tensor:
        with self._given(x_BTC):
            hidden: Tensor = self._inner(input_ids=ids_BT, use_cache=False).last_hidden_state
        return hidden

    @torch.no_grad()
    def _alone(self, rows: Sequence[Tensor]) -> list[Tensor]:
        return [self._entering(ids_T) for ids_T in rows]

    def _entering(self, ids_T: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def stop(_: nn.Module, args: tuple[Any, ...]) -> None:
            seen.append(args[0][0])
            raise _SeenEnough

        hook = self._inner.layers[self._first].register_forward_pre_hook(stop)
        try:
            with contextlib.suppress(_SeenEnough):
                self._inner(input_ids=ids_T[None], use_cache=False)
        finally:
            hook.remove()
        return seen[0]

    @contextlib.contextmanager
    def _given(self, x_BTC: Tensor) -> Iterator[None]:
        """The lower layers pass on what they are given, the last of them gives x."""
        lower = list(self._inner.layers[: self._first])

        def passed(x: Tensor, *_: Any, **__: Any) -> Any:
            return (x,) if self._tuples else x

        try:
            for layer in lower:
                layer.forward = passed
            lower[-1].forward = lambda *_, **__: passed(x_BTC)
            yield
        finally:
            for layer in lower:
                layer.__dict__.pop("forward", None)  # the class's own shows again

    @torch.no_grad()
    def holds(self) -> bool:
        """Whether a row's hidden states come out the same to the bit."""
        vocabulary = self._inner.get_input_embeddings().weight.shape[0]
        ids_T = torch.arange(_PROBE) * 7919 % vocabulary

        def look(_: nn.Module, __: Any, y: Any) -> None:
            self._tuples = isinstance(y, tuple)

        hook = self._inner.layers[self._first - 1].register_forward_hook(look)
        try:
            whole = self._inner(input_ids=ids_T[None], use_cache=False).last_hidden_state
        finally:
            hook.remove()
        return torch.equal(whole, self._from(ids_T[None], self._entering(ids_T)[None]))


class _SeenEnough(Exception):
    """Ends a forward where its activations have been taken."""


def resumed(model: nn.Module, first: int, prefixes: Prefixes) -> ResumedModules | None:
    """The model's own modules from decoder layer `first` on; None where that is not to be had.

    Not over weights that are made for each product: they would be made for each row.
    """
    layers: Any = backbone(model)
    if not first or any(isinstance(each, SuppliedLinear) for each in layers.modules()):
        return None
    found = ResumedModules(model, first, prefixes)
    return found if found.holds() else None
