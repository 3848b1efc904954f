"""`lamina plan`: what a layer takes before it is trained, beside what it saves.

For a base's configuration alone, or for a stack of the store and real rows; on this machine, where
a probe or past runs tell how fast it is, or on one that is known by name.
"""

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.core.errors import UnknownNameError, UsageError
from lamina.core.evidence import COST_TYPE, CostEvidence
from lamina.core.machine import age, free, resident
from lamina.core.manifests import LayerConfig
from lamina.core.recipe import Recipe
from lamina.core.report import Reporter
from lamina.data.example import Example, Message
from lamina.data.read import Dataset, read
from lamina.flows import learn
from lamina.flows.lineage import Lineage
from lamina.flows.suiting import check_options, check_rows
from lamina.plan.hardware import THIS, Profiles
from lamina.plan.memory import predict
from lamina.plan.price import (
    CHARACTERS_A_TOKEN,
    OLD_SHARE,
    RESIDENT,
    SUPERVISED,
    WAYS,
    Amount,
    Price,
    flops_of,
    full_memory,
    priced,
    ratios,
    scratch_tokens,
    work_of,
)
from lamina.plan.time import (
    FULL_REACHED,
    LAYER_REACHED,
    Calibration,
    Interval,
    estimate,
    from_peak,
    from_rates,
)
from lamina.plan.work import EXAMPLES, HALF, Architecture, architecture, useful_flops
from lamina.stack.resolve import ResolvedStack, resolve
from lamina.store.layout import Store

if TYPE_CHECKING:
    from lamina.flows.amounts import Planned

CONFIG = "config.json"
ROWS, TOKENS_A_ROW = 1000, 250
"""Where no rows are at hand."""
NEW_SHARE = 0.1
"""Rows of an update as a share of the layer's, unless asked for."""
FEWEST_STEPS = 4
"""Past runs of fewer steps say nothing of speed."""


@dataclass(frozen=True)
class Request:
    """What `lamina plan` was asked."""

    on: str
    recipe: Recipe
    data: Sequence[str] = ()
    format: str | None = None
    rows: int | None = None
    tokens: int | None = None
    """Of all rows together."""
    new_rows: int | None = None
    hardware: str = THIS
    probe: bool = False


@dataclass(frozen=True)
class Plan:
    """Prices side by side, and where their times come from."""

    on: str
    model: Architecture
    known_by: str
    """'its stack in the store' or 'its configuration alone'."""
    rows: int
    new_rows: int
    machine: str
    title: str
    memory: int | None
    """Bytes that the machine has."""
    currency: str
    source: str
    """Of the times."""
    prices: dict[str, Price]
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds of the layer's run, where it was measured."""

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        layer = self.prices["layer"]
        return {
            "on": self.on,
            "known_by": self.known_by,
            "family": self.model.family,
            "parameters": self.model.parameters,
            "rows": self.rows,
            "new_rows": self.new_rows,
            "hardware": {"name": self.machine, "title": self.title, "memory_bytes": self.memory},
            "currency": self.currency,
            "source": self.source,
            "reduction": self.model.parameters / layer.trainable,
            "ways": {
                way: price.to_json()
                | {"fits": None if self.memory is None else price.memory <= self.memory}
                for way, price in self.prices.items()
            },
            "updates_for": ratios(self.prices),
            "phases": self.phases or None,
        }


def plan(store: Store | None, request: Request, profiles: Profiles, reporter: Reporter) -> Plan:
    """What a layer, an update of it, full fine-tuning and a model from nothing take.

    `store`: the user's, where there is one. Nothing is trained; with `probe` some 20 seconds are
    spent on measuring. Raises UsageError, UnknownNameError, DataError, BaseError.
    """
    machine = profiles.named(request.hardware)
    model, stack = _subject(store, request.on)
    if request.probe and (stack is None or request.hardware != THIS):
        raise UsageError(
            "--probe measures this machine with a base of the store",
            hint="lamina base pull … first, and leave out --hardware",
        )
    recipe, started = request.recipe, "torch" not in sys.modules
    dataset = _dataset(request)
    planned = None
    if store is not None and stack is not None and request.hardware == THIS:
        planned = _planned(store, stack, request, dataset)
    rows, once = _amount(request, dataset, planned)
    amount = _learned(once, recipe)
    new_rows = request.new_rows or max(1, round(NEW_SHARE * rows))
    updated = amount.share(new_rows / rows / (1 - OLD_SHARE))
    amounts = {"layer": amount, "update": updated, "full": amount, "scratch": amount}
    flops = {way: flops_of(way, model, amounts[way], recipe.above) for way in WAYS}
    speed = _speed(store, stack, request, planned, machine.flops, model, started, reporter)
    seconds = {way: speed.seconds(way, flops[way], flops["layer"]) for way in WAYS}
    trainable = model.trainable(recipe.rank, recipe.targets, recipe.above)
    memory = _memory(model, request, planned, speed.resident)
    prices = {
        way: priced(
            way,
            trainable=trainable if way in ("layer", "update") else model.parameters,
            bytes=HALF * (trainable if way in ("layer", "update") else model.parameters),
            memory=memory[0] if way in ("layer", "update") else memory[1],
            tokens=scratch_tokens(model) if way == "scratch" else amounts[way].tokens,
            flops=flops[way],
            seconds=seconds[way],
            profiles=profiles,
            machine=request.hardware,
        )
        for way in WAYS
    }
    return Plan(
        on=request.on,
        model=model,
        known_by="its stack in the store" if stack else "its configuration alone",
        rows=rows,
        new_rows=new_rows,
        machine=request.hardware,
        title=machine.title,
        memory=_room(request.hardware, machine.memory_gb),
        currency=profiles.currency,
        source=speed.source,
        prices=prices,
        phases=speed.phases,
    )


