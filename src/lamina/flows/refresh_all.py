"""`lamina refresh` of many stacks: a cascade, in waves, each stack of a wave in its own process.

Two stacks that share a layer which has to be carried never move at once: the first carries it, and
the other finds it there (`flows.refresh` takes a layer's new version where there is one). One that
fails never stops the others; what was stopped or killed goes on when it is typed again.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lamina.core.errors import (
    CheckError,
    LaminaError,
    StoreBusyError,
    TrainInterrupted,
    UsageError,
)
from lamina.core.names import Name, parse_reference
from lamina.core.rates import Rates
from lamina.core.report import Reporter, Silent
from lamina.fleet.cluster import cluster
from lamina.fleet.pool import Done, Piece, spread
from lamina.flows import refresh, runs
from lamina.flows.elsewhere import Notes, store_of, told
from lamina.flows.ladder.carry import KEEP
from lamina.stack.resolve import resolve
from lamina.store.layout import Store

STOP = "stop"
State = Literal["current", "refreshed", "refused", "failed", "stopped"]


@dataclass(frozen=True)
class How:
    """What `lamina refresh` was given besides the stacks."""

    keep: float = KEEP
    at_most: str | None = None
    override: str | None = None
    author: str | None = None
    rates: Rates | None = None

    def arguments(self) -> dict[str, Any]:
        """As `refresh.refresh` takes them."""
        return {**self.__dict__}

    def plain(self) -> dict[str, Any]:
        """As plain values."""
        rates = self.rates.model_dump(mode="json") if self.rates else None
        return self.arguments() | {"rates": rates}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "How":
        """From what `plain` gave."""
        rates = Rates.parse(plain["rates"], "the rates") if plain["rates"] else None
        return cls(**{**plain, "rates": rates})


@dataclass(frozen=True)
class Outcome:
    """What became of a stack."""

    name: str
    state: State
    result: str
    """`name:vN`, or why there is none."""
    found: Mapping[str, Any] | None = None
    """`refresh.Refreshed` as JSON."""

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        own = {"name": self.name, "state": self.state, "result": self.result}
        return dict(self.found or {}) | own


def stale(store: Store) -> tuple[str, ...]:
    """The names whose stack a refresh would change, those with the fewest layers first."""
    found = []
    for name in store.names():
        try:
            stack = resolve(store, name, force=True)
            if any(step.action != "keep" for step in refresh.plan_of(store, stack)):
                found.append((len(stack.layers), name))
        except LaminaError:  # damaged, or a base: `lamina status` says so
            continue
    return tuple(name for _, name in sorted(found))


def waves(store: Store, names: Sequence[str]) -> list[str]:
    """Those of `names` that may be refreshed at once now, the ones with the fewest layers first."""
    planned = []
    for name in names:
        stack = resolve(store, name, force=True)
        steps = refresh.plan_of(store, stack)
        carries = {step.newest for step in steps if step.action == "carry"}
        planned.append((len(stack.layers), name, carries))
    taken: set[str] = set()
    chosen = []
    for _, name, carries in sorted(planned, key=lambda each: each[:2]):
        if not carries & taken:
            chosen.append(name)
            taken |= carries
    return chosen


def refresh_all(
    store: Store,
    names: Sequence[str],
    how: How,
    reporter: Reporter,
    should_stop: Callable[[], bool],
    *,
    ray: bool = False,
    address: str | None = None,
    processors: int = 1,
) -> list[Outcome]:
    """Refresh the stacks of these names, in the order of `waves`; one after another without `ray`.

    With it, the events of kind `job` are a line for each stack. Raises UsageError for what is no
    name, FleetError; TrainInterrupted where it was asked to stop.
    """
    for text in names:
        if not isinstance(parse_reference(text), Name):
            raise UsageError(f"{text} is no name of a stack", hint="refresh moves names")
    pending = list(dict.fromkeys(names))
    found: dict[str, Outcome] = {}
    with ExitStack() as held:
        if ray and pending:
            step = held.enter_context(_across(store, how, should_stop, address, processors))
        else:
            step = _here(store, how, reporter, should_stop)
        while pending and not should_stop():
            for outcome in step(waves(store, pending)):
                found[outcome.name] = outcome
                pending.remove(outcome.name)
                text = f"{outcome.state}: {outcome.result}"
                event = {"event": "job", "name": outcome.name, "text": text, "done": True}
                reporter.event(event)
    outcomes = [found[name] for name in dict.fromkeys(names) if name in found]
    if pending or any(each.state == "stopped" for each in outcomes):
        done = sum(each.state != "stopped" for each in outcomes)
        raise TrainInterrupted(
            f"stopped with {done} of {done + len(pending)} stacks refreshed; nothing is lost",
            hint="the same command goes on",
        )
    return outcomes


def refreshed(
    store: Store,
    name: str,
    how: How,
    reporter: Reporter,
    should_stop: Callable[[], bool],
) -> Outcome:
    """One stack; what went wrong is its outcome. Raises StoreBusyError."""
    try:
        done = refresh.refresh(store, name, reporter, should_stop, **how.arguments())
    except TrainInterrupted as error:
        return Outcome(name, "stopped", error.message)
    except StoreBusyError:
        raise  # whoever held it may be dead by the next try
    except LaminaError as error:
        state: State = "refused" if isinstance(error, CheckError) else "failed"
        return Outcome(name, state, error.render())
    if done.named is None:
        return Outcome(name, "current", "everything is current", done.to_json())
    return Outcome(name, "refreshed", str(done.named.name), done.to_json())


Step = Callable[[Sequence[str]], Iterator[Outcome]]


def _here(store: Store, how: How, reporter: Reporter, should_stop: Callable[[], bool]) -> Step:
    def step(names: Sequence[str]) -> Iterator[Outcome]:
        for name in names:
            if should_stop():
                return
            reporter.say(f"refreshing {name}")
            yield refreshed(store, name, how, reporter, should_stop)

    return step


@contextmanager
def _across(
    store: Store,
    how: How,
    should_stop: Callable[[], bool],
    address: str | None,
    processors: int,
) -> Iterator[Step]:
    notes = Notes.new(store, runs.new_id("refresh"))
    given = told(store) | {"notes": str(notes.folder), "how": how.plain()}

    def watch() -> None:
        if should_stop():
            notes.leave(STOP)

    def step(names: Sequence[str]) -> Iterator[Outcome]:
        pieces = [Piece(name, given | {"name": name}) for name in names]
        yield from map(_outcome, spread(_work, pieces, watch, processors=processors))

    try:
        with cluster(address):
            yield step
    finally:
        shutil.rmtree(notes.folder, ignore_errors=True)


def _outcome(done: Done) -> Outcome:
    if done.value is None:
        return Outcome(done.name, "failed", done.fault or "its process died")
    return Outcome(**done.value)


def _work(given: dict[str, Any]) -> dict[str, Any]:
    """One stack, in a process that Ray has begun."""
    notes = Notes(Path(given["notes"]))
    if notes.read(STOP) is not None:
        return dict(Outcome(given["name"], "stopped", "not begun").__dict__)
    try:
        store = store_of(given, notes.folder)
    except LaminaError as error:
        return dict(Outcome(given["name"], "failed", error.render()).__dict__)
    how, asked = How.of(given["how"]), (notes.folder / STOP).exists
    return dict(refreshed(store, given["name"], how, Silent(), asked).__dict__)
