"""Lineage: which layer is a new version of which, and which stacks still stand on old versions.

Reads manifests only, never a tensor. The rules:

- A successor counts while a name points at a stack that holds it, or a later version of it. What
  the gate refused, what was removed and what a name moved away from supersedes nothing.
- Where several successors compete, the one in the newest version of the name that the layer carries
  wins; else the one named most recently.
- A name that was moved back from a successor to the layer itself settles it: the layer is newest.
- A layer above one that has a new version is stale, and so is one that stands on other layers than
  it was trained on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from lamina.core.digest import Digest, short
from lamina.core.errors import StoreError, UsageError
from lamina.core.names import LATEST, Name, parse_name
from lamina.store.layout import Store

State = Literal["current", "carried", "superseded", "stale"]
"""'carried': current, and put over its parents without being trained there."""
_CARRIED = ("carried", "distilled")


@dataclass(frozen=True)
class Version:
    """One named version of a stack."""

    name: Name
    """With its fixed tag; without one where only the bare name points at this stack."""
    stack: Digest
    layers: tuple[tuple[Digest, float], ...]
    """With weights, lowest first."""
    latest: bool
    """Its name points at it now."""
    order: int
    """Greater: named later."""

    @property
    def digests(self) -> tuple[Digest, ...]:
        """Its layers, lowest first."""
        return tuple(layer for layer, _ in self.layers)

    @property
    def top(self) -> Digest | None:
        """Its highest layer."""
        return self.layers[-1][0] if self.layers else None


@dataclass(frozen=True)
class Known:
    """What a layer's config says about where it comes from."""

    name: str
    author: str | None
    origin: str
    supersedes: Digest | None
    sources: tuple[Digest, ...]
    parents: tuple[tuple[Digest, float], ...]
    exams: tuple[tuple[str, str, str], ...]
    """(name, digest of the questions, scorer)."""


