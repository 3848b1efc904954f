"""`lamina cost`: what a stack and all that led to it took, who spent it, and what else would have.

Reads manifests and evidence, never a tensor. The lineage of a stack is every layer in it, every
layer of the older versions of its name, what these supersede and were made from, and layers of
the same names that no name holds (the gate refused them, or they were replaced).
"""

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from lamina.core.digest import Digest
from lamina.core.errors import LaminaError, UsageError
from lamina.core.evidence import CARRIED_TYPE, CERTIFICATE_TYPE, COST_TYPE, SCORES_TYPE
from lamina.core.manifests import LayerConfig
from lamina.core.names import Name, parse_reference
from lamina.core.rates import Rates
from lamina.flows import descent
from lamina.flows.evidence import recorded, subjects
from lamina.flows.lineage import Lineage, Version, version_of
from lamina.plan import laws
from lamina.plan.hardware import THIS, Profiles
from lamina.plan.work import FULL, Architecture, architecture, useful_flops
from lamina.stack.resolve import ResolvedLayer, resolve
from lamina.store.layout import Store

Standing = Literal["in the stack", "older", "unnamed"]
"""'older': of an older version, or gone into a newer layer. 'unnamed': no name holds it."""
_COMPUTED = ("imported", "squashed", "merged")
"""Origins of layers that no training of their own made."""


def rates_of(known: Profiles, hardware: str = THIS) -> Rates:
    """What one machine costs. Raises UsageError."""
    machine = known.named(hardware)
    return Rates(
        hardware=hardware,
        currency=known.currency,
        per_hour=machine.price_per_hour,
        per_kwh=known.price_per_kwh if machine.price_per_kwh is None else machine.price_per_kwh,
        watts=machine.watts,
    )


@dataclass(frozen=True)
class Item:
    """One layer of a lineage, and what making it took. None: not on record."""

    layer: Digest
    name: str
    author: str | None
    origin: str
    standing: Standing
    versions: tuple[str, ...]
    """Those of the stack's name that hold it, oldest first."""
    created: str | None = None
    seconds: float | None = None
    """Training with its evaluations; of a carried layer all that was tried, exams included."""
    rows: int | None = None
    tokens: int | None = None
    flops: float | None = None
    reckoned: bool = False
    """Whether `flops` was not on record and is worked out from tokens and shapes."""
    joules: float | None = None
    estimated_joules: float | None = None
    money: float | None = None
    currency: str | None = None
    peak_bytes: int | None = None
    hardware: str | None = None
    layer_bytes: int | None = None
    full_flops: float | None = None
    """Full fine-tuning of what lies beneath, on all that it and its older versions learned from."""
    full_seconds: float | None = None
    """That at the rate measured for this layer, else for the lineage."""


class Exams(NamedTuple):
    """What examining the lineage took, apart from making it."""

    sittings: int
    seconds: float
    joules: float | None
    """Of all sittings with a time; None where one was not measured."""
    unknown: int
    """Sittings without a time on record."""


class Alternative(NamedTuple):
    """Another way to the same model, at the rate, power and prices measured for the lineage."""

    flops: float
    seconds: float
    joules: float | None
    money: float | None
    times: float
    """Its seconds over those of the layers that it stands for."""
    bytes: int | None = None
    """What it would leave on disk."""


