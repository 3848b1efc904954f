"""The graph of all named versions: as data, as text, and the drawing by itself."""

import random
import re

import pytest

from lamina.core.digest import digest_json
from lamina.core.manifests import StackedLayer
from lamina.flows.graph import WIDTH, graph
from lamina.flows.lanes import Drawn, draw
from tests.books import Books, exam


@pytest.fixture
def books(tmp_path):
    return Books(tmp_path / "store")


@pytest.fixture
def grown(books):
    """Two layers above one, which then moves on; one of them is carried over, and all squashed."""
    carries = (exam("assistant/exact"),)
    one = books.layer("assistant", exams=carries)
    agent = books.layer("agent", [one], exams=(exam("agent/loss", "loss"),))
    poet = books.layer("poet", [one])
    books.score(books.name("assistant", one), "assistant/exact", (1, 1, "a"), (0, 1, "b"))
    stack = books.name("agent", one, agent)
    books.score(stack, "agent/loss", (6, 4, None), (2, 4, None), (9, 0, None), scorer="loss")
    books.score(stack, "assistant/exact", (0, 1, "a"), (0, 1, "b"))
    books.name("poet", one, poet)
    two = books.layer("assistant", number=2, supersedes=one, origin="updated", exams=carries)
    books.score(books.name("assistant", two), "assistant/exact", (1, 1, "a"), (1, 1, "b"))
    source = (StackedLayer(layer=agent),)
    over = books.layer("agent", [two], origin="carried", supersedes=agent, sources=source)
    books.name("agent", two, over)
    sources = tuple(StackedLayer(layer=layer) for layer in (two, over))
    books.name("small", books.layer("small", origin="squashed", sources=sources))
    return books


GROWN = r"""
* small:v1 @0 2026-01-01 00:06 by ann small
|   squashed from assistant:v2, agent:v2
|\
| * agent:v2 @0 2026-01-01 00:05 by ann assistant > agent
| |   stands on assistant:v2; supersedes agent:v1
| |\
|/ /
* | assistant:v2 @0 2026-01-01 00:04 by ann assistant
| |   supersedes assistant:v1
| |   assistant/exact 100.0%
| | * poet:v1 (stale) @0 2026-01-01 00:03 by ann assistant > poet
| | |   stands on assistant:v1
| |/
|/|
| * agent:v1 @0 2026-01-01 00:02 by ann assistant > agent
| |   stands on assistant:v1
| |   assistant/exact 0.0%, agent/loss 1.000
|/
* assistant:v1 @0 2026-01-01 00:01 by ann assistant
    assistant/exact 50.0%
"""


def test_the_graph_as_text(grown):
    text = re.sub(r"@\w{12}", "@0", graph(grown.store).render())
    assert f"\n{text}\n" == GROWN


def test_the_graph_as_data(grown):
    found = graph(grown.store).to_json()["nodes"]
    nodes = {node["version"]: node for node in found}
    assert next(iter(nodes)) == "small:v1"
    assert nodes["agent:v2"]["edges"] == [
        {"kind": "stands on", "to": "assistant:v2"},
        {"kind": "supersedes", "to": "agent:v1"},
    ]
    assert nodes["agent:v1"]["exams"][1] == {
        "exam": "agent/loss",
        "exam_digest": digest_json("agent/loss"),
        "metric": "loss",
        "value": 1.0,
        "n": 2,
    }
    assert [n for n, node in nodes.items() if node["stale"]] == ["poet:v1"]


def test_the_graph_of_one_name_holds_what_it_came_from(grown):
    found = [node.version for node in graph(grown.store, "agent").nodes]
    assert found == ["agent:v2", "assistant:v2", "agent:v1", "assistant:v1"]
    assert [node.version for node in graph(grown.store, "poet").nodes] == [
        "poet:v1",
        "assistant:v1",
    ]


def test_a_name_that_went_back_points_at_the_same_stack(books):
    old = books.layer("assistant")
    books.name("assistant", old)
    books.name("assistant", books.layer("assistant", number=2, supersedes=old))
    books.name("assistant", old)
    node = graph(books.store, "assistant").nodes[0]
    assert [(edge.kind, edge.to) for edge in node.edges] == [("same as", "assistant:v1")]


def test_lines_of_a_graph_are_never_too_long(books):
    names = [f"a-layer-with-a-long-name-{number}" for number in range(12)]
    carries = tuple(exam(f"{name}/exact") for name in names)
    one = books.layer("one", exams=carries)
    stack = books.name("one", one)
    for each in carries:
        books.score(stack, each.name, (1, 1, "a"))
    layers = [one]
    for name in names:
        layers.append(books.layer(name, layers))
        books.name(name, *layers)
    for number in range(40):  # each beside the others
        books.name(f"beside-{number}", one, books.layer(f"beside-{number}", [one]))
    text = graph(books.store).render()
    assert max(map(len, text.splitlines())) <= WIDTH
    words = " ".join(word for word in text.split() if word not in ("|", "*"))
    assert all(f"{name}/exact 100.0%" in words for name in names)


def test_lanes_that_do_not_fit_are_not_shown():
    nodes = [Drawn(str(n), (str(n + 70),), (f"= {n}", "said")) for n in range(70)]
    nodes += [Drawn(str(n), (), (f"= {n}",)) for n in range(70, 140)]
    rows = draw(nodes, WIDTH)
    assert max(map(len, rows)) <= WIDTH
    assert [row.split("= ")[1] for row in rows if "= " in row] == [str(n) for n in range(140)]


@pytest.mark.parametrize("seed", range(30))
def test_every_edge_can_be_followed_in_a_drawing(seed):
    """Walk the characters down from each node: what is reached is what was to be drawn."""
    chance = random.Random(seed)
    count = chance.randint(1, 14)
    nodes = []
    for index in range(count):
        below = range(index + 1, count)
        parents = chance.sample(below, min(len(below), chance.choice((0, 1, 1, 1, 2, 2, 3))))
        nodes.append(
            Drawn(str(index), tuple(map(str, parents)), (f"= {index}", "said")[: 1 + index % 2])
        )
    rows = draw(nodes, WIDTH)
    assert [row.split("= ")[1] for row in rows if "= " in row] == [str(n) for n in range(count)]
    for node in nodes:
        assert reached(rows, int(node.key)) == {int(parent) for parent in node.parents}


def reached(rows, key):
    """The nodes at the ends of the lines that go down from a node."""
    art = [row.split("= ")[0].split("said")[0].rstrip() for row in rows]
    names = [row.split("= ")[1] if "= " in row else None for row in rows]
    start = names.index(str(key))
    waiting = [(start, art[start].index("*"))]
    found, met = set(), set()
    while waiting:
        row, place = waiting.pop()
        if (row, place) in met:
            continue
        met.add((row, place))
        if art[row][place] == "*" and row > start:
            found.add(int(names[row]))
        elif row + 1 < len(art):
            below = dict(enumerate(art[row + 1]))
            waiting += [(row + 1, each) for each in follows(art[row][place], place, below)]
    return found


def follows(mark, place, below):
    """Where the line of a mark goes on in the row below."""
    if mark == "/" and below.get(place - 2) == "/":
        return [place - 2]  # on its way past other lanes
    lane = {"/": place - 1, "\\": place + 1}.get(mark, place)
    opened = [lane + 1] if below.get(lane + 1) == "\\" else []
    if below.get(lane) in ("*", "|"):
        return [lane, *opened]
    return opened or ([lane - 1] if below.get(lane - 1) == "/" else [])