@dataclass(frozen=True, eq=False)
class Lineage:
    """Every layer of every named version of every stack."""

    versions: tuple[Version, ...]
    """In the order in which they were named."""
    layers: Mapping[Digest, Known]
    """Those in a named stack, and the older versions of these that the store still has."""

    @classmethod
    def of(cls, store: Store) -> "Lineage":
        """Read a store's. Raises StoreError when a named stack or a layer in it is damaged."""
        versions = _versions(store)
        layers: dict[Digest, Known] = {}
        for digest in {digest for version in versions for digest in version.digests}:
            layers[digest] = _known(store.glance(digest))
            older = layers[digest].supersedes
            while older is not None and older not in layers:
                try:
                    layers[older] = _known(store.glance(older))
                except StoreError:  # it lives elsewhere, and its own older versions with it
                    break
                older = layers[older].supersedes
        return cls(versions, layers)

    @cached_property
    def successors(self) -> Mapping[Digest, tuple[Digest, ...]]:
        """layer -> the layers that say they are its next version, named or leading to a named one.

        Most recently named last.
        """
        found: dict[Digest, list[Digest]] = {}
        for digest, known in self.layers.items():
            if known.supersedes is not None and digest in self._holders:
                found.setdefault(known.supersedes, []).append(digest)
        return {
            old: tuple(sorted(new, key=lambda digest: (self._holders[digest][-1].order, digest)))
            for old, new in found.items()
        }

    @cached_property
    def _holders(self) -> Mapping[Digest, tuple[Version, ...]]:
        """layer -> the versions that hold it or a later version of it, in order."""
        found: dict[Digest, list[Version]] = {}
        for version in self.versions:
            for digest in dict.fromkeys(d for top in version.digests for d in self.older(top)):
                found.setdefault(digest, []).append(version)
        return {digest: tuple(versions) for digest, versions in found.items()}

    def older(self, digest: Digest) -> tuple[Digest, ...]:
        """A layer and its older versions, newest first, as far as the store knows them."""
        found = [digest]
        while (known := self.layers.get(found[-1])) is not None and known.supersedes is not None:
            found.append(known.supersedes)
        return tuple(found)

    def newest(self, digest: Digest) -> Digest:
        """The newest version of a layer: itself where nothing that counts supersedes it."""
        while (successor := self._successor(digest)) is not None:
            digest = successor
        return digest

    def _successor(self, digest: Digest) -> Digest | None:
        """The next version of a layer by the rules above, None where it has none."""
        known = self.layers.get(digest)
        own = known.name if known else None
        current = self.latest.get(own) if own is not None else None
        counting = [
            each
            for each in self.successors.get(digest, ())
            if any(version.latest for version in self._holders[each])
            and not (current and _moved_back(current, digest, self._holders[each]))
        ]
        for each in reversed(counting):
            if current in self._holders[each]:
                return each
        return counting[-1] if counting else None

    @cached_property
    def latest(self) -> Mapping[str, Version]:
        """name -> the version that it points at now."""
        return {version.name.name: version for version in self.versions if version.latest}

    def named(self, digest: Digest, before: int | None = None) -> Version | None:
        """The newest version whose top a layer is, best under the layer's own name.

        `before`: only versions of a lower order.
        """
        tops = [
            v for v in self.versions if v.top == digest and (before is None or v.order < before)
        ]
        own = [v for v in tops if v.name.name == self._called(digest)]
        return next(reversed(own or tops), None)

    def status(self, version: Version) -> "StackStatus":
        """How a version's layers stand to what there is now."""
        layers: list[LayerStatus] = []
        for index, (digest, weight) in enumerate(version.layers):
            layers.append(self._status(digest, weight, version.layers[:index], layers))
        return StackStatus(str(version.name), version.name.name, version.stack, tuple(layers))

    def _status(
        self,
        digest: Digest,
        weight: float,
        beneath: Sequence[tuple[Digest, float]],
        states: Sequence["LayerStatus"],
    ) -> "LayerStatus":
        known = self.layers[digest]
        newest = self.newest(digest)
        changed = dict.fromkeys(layer for state in states for layer in state.changed)
        if known.parents != tuple(beneath):
            strange = set(known.parents) ^ set(beneath) or set(beneath)  # or another order
            changed |= dict.fromkeys(sorted(layer for layer, _ in strange))
        state: State = "carried" if known.origin in _CARRIED else "current"
        if newest != digest:
            state = "superseded"
        elif changed:
            state = "stale"
        by = self.named(newest) if newest != digest else None
        return LayerStatus(
            layer=digest,
            name=known.name,
            weight=weight,
            state=state,
            by=newest if newest != digest else None,
            by_name=str(by.name) if by else None,
            because=tuple((layer, self._called(layer)) for layer in changed),
        )

    def _called(self, digest: Digest) -> str:
        known = self.layers.get(digest)
        return known.name if known else f"@{short(digest)}"


# -- status ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerStatus:
    """One layer of a stack."""

    layer: Digest
    name: str
    weight: float
    state: State
    by: Digest | None = None
    """Its newest version, where it is superseded."""
    by_name: str | None = None
    """The named version whose top that is."""
    because: tuple[tuple[Digest, str], ...] = ()
    """(layer, name) of each layer that changed beneath it, or that it was not trained on."""

    @property
    def changed(self) -> tuple[Digest, ...]:
        """What makes a layer above it stale: itself, where it is superseded, and its own causes."""
        own = () if self.by is None else (self.layer,)
        return (*own, *(layer for layer, _ in self.because))

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "layer": self.layer,
            "name": self.name,
            "weight": self.weight,
            "state": self.state,
            "superseded_by": self.by,
            "superseded_by_name": self.by_name,
            "because": [{"layer": layer, "name": name} for layer, name in self.because],
        }

    def render(self) -> str:
        """For people: what it is, and why."""
        if self.state == "superseded" and self.by is not None:
            named = f" ({self.by_name})" if self.by_name else ""
            return f"superseded by @{short(self.by)}{named}"
        if self.state == "stale":
            names = ", ".join(dict.fromkeys(name for _, name in self.because))
            return f"stale: {names} changed beneath it"
        return self.state


