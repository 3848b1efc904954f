"""A training run on disk: all it needs to start, go on after a kill, or be looked at.

A run's folder (`<store>/runs/<id>`) appears whole, with its rows inside, so that resuming never
depends on a user's file staying as it was::

    run.json         RunSpec
    train.jsonl      training rows          held.jsonl   held-out rows
    rehearsal.jsonl  old rows to mix in     travelling.jsonl   the older version's rehearsal set
    seen.bin         the rows that older versions saw (see `data.seen`)
    exam-<n>.jsonl   questions              events.jsonl, state.safetensors   while it trains
    result.json      RunResult, once the layer has landed

When the layer has landed, rows and state are deleted; the record stays.
"""

import contextlib
import datetime
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lamina.core.digest import Digest
from lamina.core.errors import StoreBusyError, UnknownNameError, UsageError
from lamina.core.files import TEMP_PREFIX, atomic_directory, atomic_write
from lamina.core.manifests import (
    ExamSpec,
    Origin,
    RehearsalSet,
    SourceFile,
    StackConfig,
    StackedLayer,
)
from lamina.core.rates import Rates
from lamina.core.recipe import Recipe
from lamina.core.values import Value
from lamina.data.example import Example
from lamina.store.layout import Store

SPEC, RESULT, EVENTS = "run.json", "result.json", "events.jsonl"
TRAIN_ROWS, HELD_ROWS, REHEARSAL_ROWS = "train.jsonl", "held.jsonl", "rehearsal.jsonl"
TRAVELLING_ROWS, SEEN = "travelling.jsonl", "seen.bin"
SAID_BYTES = 1 << 20
"""Most bytes of events that are read at once."""
LANDED_SECONDS = 30.0
"""How long to wait for another process that examines and names what a run made."""


class RunSpec(Value):
    """What a run was asked to do."""

    id: str
    created: str
    """As `moment` writes it; specs that older versions wrote have whole seconds."""
    name: str
    """Name that the stack gets."""
    on: str
    """What the user called the stack beneath."""
    stack: StackConfig
    """The stack beneath; nothing else need keep it while the run waits."""
    recipe: Recipe
    format: str
    files: tuple[SourceFile, ...]
    sources: tuple[str, ...]
    """Where the data lay on this machine; stays in the run, never in the layer."""
    duplicates: int
    skipped: int
    licence: str | None = None
    author: str | None = None
    exams: tuple[ExamSpec, ...]
    private: bool = False
    """Neither questions nor rows travel with the layer."""
    rehearsal_set: RehearsalSet | None = None
    """What travels in their place or beside them; None: a sample, synthesised when private."""
    accept_regression: str | None = None
    force: bool = False
    stream: bool = False
    """The base's weights stay in the store; the result is the same, to the bit."""
    layer_name: str | None = None
    """Name of the layer itself, where it is not the stack's."""
    origin: Origin = "trained"
    start: Digest | None = None
    """Layer whose factors training starts from; None starts fresh."""
    supersedes: Digest | None = None
    layer_sources: tuple[StackedLayer, ...] = ()
    memory: int | None = None
    """Bytes that training may take; None: what the machine has."""
    rates: Rates | None = None
    """What the machine costs, as configured when the run began; goes into the cost on record."""
    part_of: str | None = None
    """The command that this run is a part of: it names the result, `--resume` does not."""
    key: Digest | None = None
    """What the work is known by when it is asked for again (see `work`); None: it never is."""


class RunResult(Value):
    """What a run made."""

    layer: Digest
    stack: Digest
    name: str | None = None
    """`name:vN`; None while the gate says no."""


class Run:
    """One run's folder."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def id(self) -> str:
        """Folder name."""
        return self.directory.name

    @property
    def spec(self) -> RunSpec:
        """The request. Raises UsageError when the file is damaged."""
        return RunSpec.parse((self.directory / SPEC).read_bytes(), f"run {self.id}")

    @property
    def result(self) -> RunResult | None:
        """The result, None while unfinished."""
        path = self.directory / RESULT
        return RunResult.parse(path.read_bytes(), f"run {self.id}") if path.exists() else None

    @property
    def finished(self) -> bool:
        """Whether its layer has landed and, unless it is part of longer work, has its name."""
        result = self.result
        return result is not None and (result.name is not None or self.spec.part_of is not None)

    def rows(self, file: str) -> tuple[Example, ...]:
        """The training or held-out rows."""
        path = self.directory / file
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return tuple(Example.from_json(json.loads(line)) for line in text.splitlines())

    def exam_bytes(self, index: int) -> bytes | None:
        """Questions of the n-th exam; None where somebody else withholds them."""
        path = self.directory / f"exam-{index}.jsonl"
        return path.read_bytes() if path.exists() else None

    def events(self) -> Iterator[dict[str, Any]]:
        """What has been said so far; a torn last line is left out."""
        path = self.directory / EVENTS
        if not path.exists():
            return
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                yield json.loads(line)

    def said(self, offset: int = 0, at_most: int = SAID_BYTES) -> tuple[list[dict[str, Any]], int]:
        """What has been said since `offset` bytes, and the offset to ask from next.

        Reads whole lines only, `at_most` bytes of them; a negative offset counts from the end.
        Numbers that are not finite are None, as JSON has none.
        """
        path = self.directory / EVENTS
        if not path.exists():
            return [], 0
        with path.open("rb") as handle:
            size = handle.seek(0, os.SEEK_END)
            start = max(0, size + offset) if offset < 0 else min(offset, size)
            handle.seek(start)
            data = handle.read(at_most)
        data = data[: data.rfind(b"\n") + 1]
        found = []
        for line in data.splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line, parse_constant=lambda _: None)
                if isinstance(event, dict) and "event" in event:
                    found.append(event)
        return found, start + len(data)

    def accept_regression(self, why: str) -> None:
        """Record, after the fact, that the gate may be overridden, and why."""
        spec = self.spec.model_copy(update={"accept_regression": why})
        atomic_write(self.directory / SPEC, spec.to_bytes())

    def asked_again(self, spec: RunSpec) -> None:
        """Record how this very work is asked for now: where its data lie, what may be overridden.

        An earlier request's reason to pass the gate is not this one's.
        """
        now = {"sources": spec.sources, "accept_regression": spec.accept_regression}
        changed = self.spec.model_copy(update=now)
        if changed != self.spec:
            atomic_write(self.directory / SPEC, changed.to_bytes())

    def resolve(self, recipe: Recipe) -> RunSpec:
        """Record the recipe as it was settled before the first step."""
        spec = self.spec.model_copy(update={"recipe": recipe})
        atomic_write(self.directory / SPEC, spec.to_bytes())
        return spec

    def finish(self, result: RunResult) -> None:
        """Record the result, then drop rows and state."""
        atomic_write(self.directory / RESULT, result.to_bytes())
        for path in self.directory.iterdir():
            if path.name not in (SPEC, RESULT, EVENTS, "lock"):
                path.unlink()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run; a second process is refused (StoreBusyError): at once while it trains,
        and after a while where it has landed and is soon done with."""
        lock = FileLock(self.directory / "lock")
        try:
            lock.acquire(timeout=LANDED_SECONDS if self.result else 0)
        except Timeout:
            raise StoreBusyError(
                f"run {self.id} is being trained by another process",
                hint="wait for it, or stop it first",
            ) from None
        try:
            yield
        finally:
            lock.release()