@dataclass(frozen=True)
class Spending:
    """A lineage's whole cost."""

    label: str
    items: tuple[Item, ...]
    """In the order in which they were made."""
    exams: Exams
    absent: int
    """Layers that it was made from and that are not in this store."""
    base_bytes: int | None
    parameters: int
    """Of the base."""
    full: Alternative | None
    """Full fine-tuning each time; None where no layer has both what it took and what that would."""
    scratch: Alternative | None
    """One compute-optimal run from nothing at the base's size."""
    scratch_tokens: float

    def total(self, key: str) -> float | None:
        """A sum over the layers that have it; None where none has."""
        known = [getattr(item, key) for item in self.items]
        found = [value for value in known if value is not None]
        return sum(found) if found else None

    def unknown(self, key: str = "seconds") -> int:
        """Layers without it."""
        return sum(getattr(item, key) is None for item in self.items)

    @property
    def seconds(self) -> float:
        """All that is on record."""
        return self.total("seconds") or 0.0

    @property
    def money(self) -> Mapping[str, float]:
        """By currency."""
        found: dict[str, float] = {}
        for item in self.items:
            if item.money is not None and item.currency is not None:
                found[item.currency] = found.get(item.currency, 0.0) + item.money
        return found

    @property
    def currency(self) -> str | None:
        """The one currency in which all is priced; None where there are several, or none."""
        return next(iter(self.money)) if len(self.money) == 1 else None

    @property
    def authors(self) -> tuple[tuple[str | None, int, float, float | None], ...]:
        """(who, layers, seconds, money in the one currency), the one who spent most first."""
        found = []
        for who in dict.fromkeys(item.author for item in self.items):
            theirs = [item for item in self.items if item.author == who]
            priced = [item.money for item in theirs if item.money is not None]
            money = sum(priced) if priced and self.currency else None
            found.append((who, len(theirs), sum(item.seconds or 0.0 for item in theirs), money))
        return tuple(sorted(found, key=lambda each: -each[2]))


# -- collecting ------------------------------------------------------------------------------------


def spending(store: Store, text: str) -> Spending:
    """What the stack that `text` means took. Raises UnknownNameError, UsageError for a bare base,
    StoreError."""
    stack = resolve(store, text, force=True)
    if not stack.layers:
        raise UsageError(f"{text} is a bare base: no layer was made for it", hint="lamina list")
    lineage = Lineage.of(store)
    versions = versions_until(store, lineage, text)
    here = [layer.digest for layer in stack.layers]
    roots = [digest for version in versions for digest in version.digests]
    members, absent = _closure(store, [*here, *roots])
    for layer in _unnamed(store, lineage, members):
        members[layer.digest] = layer
    held = {
        digest: tuple(str(v.name) for v in versions if digest in v.digests) for digest in members
    }
    books = _Books(store, members)
    items = []
    for digest, layer in members.items():
        known = digest in lineage.layers or digest in here or bool(held[digest])
        older: Standing = "older" if known or _is_source(members, digest) else "unnamed"
        standing: Standing = "in the stack" if digest in here else older
        items.append(books.item(layer, standing, held[digest]))
    # records have whole seconds: of two layers of one second the lower one came first
    depth = {digest: len(layer.config.parents) for digest, layer in members.items()}
    made = sorted(items, key=lambda item: (item.created or "", depth[item.layer], item.layer))
    parameters = stack.base_config.parameters
    return _with_alternatives(
        label=str(versions[-1].name) if versions else text,
        items=made,
        exams=_exams(store, members),
        absent=absent,
        base_bytes=books.base_bytes,
        parameters=parameters,
    )


def versions_until(store: Store, lineage: Lineage, text: str) -> list[Version]:
    """The versions of a name, oldest first, up to the one that is meant; none of a digest."""
    reference = parse_reference(text)
    if not isinstance(reference, Name):
        return []
    newest = version_of(store, lineage, text)
    same = [v for v in lineage.versions if v.name.name == newest.name.name]
    return [version for version in same if version.order <= newest.order]


def _closure(store: Store, roots: Iterable[Digest]) -> tuple[dict[Digest, ResolvedLayer], int]:
    """Layers and all that they supersede or were made from; and how many of these are absent."""
    found: dict[Digest, ResolvedLayer] = {}
    absent: set[Digest] = set()
    waiting = list(roots)
    while waiting:
        digest = waiting.pop()
        if digest in found or digest in absent:
            continue
        layer = descent.version(store, digest)
        if layer is None:
            absent.add(digest)
            continue
        found[digest] = layer
        waiting += [source.layer for source in layer.config.sources]
        waiting += [layer.config.supersedes] if layer.config.supersedes else []
    return found, len(absent)