# -- what is asked about ---------------------------------------------------------------------------


def _subject(store: Store | None, on: str) -> tuple[Architecture, ResolvedStack | None]:
    """A known shape, a configuration's file or folder, else a stack of the store."""
    if on in EXAMPLES:
        return architecture(EXAMPLES[on]), None
    path = Path(on)
    known = store is not None and on in store.bases()
    if not known and (path.is_dir() or path.suffix == ".json"):
        return architecture(_config(path / CONFIG if path.is_dir() else path)), None
    if store is None:
        raise UnknownNameError(
            f"no stack, base, shape or configuration is called {on!r}",
            hint=f"a folder with {CONFIG}, a .json file, or one of {', '.join(EXAMPLES)}",
        )
    stack = resolve(store, on)
    if stack.draws:
        raise UsageError(
            f"what training over {on} takes is not predicted: it draws",
            hint="a few steps tell: lamina train … --steps 10",
        )
    blob = store.manifest(stack.base.digest).blob(CONFIG)
    if blob is None:
        raise UsageError(f"the base of {on} has no {CONFIG}", hint="pull it again")
    return architecture(json.loads(store.read(blob.digest))), stack


def _config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} is no configuration: a JSON object is")
    return found


def _dataset(request: Request) -> Dataset:
    """The rows given, or ones of the size asked for."""
    if request.data:
        if request.rows or request.tokens:
            raise UsageError("--rows and --tokens stand for data that is not at hand yet")
        return read(request.data, format=request.format)
    rows = request.rows or ROWS
    each = max(16, (request.tokens or rows * TOKENS_A_ROW) // rows)
    half = max(1, (each - 8) // 2)
    examples = tuple(
        Example(
            messages=(
                Message(role="user", content=f"{n}" + " the" * half),
                Message(role="assistant", content=" the" * half),
            )
        )
        for n in range(rows)
    )
    return Dataset(examples, (), "chat", (), 0, None)


def _planned(store: Store, stack: ResolvedStack, request: Request, dataset: Dataset) -> "Planned":
    from lamina.flows.amounts import of_training  # torch

    check_options(stack, request.recipe)
    check_rows(stack, dataset.examples)
    asked = learn.Request(request.on, request.data, "planned", request.recipe)
    return of_training(store, stack, asked, dataset)


def _amount(request: Request, dataset: Dataset, planned: "Planned | None") -> tuple[int, Amount]:
    """Rows, and tokens of one pass over them."""
    rows = len(dataset.examples)
    if planned is not None:
        return planned.rows, Amount(planned.tokens, planned.supervised)
    if not request.data:
        tokens = request.tokens or rows * TOKENS_A_ROW
        return rows, Amount(tokens, round(SUPERVISED * tokens))
    read, said = 0, 0
    for example in dataset.examples:
        for message in example.messages:
            size = len(message.content or "")
            read += size
            said += size * (message.role == "assistant")
        text = len(example.text or "")
        read, said = read + text, said + text
    return rows, Amount(max(1, read // CHARACTERS_A_TOKEN), max(1, said // CHARACTERS_A_TOKEN))


def _learned(once: Amount, recipe: Recipe) -> Amount:
    """Over all epochs, or as many steps as are given."""
    if recipe.steps is not None:
        return once.share(recipe.steps * recipe.batch_tokens / once.tokens)
    return once.share(recipe.epochs)


# -- memory ----------------------------------------------------------------------------------------


def _memory(
    model: Architecture, request: Request, planned: "Planned | None", resident: int
) -> tuple[int, int]:
    """Bytes of training a layer, and of training every weight."""
    recipe = request.recipe
    shapes = model.shapes(recipe.rank, recipe.targets, recipe.above)
    itemsize = HALF if recipe.dtype == "bfloat16" else 2 * HALF
    at_once = recipe.at_once
    longest = min(recipe.max_length, at_once)
    work = replace(
        work_of(at_once, longest, SUPERVISED, itemsize), checkpointing=recipe.checkpointing
    )
    whole = full_memory(model, model.shapes(recipe.rank), work)
    if planned is not None:
        return predict(planned.shapes, planned.work, resident).bytes, whole
    return predict(shapes, work, resident).bytes, whole


def _room(machine: str, memory_gb: float | None) -> int | None:
    if memory_gb is not None:
        return round(memory_gb * 1e9)
    if machine != THIS:
        return None
    left = free()
    return None if left is None else left + resident()


# -- speed -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Speed:
    """How fast a machine is, and how that is known."""

    source: str
    peak: float | None = None
    achieved: tuple[float, ...] = ()
    """Useful operations a second of past runs."""
    layer: float | None = None
    """Seconds of the layer's run by a calibration."""
    around: float = 0.0
    """Of these, those that do not come with its tokens."""
    phases: dict[str, float] = field(default_factory=dict)
    resident: int = RESIDENT

    def seconds(self, way: str, flops: int, of_layer: int) -> Interval | None:
        """Of a way that takes so many operations, where the layer takes `of_layer`."""
        if self.layer is not None:
            steps = (self.layer - self.around) * flops / of_layer
            found = steps + (self.around if way in ("layer", "update") else 0.0)
            return Interval(found, found)
        if self.achieved:
            return from_rates(flops, self.achieved)
        if self.peak is not None:
            reached = LAYER_REACHED if way in ("layer", "update") else FULL_REACHED
            return from_peak(flops, self.peak, reached)
        return None


def _speed(
    store: Store | None,
    stack: ResolvedStack | None,
    request: Request,
    planned: "Planned | None",
    peak: float | None,
    model: Architecture,
    started: bool,
    reporter: Reporter,
) -> _Speed:
    if request.hardware != THIS:
        low, high = LAYER_REACHED
        return _Speed(f"its peak rate, of which {low:.0%} to {high:.0%} is reached", peak=peak)
    if store is not None and stack is not None and planned is not None:
        calibration = _calibration(store, stack, request, started, reporter)
        if calibration is not None:
            found = estimate(planned.run, calibration)
            busy = found.phases["steps"] + found.phases["held-out"]
            return _Speed(
                f"a probe of {calibration.created[:10]}",
                layer=found.seconds,
                around=found.seconds - busy,
                phases=found.phases,
                resident=calibration.resident or RESIDENT,
            )
    achieved = past_rates(store, model, stack) if store is not None else ()
    if achieved:
        return _Speed(f"{len(achieved)} past runs on this machine", achieved=achieved)
    if peak is not None:
        return _Speed("its peak rate in your hardware.toml", peak=peak)
    return _Speed("not known yet: lamina plan --probe measures it in 20 seconds")


def _calibration(
    store: Store, stack: ResolvedStack, request: Request, started: bool, reporter: Reporter
) -> Calibration | None:
    """Measured now, or what is on record. `started`: this process has done nothing but begin, so
    that its age is what it takes to begin."""
    from lamina.flows import probe  # torch

    if not request.probe:
        return probe.kept(store, stack, request.recipe.dtype)
    found = probe.probe(store, stack, request.recipe, reporter, start=age() if started else None)
    probe.keep(store, found)
    return found


def past_rates(store: Store, model: Architecture, stack: ResolvedStack | None) -> tuple[float, ...]:
    """Useful operations a second of layers that were trained on this machine over this base.

    Of its processor or of its GPU, whichever trained last: they are worlds apart. Operations of
    the steps alone, over all seconds: what a plan's operations are as well.
    """
    if stack is None:
        return ()
    here = f"{platform.machine()} {platform.system()}"
    found: list[tuple[CostEvidence, float]] = []
    for digest in Lineage.of(store).layers:
        config = store.config(store.manifest(digest), LayerConfig)
        for cost in store.evidence(digest, COST_TYPE, CostEvidence, own=True):
            data = config.data
            if (
                config.base == stack.base_config.identity
                and cost.hardware.startswith(here)
                and cost.steps >= FEWEST_STEPS
                and data is not None
                and data.tokens
            ):
                supervised = round(cost.tokens * data.supervised_tokens / data.tokens)
                flops = useful_flops(model.linears, model.embedding, cost.tokens, supervised)
                found.append((cost, flops / max(cost.seconds, 1e-9)))
    last = max((cost for cost, _ in found), key=lambda cost: cost.created, default=None)
    return tuple(rate for cost, rate in found if last and cost.hardware == last.hardware)
