"""`lamina log --graph`: every named version with what it stands on, replaced and was made from.

Reads manifests only, never a tensor.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lamina.core.digest import Digest, short
from lamina.core.evidence import NAMING_TYPE, SCORES_TYPE
from lamina.flows.evidence import recorded
from lamina.flows.lanes import Drawn, draw
from lamina.flows.lineage import Lineage, Version, version_of
from lamina.store.layout import Store

WIDTH = 120
"""Longest line, in characters."""
Kind = Literal["same as", "stands on", "supersedes", "squashed from", "merged from", "carried from"]
_MADE_FROM: Mapping[str, Kind] = {
    "squashed": "squashed from",
    "merged": "merged from",
    "carried": "carried from",
    "distilled": "carried from",
}


@dataclass(frozen=True)
class Edge:
    """From a version to an older one."""

    kind: Kind
    to: str
    """`assistant:v2`."""


@dataclass(frozen=True)
class Value:
    """What a version is on record with for an exam that it carries."""

    exam: str
    exam_digest: Digest
    metric: Literal["loss", "accuracy"]
    value: float
    n: int

    def render(self) -> str:
        """For people."""
        value = f"{self.value:.1%}" if self.metric == "accuracy" else f"{self.value:.3f}"
        return f"{self.exam} {value}"


@dataclass(frozen=True)
class Node:
    """One named version of a stack."""

    version: str
    stack: Digest
    created: str | None
    """When it was named: ISO 8601, UTC; None where that is not on record."""
    author: str | None
    """Who named it."""
    layers: tuple[str, ...]
    """Names, lowest first."""
    stale: bool
    """Its name points at it, and a layer is superseded or stale."""
    edges: tuple[Edge, ...]
    exams: tuple[Value, ...]

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            **self.__dict__,
            "layers": list(self.layers),
            "edges": [edge.__dict__ for edge in self.edges],
            "exams": [value.__dict__ for value in self.exams],
        }

    def lines(self) -> tuple[str, ...]:
        """For people, beside the drawing."""
        head = [self.version, "(stale)" if self.stale else "", f"@{short(self.stack)}"]
        head += [(self.created or "")[:16].replace("T", " ")]
        head += [f"by {self.author}" if self.author else "", " > ".join(self.layers)]
        kinds: dict[Kind, list[str]] = {}
        for edge in self.edges:
            kinds.setdefault(edge.kind, []).append(edge.to)
        edges = "; ".join(f"{kind} {', '.join(to)}" for kind, to in kinds.items())
        exams = ", ".join(value.render() for value in self.exams)
        return tuple(filter(None, (" ".join(filter(None, head)), edges, exams)))


@dataclass(frozen=True)
class Graph:
    """Named versions, newest first, with their edges."""

    nodes: tuple[Node, ...]

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {"nodes": [node.to_json() for node in self.nodes]}

    def render(self) -> str:
        """Drawn with plain characters, at most WIDTH wide."""
        if not self.nodes:
            return "no name has been given yet"
        drawn = [
            Drawn(node.version, tuple(edge.to for edge in node.edges), node.lines())
            for node in self.nodes
        ]
        return "\n".join(draw(drawn, WIDTH))


def graph(store: Store, name: str | None = None) -> Graph:
    """All named versions, or those of one name with everything that they came from.

    Raises UnknownNameError, UsageError for a base.
    """
    lineage = Lineage.of(store)
    edges = {version: tuple(_edges(lineage, version)) for version in lineage.versions}
    shown: Collection[Version] = lineage.versions
    if name is not None:
        wanted = version_of(store, lineage, name).name.name
        shown = _reached([v for v in lineage.versions if v.name.name == wanted], edges)
    stacks = {version.stack for version in shown}
    named = recorded(store, NAMING_TYPE, stacks)
    scored = recorded(store, SCORES_TYPE, stacks)
    nodes = []
    for version in reversed(lineage.versions):
        if version in shown:
            moves = [m for m in named.get(version.stack, ()) if _is_move(m, version)]
            values = _values(lineage, version, scored.get(version.stack, ()))
            nodes.append(_node(lineage, version, edges[version], moves, values))
    return Graph(tuple(nodes))


def _is_move(record: Mapping[str, Any], version: Version) -> bool:
    wanted = (version.name.name, version.name.version)
    return (record.get("name"), record.get("version")) == wanted


def _node(
    lineage: Lineage,
    version: Version,
    edges: Sequence[tuple[Kind, Version]],
    moves: Sequence[Mapping[str, Any]],
    values: Iterable[Value],
) -> Node:
    move = moves[-1] if moves else {}
    return Node(
        version=str(version.name),
        stack=version.stack,
        created=move.get("created"),
        author=move.get("author"),
        layers=tuple(lineage.layers[digest].name for digest in version.digests),
        stale=version.latest and not lineage.status(version).fresh,
        edges=tuple(Edge(kind, str(to.name)) for kind, to in edges),
        exams=tuple(values),
    )


def _reached(
    start: Sequence[Version], edges: Mapping[Version, Sequence[tuple[Kind, Version]]]
) -> set[Version]:
    """These versions and all that their edges lead to."""
    found, waiting = set(start), list(start)
    while waiting:
        for _, to in edges[waiting.pop()]:
            if to not in found:
                found.add(to)
                waiting.append(to)
    return found


# -- edges -----------------------------------------------------------------------------------------


def _edges(lineage: Lineage, version: Version) -> Iterator[tuple[Kind, Version]]:
    """What a version came from, among those named before it; one edge to each."""
    before = [other for other in lineage.versions if other.order < version.order]
    same = [other for other in before if other.stack == version.stack]
    if same:
        yield "same as", same[-1]
        return
    beneath = _beneath(before, version)
    if beneath is not None:
        yield "stands on", beneath
    met = {beneath}
    for digest in version.digests[len(beneath.layers) if beneath else 0 :]:
        for kind, older in _older(lineage, digest):
            to = lineage.named(older, version.order)
            if to is not None and to not in met:
                met.add(to)
                yield kind, to


def _beneath(before: Sequence[Version], version: Version) -> Version | None:
    """The highest version that lies wholly beneath; of several names for it, the first given."""
    lower = [
        other
        for other in before
        if 0 < len(other.layers) < len(version.layers)
        and version.layers[: len(other.layers)] == other.layers
    ]
    return max(lower, key=lambda other: len(other.layers), default=None)


def _older(lineage: Lineage, digest: Digest) -> Iterator[tuple[Kind, Digest]]:
    """The layers that a layer replaced or was made from."""
    for older in lineage.older(digest)[1:2]:
        yield "supersedes", older
    known = lineage.layers[digest]
    if known.origin in _MADE_FROM:
        for source in known.sources:
            yield _MADE_FROM[known.origin], source


# -- exams -----------------------------------------------------------------------------------------


def _values(
    lineage: Lineage, version: Version, records: Sequence[Mapping[str, Any]]
) -> Iterator[Value]:
    """The newest recorded value of each exam that the version carries, lowest layer first."""
    newest = {(r.get("exam_digest"), r.get("scorer")): r.get("items") or () for r in records}
    carried = dict.fromkeys(e for digest in version.digests for e in lineage.layers[digest].exams)
    for name, digest, scorer in carried:
        items = [item for item in newest.get((digest, scorer), ()) if item[1] > 0]
        if items:
            yield Value(
                exam=name,
                exam_digest=digest,
                metric="loss" if scorer == "loss" else "accuracy",
                value=sum(item[0] for item in items) / sum(item[1] for item in items),
                n=len(items),
            )