def _unnamed(
    store: Store, lineage: Lineage, members: Mapping[Digest, ResolvedLayer]
) -> list[ResolvedLayer]:
    """Layers with a cost on record that are called like members and that no name holds."""
    called = {(layer.config.name, layer.config.base) for layer in members.values()}
    found = []
    for digest in sorted(subjects(store, COST_TYPE, CARRIED_TYPE, CERTIFICATE_TYPE)):
        if digest in members or digest in lineage.layers:
            continue
        layer = descent.version(store, digest)
        if layer is not None and (layer.config.name, layer.config.base) in called:
            found.append(layer)
    return found


def _is_source(members: Mapping[Digest, ResolvedLayer], digest: Digest) -> bool:
    configs = [layer.config for layer in members.values()]
    return any(
        digest == config.supersedes or digest in {each.layer for each in config.sources}
        for config in configs
    )


class _Books:
    """What is on record about the members of a lineage."""

    def __init__(self, store: Store, members: Mapping[Digest, ResolvedLayer]) -> None:
        self._store = store
        self._trained = recorded(store, COST_TYPE, members)
        self._moved = recorded(store, CARRIED_TYPE, members)
        self._computed = recorded(store, CERTIFICATE_TYPE, members)
        self._shapes: dict[str, Architecture | None] = {}
        sizes = [cost[-1].get("base_bytes") for cost in self._trained.values()]
        self.base_bytes: int | None = next((size for size in reversed(sizes) if size), None)

    def item(self, layer: ResolvedLayer, standing: Standing, versions: tuple[str, ...]) -> Item:
        """One member's."""
        config, digest = layer.config, layer.digest
        cost = _newest(self._trained, digest)
        other = _newest(self._moved, digest) or _newest(self._computed, digest)
        seconds = cost.get("seconds")
        if other.get("seconds") is not None:
            seconds = float(other["seconds"]) + float(other.get("examine_seconds") or 0.0)
        flops = cost.get("flops")
        rates = cost.get("rates") or {}
        return Item(
            layer=digest,
            name=config.name,
            author=config.author,
            origin=config.origin,
            standing=standing,
            versions=versions,
            created=(cost or other).get("created"),
            seconds=seconds,
            rows=config.data.rows if config.data else None,
            tokens=cost.get("tokens"),
            flops=self._reckoned(config, cost) if flops is None else flops,
            reckoned=flops is None and bool(cost),
            **{key: cost.get(key) for key in ("joules", "estimated_joules", "money")},
            currency=rates.get("currency"),
            peak_bytes=cost.get("peak_bytes"),
            hardware=cost.get("hardware"),
            layer_bytes=sum(blob.size for blob in layer.manifest.layers),
            full_flops=self._full(layer),
        )

    def _reckoned(self, config: LayerConfig, cost: Mapping[str, Any]) -> float | None:
        shapes = self._shapes_of(config.base)
        if not cost or shapes is None:
            return None
        tokens = int(cost["tokens"])
        predicted = _supervised(config, cost)
        return float(useful_flops(shapes.linears, shapes.embedding, tokens, predicted))

    def _full(self, layer: ResolvedLayer) -> float | None:
        """Full fine-tuning on what all trainings that made a layer saw; None where one is not on
        record, and for what was computed or imported."""
        shapes = self._shapes_of(layer.config.base)
        if shapes is None or layer.config.origin in _COMPUTED:
            return None
        trainings, whole = descent.trainings(self._store, layer)
        chain = [each.digest for each in trainings]
        costs = recorded(self._store, COST_TYPE, chain)
        if not whole or len(costs) < len(set(chain)):
            return None
        total = 0.0
        for each in trainings:
            cost = costs[each.digest][-1]
            predicted = _supervised(each.config, cost)
            total += FULL * (shapes.linears * cost["tokens"] + shapes.embedding * predicted)
        return total

    def _shapes_of(self, identity: str) -> Architecture | None:
        if identity not in self._shapes:
            self._shapes[identity] = None
            # not at hand, or of a family whose shapes a configuration does not tell
            with contextlib.suppress(LaminaError, ValueError):
                manifest = self._store.manifest(self._store.find_base(identity).digest)
                blob = manifest.blob("config.json")
                if blob is not None:
                    keys = json.loads(self._store.read(blob.digest))
                    self._shapes[identity] = architecture(keys)
        return self._shapes[identity]


