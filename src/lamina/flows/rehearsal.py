"""Rehearsal: a small set of rows travels with a layer, and whoever trains above it mixes the sets
of all layers beneath into the training, so that nothing beneath is erased.

A few percent of replay keep most of what continual training forgets (InsCL, arXiv:2403.11435).
The set is a sample of the layer's own rows, or, where those are private, rows that the stack wrote
itself (see `synthesis`).

The sample is stratified. A uniform sample of 64 rows misses a kind that one row in a hundred is of
in half of all cases, and what nobody rehearses is erased first. So rows are grouped by what decides
their kind, and each group gets its share of the places, at least one while there are places.
Within a group the rows with the lowest content digests are taken. A digest says nothing about its
row, so that is a uniform sample; and it merges: the lowest digests of old and new rows together are
among the lowest of each, so that `sample(old sample + new rows)` holds what a sample of all rows
would hold of a group whose places do not grow. For the shares, an old row weighs as many rows as
it stands for.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, get_args

from lamina.core.errors import DataError, UsageError
from lamina.core.manifests import JSONL_TYPE, Descriptor, LayerConfig, RehearsalSet
from lamina.core.report import Reporter
from lamina.core.seeds import derive
from lamina.core.strict import ROW_DEPTH, loads
from lamina.data.example import Example
from lamina.data.filters import Forbidden
from lamina.flows import descent, runs
from lamina.stack.resolve import ResolvedLayer
from lamina.store.layout import Store

if TYPE_CHECKING:
    from lamina.lowrank.maths import LayerFactors
    from lamina.stack.compile import Compiled

FILE = "rehearsal.jsonl"
MOST_ROWS = 256
MOST_BYTES = 64 << 10
"""What travels; where rows are longer than 250 bytes the bytes decide. More short rows cost nobody
more than as many long ones would, and say more of the layer: carried to another family by 64 of
them it kept 41% of its gain, by 256 in fewer steps 94% (docs/log.md)."""
MOST_IMAGE_BYTES = 1 << 20
"""The same of images, each of which takes kilobytes."""
MOST_WRITTEN = 64
"""Rows that a stack writes itself, seconds each, where its own are private."""
_LARGEST_SHARE = 16
"""A row may take this part of the bytes, or as much as the middle row where rows are long."""
_BITS_A_BUCKET = 2
"""Lengths are told apart by this many doublings."""


# -- sampling --------------------------------------------------------------------------------------


class Stratum(NamedTuple):
    """What decides a row's kind."""

    chat: bool
    tools: bool
    calls: bool
    """The last answer calls a tool."""
    several_turns: bool
    length: int
    """Bucket of the answer's length, or of the text's, on a logarithmic scale."""


class _Row(NamedTuple):
    digest: str
    line: bytes
    stratum: Stratum
    weight: int
    """Rows that it stands for."""


def stratum(example: Example) -> Stratum:
    """The kind of one row."""
    answer = example.answer
    words = example.text if example.text is not None else answer.content if answer else ""
    calls = answer.tool_calls if answer else ()
    size = len(words) + sum(len(call.arguments) for call in calls)
    return Stratum(
        chat=example.text is None,
        tools=bool(example.tools),
        calls=bool(calls),
        several_turns=sum(m.role == "user" for m in example.messages) > 1,
        length=size.bit_length() // _BITS_A_BUCKET,
    )


def sample(
    examples: Sequence[Example],
    most_rows: int = MOST_ROWS,
    most_bytes: int = MOST_BYTES,
    *,
    older: Sequence[Example] = (),
    weight: int = 1,
) -> bytes:
    """JSONL of at most `most_rows` rows and `most_bytes` bytes, lowest content digest first.

    As many rows as fit while each stratum has its share of them (`seats`). Where not all fit, a
    row that is much larger than others is left out: it would take the place of many. Deterministic,
    whatever the rows' order; a row that is given twice counts once. `older`: the rows of an earlier
    sample, each of which stands for `weight` rows.
    """
    rows = sorted({row.digest: row for row in (*_rows(examples), *_rows(older, weight))}.values())
    if len(rows) > most_rows or sum(len(row.line) for row in rows) > most_bytes:
        rows = _fitting(_not_too_large(rows, most_bytes), most_rows, most_bytes)
    return b"".join(row.line for row in rows)