@dataclass(frozen=True)
class StackStatus:
    """One named stack: whether it stands on the newest version of everything."""

    version: str
    """With its version: `agent:v2`."""
    name: str
    stack: Digest
    layers: tuple[LayerStatus, ...]
    """Lowest first."""

    @property
    def fresh(self) -> bool:
        """No layer is superseded or stale."""
        return all(layer.state in ("current", "carried") for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "name": self.name,
            "version": self.version,
            "stack": self.stack,
            "fresh": self.fresh,
            "layers": [layer.to_json() for layer in self.layers],
        }

    def render(self) -> str:
        """For people: the top layer first, as a stack lies."""
        head = f"{self.version} is current"
        if not self.fresh:
            head = f"{self.version} is stale; bring it up to date: lamina refresh {self.name}"
        width = max((len(layer.name) for layer in self.layers), default=0)
        lines = [
            f"  {layer.name.ljust(width)}  @{short(layer.layer)}  {layer.render()}"
            for layer in reversed(self.layers)
        ]
        return "\n".join([head, *lines])


def status_of(store: Store, name: str | None = None) -> tuple[StackStatus, ...]:
    """The newest version of each name, or of one; a fixed version where `name` gives one.

    Raises UnknownNameError, UsageError for a base.
    """
    lineage = Lineage.of(store)
    if name is None:
        return tuple(lineage.status(version) for _, version in sorted(lineage.latest.items()))
    return (lineage.status(version_of(store, lineage, name)),)


def version_of(store: Store, lineage: Lineage, text: str) -> Version:
    """The version that a name means. Raises UnknownNameError, UsageError for a base."""
    name = parse_name(text)
    if name.name not in store.names() and name.name in store.bases():
        raise UsageError(f"{name} is a base: it has no layers", hint="see: lamina list")
    stack = store.resolve(name).digest
    same = [v for v in lineage.versions if v.name.name == name.name and v.stack == stack]
    exact = [v for v in same if v.name == name]
    return (exact or same)[-1]


def render_status(found: Sequence[StackStatus]) -> str:
    """For people: each stale stack with its layers, then the names of the others."""
    stale = [status.render() for status in found if not status.fresh]
    fresh = [status.version for status in found if status.fresh]
    if not found:
        return "no stack has a name yet; start with: lamina train --on smollm2-135m …"
    if not stale:
        return "everything is current: " + ", ".join(fresh)
    return "\n\n".join([*stale, *(["current: " + ", ".join(fresh)] if fresh else [])])


def moved_on(store: Store, reference: Name) -> bool:
    """Whether this is a fixed version of a name that points at another stack now."""
    tags = store.names().get(reference.name, {})
    if reference.tag not in tags or LATEST not in tags:
        return False
    return tags[reference.tag].digest != tags[LATEST].digest


# -- reading ---------------------------------------------------------------------------------------


def _versions(store: Store) -> tuple[Version, ...]:
    """Every version of every name, in the order of the index: fixed tags are appended to it."""
    place = {entry.ref_name: index for index, entry in enumerate(store.entries())}
    stacks: dict[Digest, tuple[tuple[Digest, float], ...]] = {}
    found = []
    for name, tags in store.names().items():
        current = tags[LATEST].digest if LATEST in tags else None
        fixed = [Name(name, tag) for tag in tags if tag != LATEST]
        same = [each for each in fixed if tags[each.tag].digest == current]
        newest = max(same, key=lambda each: each.version or 0, default=None)
        if newest is None and current is not None:
            newest = Name(name)
            fixed.append(newest)
        for each in fixed:
            stack = tags[each.tag].digest
            if stack not in stacks:
                stacks[stack] = _stacked(store.glance(stack).get("layers", ()))
            found.append(Version(each, stack, stacks[stack], each == newest, place[each.full]))
    return tuple(sorted(found, key=lambda version: version.order))


def _stacked(items: Sequence[Mapping[str, Any]]) -> tuple[tuple[Digest, float], ...]:
    return tuple((item["layer"], float(item.get("weight", 1.0))) for item in items)


def _known(config: Mapping[str, Any]) -> Known:
    return Known(
        name=str(config.get("name")),
        author=config.get("author"),
        origin=str(config.get("origin", "trained")),
        supersedes=config.get("supersedes"),
        sources=tuple(item["layer"] for item in config.get("sources", ())),
        parents=_stacked(config.get("parents", ())),
        exams=tuple((e["name"], e["items"], e["scorer"]) for e in config.get("exams", ())),
    )


def _moved_back(current: Version, digest: Digest, holders: Sequence[Version]) -> bool:
    """Whether a name that holds a layer now held its successor before."""
    return digest in current.digests and any(
        version.name.name == current.name.name and version.order < current.order
        for version in holders
    )