def _newest(records: Mapping[Digest, Sequence[Mapping[str, Any]]], digest: Digest) -> Any:
    return records[digest][-1] if digest in records else {}


def _supervised(config: LayerConfig, cost: Mapping[str, Any]) -> int:
    """Tokens predicted, repeats counted; of old records by the data's share of them."""
    if cost.get("supervised_tokens") is not None:
        return int(cost["supervised_tokens"])
    data = config.data
    share = data.supervised_tokens / data.tokens if data and data.tokens else 1.0
    return round(int(cost["tokens"]) * share)


def _exams(store: Store, members: Mapping[Digest, ResolvedLayer]) -> Exams:
    """Sittings of the members' exams, by stacks of nothing but members (the base among them)."""
    asked = {spec.items for layer in members.values() for spec in layer.config.exams}
    stacks = []
    for digest in subjects(store, SCORES_TYPE):
        try:
            held = [item["layer"] for item in store.glance(digest).get("layers", ())]
        except LaminaError:  # its stack was swept
            continue
        if all(layer in members for layer in held):
            stacks.append(digest)
    found = [
        record
        for records in recorded(store, SCORES_TYPE, stacks).values()
        for record in records
        if record["exam_digest"] in asked
    ]
    timed = [record for record in found if record.get("seconds") is not None]
    metered = [record.get("joules") for record in timed]
    joules = [each for each in metered if each is not None]
    return Exams(
        sittings=len(found),
        seconds=sum(record["seconds"] for record in timed),
        joules=sum(joules) if joules and len(joules) == len(metered) else None,
        unknown=len(found) - len(timed),
    )


# -- what else it could have been ------------------------------------------------------------------


def _with_alternatives(
    label: str,
    items: Sequence[Item],
    exams: Exams,
    absent: int,
    base_bytes: int | None,
    parameters: int,
) -> Spending:
    """The same work done otherwise: at each layer's own rate, else at the lineage's."""
    best = laws.APPROACH_1.optimal_for(parameters)
    rated = [i for i in items if i.flops and i.seconds and i.origin not in _COMPUTED]
    seconds = sum(item.seconds or 0.0 for item in rated)
    rate = sum(item.flops or 0.0 for item in rated) / seconds if seconds else None
    priced = []
    for item in items:
        own = item.flops / item.seconds if item in rated and item.flops and item.seconds else rate
        full = item.full_flops / own if item.full_flops and own else None
        priced.append(Item(**{**vars(item), "full_seconds": full}))
    spent = Spending(
        label, tuple(priced), exams, absent, base_bytes, parameters, None, None, best.tokens
    )
    both = [item for item in priced if item.full_seconds is not None and item.seconds]
    full_alternative = scratch = None
    if both:
        copies = None if base_bytes is None else base_bytes * len(both)
        full_alternative = _alternative(
            spent, sum(i.full_flops or 0.0 for i in both), sum(i.full_seconds or 0.0 for i in both),
            sum(i.seconds or 0.0 for i in both), copies,
        )  # fmt: skip
    if rate:
        scratch = _alternative(spent, best.flops, best.flops / rate, spent.seconds, base_bytes)
    return Spending(**{**vars(spent), "full": full_alternative, "scratch": scratch})


def _alternative(
    spent: Spending, flops: float, seconds: float, against: float, size: int | None
) -> Alternative:
    """At the lineage's joules and money a second, over the layers that have them."""
    watts = _per_second(spent.items, "joules")
    price = _per_second(spent.items, "money") if spent.currency else None
    return Alternative(
        flops=flops,
        seconds=seconds,
        joules=None if watts is None else watts * seconds,
        money=None if price is None else price * seconds,
        times=seconds / against,
        bytes=size,
    )


def _per_second(items: Sequence[Item], key: str) -> float | None:
    known = [i for i in items if getattr(i, key) is not None and i.seconds]
    seconds = sum(item.seconds or 0.0 for item in known)
    return sum(getattr(item, key) for item in known) / seconds if seconds else None