def seats(sizes: Mapping[Stratum, int], rows: int) -> dict[Stratum, int]:
    """How many of `rows` each stratum gets: one each while they last, rarest first; the others in
    proportion to what each still lacks of its share, by largest remainder.

    No stratum gets more than it has. The seats sum to `rows`, or to all rows that there are.
    """
    order = sorted(sizes, key=lambda s: (sizes[s], s))
    total = sum(sizes.values())
    rows = min(rows, total)
    found = {s: int(place < rows) for place, s in enumerate(order)}
    left = rows - sum(found.values())
    if not left:
        return found
    # in rows / total, so that no rounding decides
    lacking = {s: max(0, rows * sizes[s] - total) for s in order}
    whole = sum(lacking.values())
    remainders = {}
    for s in order:
        more, remainders[s] = divmod(left * lacking[s], whole)
        found[s] += more
    by_remainder = sorted(order, key=lambda s: (-remainders[s], sizes[s], s))
    for s in by_remainder[: rows - sum(found.values())]:
        found[s] += 1
    return found


def _allotted(
    weights: Mapping[Stratum, int], has: Mapping[Stratum, int], rows: int
) -> dict[Stratum, int]:
    """`seats` by weight; what a stratum does not have rows for goes to the others."""
    full: dict[Stratum, int] = {}
    while True:
        open_to = {s: weight for s, weight in weights.items() if s not in full}
        found = seats(open_to, rows - sum(full.values()))
        over = {s: has[s] for s, count in found.items() if count > has[s]}
        if not over:
            return full | found
        full |= over


def _rows(examples: Sequence[Example], weight: int = 1) -> list[_Row]:
    """Each row once, by digest; of rows that differ in their accepted answers only, the first."""
    found: dict[str, _Row] = {}
    for example in examples:
        digest = example.content_digest()
        line = json.dumps(example.to_json()).encode() + b"\n"
        row = _Row(digest, line, stratum(example), weight)
        found[digest] = min(row, found.get(digest, row))
    return sorted(found.values())