def create(
    directory: Path,
    spec: RunSpec,
    train: Sequence[Example],
    held: Sequence[Example],
    exams: Sequence[bytes | None],
    rehearsal: Sequence[Example] = (),
    *,
    travelling: Sequence[Example] = (),
    seen: bytes = b"",
) -> Run:
    """Write a run's folder, whole or not at all."""
    files = contents(train, held, exams, rehearsal, travelling=travelling, seen=seen)
    return write(directory, spec, files)


def contents(
    train: Sequence[Example],
    held: Sequence[Example],
    exams: Sequence[bytes | None],
    rehearsal: Sequence[Example] = (),
    *,
    travelling: Sequence[Example] = (),
    seen: bytes = b"",
) -> dict[str, bytes]:
    """The files of a run's folder beside its spec, by name."""
    return {
        TRAIN_ROWS: _jsonl(train),
        HELD_ROWS: _jsonl(held),
        REHEARSAL_ROWS: _jsonl(rehearsal),
        TRAVELLING_ROWS: _jsonl(travelling),
        SEEN: seen,
        **{f"exam-{n}.jsonl": data for n, data in enumerate(exams) if data is not None},
    }


def write(directory: Path, spec: RunSpec, files: Mapping[str, bytes]) -> Run:
    """Write a run's folder, whole or not at all."""
    with atomic_directory(directory) as work:
        for name, data in files.items():
            (work / name).write_bytes(data)
        (work / SPEC).write_bytes(spec.to_bytes())
    return Run(directory)


def _jsonl(examples: Sequence[Example]) -> bytes:
    return "".join(json.dumps(example.to_json()) + "\n" for example in examples).encode()


def new_id(name: str) -> str:
    """`20260102-030405-support-1a2b`: sorts by time, tells what it is."""
    return f"{now():%Y%m%d-%H%M%S}-{name}-{secrets.token_hex(2)}"


def now() -> datetime.datetime:
    """The time, UTC, whole seconds."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def moment() -> str:
    """The time, ISO 8601, UTC, microseconds: runs of one second still come one after another.

    Such texts sort by time, beside those with whole seconds too: `+` comes before `.`.
    """
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


def all_runs(store: Store) -> list[Run]:
    """Every run, oldest first. Raises UsageError when one is damaged."""
    folders = (path.parent for path in store.runs_dir.glob(f"*/{SPEC}"))
    found = [Run(each) for each in folders if not each.name.startswith(TEMP_PREFIX)]
    return sorted(found, key=lambda run: (run.spec.created, run.id))


def find(store: Store, run_id: str | None) -> Run:
    """The run with this id or a unique part of it; without one, the newest unfinished.

    What is part of longer work goes on with that, so it has to be asked for by id.
    Raises UnknownNameError, UsageError when several match.
    """
    if run_id is not None and Path(run_id).name == run_id:
        whole = Run(store.runs_dir / run_id)
        if (whole.directory / SPEC).is_file():  # the others need not be read
            return whole
    runs = all_runs(store)
    if run_id is None:
        open_runs = [run for run in runs if not run.finished and run.spec.part_of is None]
        if not open_runs:
            raise UnknownNameError("no run is waiting to be resumed", hint="start: lamina train …")
        return open_runs[-1]
    found = [run for run in runs if run_id in run.id]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UnknownNameError(f"no run {run_id!r}", hint="see: lamina runs")
    raise UsageError(f"{run_id!r} means several runs", faults=[run.id for run in found])


def to_resume(store: Store, run_id: str | None) -> Run:
    """As `find`; raises UsageError too for a run that is finished."""
    run = find(store, run_id)
    result = run.result
    if result is not None and result.name is not None:
        raise UsageError(
            f"run {run.id} is finished: {result.name}", hint=f"lamina show {result.name}"
        )
    return run
