"""A graph drawn with plain characters beside lines of text, as `git log --graph` does.

Each open edge runs down in a lane of its own, two characters wide, from the node it leaves to the
node it goes to; edges to one node share a lane. Pure text: knows no store.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

NODE, EDGE, OPEN, JOIN = "*", "|", "\\", "/"
WIDEST = 60
"""Most characters of a drawing; lanes further right are not shown."""


@dataclass(frozen=True)
class Drawn:
    """A node: what it is called, the nodes that its edges go to, and what is said about it.

    `lines`: at least one; the first is cut where it is too long, the others are broken.
    """

    key: str
    parents: tuple[str, ...]
    """Keys of nodes further down; others are left out."""
    lines: tuple[str, ...]


def draw(nodes: Sequence[Drawn], width: int) -> list[str]:
    """The lines of a drawing, top node first, none longer than `width` (more than WIDEST)."""
    place = {node.key: index for index, node in enumerate(nodes)}
    lanes: list[str] = []
    drawing: list[str] = []
    for index, node in enumerate(nodes):
        if node.key not in lanes:
            lanes.append(node.key)
        column = lanes.index(node.key)
        parents = [p for p in dict.fromkeys(node.parents) if place.get(p, -1) > index]
        drawing += _beside(node, lanes, column, bool(parents), width)
        if not parents and len(node.lines) == 1 and column == len(lanes) - 1:
            drawing.append(_row({2 * lane: EDGE for lane in range(column)}))  # or it seems to go on
        drawing += _leave(lanes, column, parents)
    return drawing[:-1] if drawing and not drawing[-1] else drawing


def _beside(node: Drawn, lanes: Sequence[str], column: int, goes_on: bool, width: int) -> list[str]:
    """The node's lines, its lane marked in the first and going on below unless it ends."""
    first, below = (
        _row({2 * lane: own if lane == column else EDGE for lane in range(len(lanes))})[:WIDEST]
        for own in (NODE, EDGE if goes_on else " ")
    )
    rows = [_cut(f"{first} {node.lines[0]}", width)]
    for text in node.lines[1:]:
        rows += [
            f"{below}   {part}"
            for part in wrap(text, width - len(below) - 3, break_on_hyphens=False)
        ]
    return rows


def _leave(lanes: list[str], column: int, parents: Sequence[str]) -> list[str]:
    """Let the edges to `parents` take the node's lane and lanes beside it; changes `lanes`."""
    rows = []
    if not parents:
        rows += _move_left(lanes, column + 1)
        del lanes[column]
        return rows
    lanes[column] = parents[0]
    for beside, parent in enumerate(parents[1:], start=column + 1):
        marks = {2 * lane: EDGE for lane in range(beside)}
        marks |= {2 * lane - 1: OPEN for lane in range(beside, len(lanes) + 1)}
        rows.append(_row(marks)[:WIDEST])
        lanes.insert(beside, parent)
    while (twin := _twin(lanes)) is not None:
        rows += _join(lanes, *twin)
    return rows


def _twin(lanes: Sequence[str]) -> tuple[int, int] | None:
    """Two lanes that go to one node, the right one first."""
    for right in range(len(lanes) - 1, 0, -1):
        left = lanes.index(lanes[right])
        if left < right:
            return right, left
    return None


def _join(lanes: list[str], right: int, left: int) -> list[str]:
    """Lead one lane into another on its left, past those between; changes `lanes`."""
    marks = {2 * lane: EDGE for lane in range(right)}
    marks |= {2 * lane - 1: JOIN for lane in range(right, len(lanes))}
    rows = [_row(marks)]
    del lanes[right]
    for step in range(right - 1, left, -1):
        marks = {2 * lane: EDGE for lane in range(len(lanes))} | {2 * step - 1: JOIN}
        rows.append(_row(marks))
    return [row[:WIDEST] for row in rows]


def _move_left(lanes: Sequence[str], first: int) -> list[str]:
    """The row in which the lanes from `first` on move over a lane that ended."""
    if first >= len(lanes):
        return []
    marks = {2 * lane: EDGE for lane in range(first - 1)}
    marks |= {2 * lane - 1: JOIN for lane in range(first, len(lanes))}
    return [_row(marks)[:WIDEST]]


def _row(marks: dict[int, str]) -> str:
    return "".join(marks.get(place, " ") for place in range(max(marks, default=-1) + 1))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