def _not_too_large(rows: Sequence[_Row], most_bytes: int) -> list[_Row]:
    middle = sorted(len(row.line) for row in rows)[len(rows) // 2]
    largest = min(most_bytes, max(most_bytes // _LARGEST_SHARE, middle))
    return [row for row in rows if len(row.line) <= largest]


def _fitting(rows: Sequence[_Row], most_rows: int, most_bytes: int) -> list[_Row]:
    """The largest stratified sample that fits; `rows` are in the order of their digests."""
    strata: dict[Stratum, list[_Row]] = defaultdict(list)
    for row in rows:
        strata[row.stratum].append(row)
    has = {key: len(found) for key, found in strata.items()}
    weights = {key: sum(row.weight for row in found) for key, found in strata.items()}
    for count in range(min(most_rows, len(rows)), 0, -1):
        shares = _allotted(weights, has, count)
        chosen = [row for key, n in shares.items() for row in strata[key][:n]]
        if sum(len(row.line) for row in chosen) <= most_bytes:
            return sorted(chosen)
    return []


# -- what travels ----------------------------------------------------------------------------------


def asked_for(kind: str | None, *, private: bool) -> RehearsalSet | None:
    """A kind of rehearsal set by its name; None stays None.

    Raises UsageError for any other name, and for a sample of private rows.
    """
    known: dict[str, RehearsalSet] = {name: name for name in get_args(RehearsalSet)}
    if kind is None:
        return None
    if kind not in known:
        raise UsageError(f"unknown rehearsal set {kind!r}", hint=f"known: {', '.join(known)}")
    if private and kind == "sample":
        raise UsageError(
            "a sample of private rows would travel with the layer",
            hint="with --private: --rehearsal-set synthesised (the default), or none",
        )
    return known[kind]


def make(
    store: Store,
    run: runs.Run,
    spec: runs.RunSpec,
    compiled: "Compiled",
    factors: "LayerFactors",
    reporter: Reporter,
    should_stop: Callable[[], bool],
) -> tuple[RehearsalSet, Descriptor | None]:
    """The rehearsal set of a trained layer, stored, and its kind; ("none", None) without rows.

    A new version of a layer keeps what the older version carried, less what its own rows replaced.
    A pure function of the run, hence reproducible. Raises TrainInterrupted.
    """
    kind = _kind(store, spec)
    rows = run.rows(runs.TRAVELLING_ROWS)
    if spec.part_of is None:  # else a layer on its way to other parents: it keeps the set it has
        learned = run.rows(runs.TRAIN_ROWS)
        if kind == "sample":
            found = put(store, learned, older=rows, weight=_stands_for(store, spec))
            return ("sample", found) if found else ("none", None)
        if kind == "none":
            rows = ()
        else:
            # torch: everything else here does without
            from lamina.flows.synthesis import write_rows
            from lamina.lowrank.attach import attached

            own = (*learned, *run.rows(runs.HELD_ROWS))
            repeats = Forbidden(own).repeated_by
            with attached(compiled.model, factors, compiled.linears):
                written = write_rows(
                    compiled,
                    learned,
                    MOST_WRITTEN,
                    forbidden=(*own, *run.rows(runs.REHEARSAL_ROWS)),
                    seed=derive(spec.recipe.seed, "rehearsal set"),
                    reporter=reporter,
                    private=True,
                    stop=should_stop,
                )
            rows = (*(row for row in rows if not repeats(row)), *written)
    found = put(store, rows)
    return (kind, found) if found else ("none", None)


def _kind(store: Store, spec: runs.RunSpec) -> RehearsalSet:
    """As asked for, else as the layer that it is a version of, else by whether it is private."""
    kind = spec.rehearsal_set
    older = spec.supersedes or (spec.layer_sources[-1].layer if spec.layer_sources else None)
    if kind is None and older is not None:
        kind = store.config(store.manifest(older), LayerConfig).rehearsal
    if spec.private and spec.part_of is None and kind != "none":
        return "synthesised"
    return kind or "sample"


def _stands_for(store: Store, spec: runs.RunSpec) -> int:
    """How many rows that were learned each row of the older version's set stands for."""
    older = descent.version(store, spec.start)
    carried = () if older is None else of_layers(store, [older])
    if older is None or not carried:
        return 1
    learned = [layer.config.data for layer in descent.trainings(store, older)[0]]
    return max(1, sum(data.rows for data in learned if data is not None) // len(carried))


def put(
    store: Store, examples: Sequence[Example], *, older: Sequence[Example] = (), weight: int = 1
) -> Descriptor | None:
    """Store a sample of rows (see `sample`) as a rehearsal set; None when no row is small enough
    to travel."""
    images = any(row.image is not None for row in (*examples, *older))
    most = MOST_IMAGE_BYTES if images else MOST_BYTES
    data = sample(examples, most_bytes=most, older=older, weight=weight)
    return store.put_bytes(data, JSONL_TYPE, title=FILE) if data else None


# -- mixing ----------------------------------------------------------------------------------------


def of_layers(store: Store, layers: Sequence[ResolvedLayer]) -> tuple[Example, ...]:
    """The rehearsal sets of layers, lowest layer first; layers without one add nothing."""
    blobs = [layer.manifest.blob(FILE) for layer in layers]
    found: list[Example] = []
    for layer, blob in zip(layers, blobs, strict=True):
        for number, line in enumerate(store.read(blob.digest).splitlines() if blob else (), 1):
            try:
                row = loads(line, depth=ROW_DEPTH)
                if not isinstance(row, dict):
                    raise ValueError("not an object")
                found.append(Example.from_json(row))
            except ValueError as error:  # a DataError is one
                raise DataError(
                    f"the rehearsal set of layer {layer.config.name} cannot be read",
                    faults=[f"line {number}: {error}"],
                    hint="without old rows: --rehearsal 0",
                ) from None
    return tuple(found)
