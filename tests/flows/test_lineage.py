"""What is newest and what went stale; on stacks without tensors."""

import re

import pytest

from lamina.core.errors import UnknownNameError, UsageError
from lamina.core.manifests import StackedLayer
from lamina.core.names import Name
from lamina.flows.graph import graph
from lamina.flows.inventory import history
from lamina.flows.lineage import Lineage, render_status, status_of
from tests.books import Books


@pytest.fixture
def books(tmp_path):
    return Books(tmp_path / "store")


@pytest.fixture
def three(books):
    """assistant, agent over it, poet over both; all current."""
    books.assistant = books.layer("assistant", author="ann")
    books.agent = books.layer("agent", [books.assistant])
    books.poet = books.layer("poet", [books.assistant, books.agent])
    books.name("assistant", books.assistant)
    books.name("agent", books.assistant, books.agent)
    books.name("poet", books.assistant, books.agent, books.poet)
    return books


def newest(books, layer):
    return Lineage.of(books.store).newest(layer)


def states(books, name):
    """layer's name -> state, of the stack that a name means."""
    (found,) = status_of(books.store, name)
    return {layer.name: layer.state for layer in found.layers}


# -- what is newest --------------------------------------------------------------------------------


def test_a_layer_that_no_name_holds_supersedes_nothing(three):
    new = three.layer("assistant", number=2, supersedes=three.assistant)
    assert newest(three, three.assistant) == three.assistant
    assert all(status.fresh for status in status_of(three.store))
    three.name("assistant", new)
    assert newest(three, three.assistant) == new


def test_a_chain_is_followed_to_its_end(three):
    second = three.layer("assistant", number=2, supersedes=three.assistant)
    third = three.layer("assistant", number=3, supersedes=second)
    three.name("assistant", second)
    three.name("assistant", third)
    assert newest(three, three.assistant) == newest(three, second) == newest(three, third) == third
    agent = status_of(three.store, "agent")[0]
    assert (agent.layers[0].by, agent.layers[0].by_name) == (third, "assistant:v3")


def test_a_chain_holds_without_a_name_for_its_middle(three):
    second = three.layer("assistant", number=2, supersedes=three.assistant)
    third = three.layer("assistant", number=3, supersedes=second)
    three.name("assistant", third)
    assert newest(three, three.assistant) == newest(three, second) == third
    three.store.remove_root(second)
    three.store.collect(grace_seconds=0)  # now it lives elsewhere
    assert newest(three, second) == third
    assert newest(three, three.assistant) == three.assistant  # nobody here knows that they are kin


def test_of_two_successors_the_one_under_the_layers_own_name_wins(three):
    left = three.layer("assistant", number=2, supersedes=three.assistant)
    right = three.layer("assistant", number=3, supersedes=three.assistant)
    three.name("assistant", left)
    three.name("experiment", right)
    assert newest(three, three.assistant) == left
    three.name("assistant", right)
    assert newest(three, three.assistant) == right


def test_of_two_successors_elsewhere_the_one_named_last_wins(three):
    left = three.layer("assistant", number=2, supersedes=three.assistant)
    right = three.layer("assistant", number=3, supersedes=three.assistant)
    three.name("right", right)
    three.name("left", left)
    assert newest(three, three.assistant) == left
    three.name("other", right)
    assert newest(three, three.assistant) == right


def test_a_successor_counts_through_its_own_successor(three):
    left = three.layer("assistant", number=2, supersedes=three.assistant)
    right = three.layer("assistant", number=3, supersedes=three.assistant)
    last = three.layer("assistant", number=4, supersedes=left)
    three.name("assistant", left)
    three.name("right", right)
    three.name("assistant", last)
    assert newest(three, three.assistant) == last


def test_a_removed_name_supersedes_nothing(three):
    new = three.layer("assistant", number=2, supersedes=three.assistant)
    three.name("experiment", new)
    assert newest(three, three.assistant) == new
    three.store.untag_all("experiment")
    assert newest(three, three.assistant) == three.assistant


def test_a_name_that_moved_back_settles_it(three):
    new = three.layer("assistant", number=2, supersedes=three.assistant)
    three.name("assistant", new)
    three.name("assistant", three.assistant)
    assert newest(three, three.assistant) == three.assistant
    assert status_of(three.store, "assistant")[0].version == "assistant:v3"
    three.name("agent", new, three.layer("agent", [new], supersedes=three.agent))
    assert newest(three, three.assistant) == three.assistant  # although somebody stands on it
    assert status_of(three.store, "assistant")[0].fresh


def test_what_a_name_moved_away_from_supersedes_nothing(three):
    new = three.layer("assistant", number=2, supersedes=three.assistant)
    three.name("other", new)
    three.name("other", three.layer("unrelated"))
    assert newest(three, three.assistant) == three.assistant


# -- what went stale -------------------------------------------------------------------------------


def test_what_stands_above_a_new_version_is_stale(three):
    new = three.layer("agent", [three.assistant], number=2, supersedes=three.agent)
    three.name("agent", three.assistant, new)
    found = {status.name: status for status in status_of(three.store)}
    assert {name: status.fresh for name, status in found.items()} == {
        "agent": True,
        "assistant": True,
        "poet": False,
    }
    assert states(three, "poet") == {
        "assistant": "current",
        "agent": "superseded",
        "poet": "stale",
    }
    poet = found["poet"].layers[2]
    assert poet.because == ((three.agent, "agent"),)
    assert poet.render() == "stale: agent changed beneath it"


def test_everything_above_goes_stale(three):
    new = three.layer("assistant", number=2, supersedes=three.assistant)
    three.name("assistant", new)
    assert states(three, "agent") == {"assistant": "superseded", "agent": "stale"}
    assert states(three, "poet") == {"assistant": "superseded", "agent": "stale", "poet": "stale"}
    (poet,) = status_of(three.store, "poet")
    assert [layer.because for layer in poet.layers[1:]] == [((three.assistant, "assistant"),)] * 2


def test_a_stack_that_was_carried_over_is_current_again(three):
    new = three.layer("assistant", number=2, supersedes=three.assistant)
    three.name("assistant", new)
    source = (StackedLayer(layer=three.agent),)
    over = three.layer("agent", [new], origin="carried", supersedes=three.agent, sources=source)
    three.name("agent", new, over)
    assert states(three, "agent") == {"assistant": "current", "agent": "carried"}
    assert states(three, "agent:v1") == {"assistant": "superseded", "agent": "superseded"}
    assert states(three, "poet") == {
        "assistant": "superseded",
        "agent": "superseded",
        "poet": "stale",
    }


def test_a_layer_forced_over_others_is_stale(three):
    new = three.layer("assistant", number=2, supersedes=three.assistant)
    three.name("assistant", new)
    three.name("agent", new, three.agent)  # trained over the old one
    assert states(three, "agent") == {"assistant": "current", "agent": "stale"}
    upper = three.layer("upper", [new, three.agent])
    three.name("upper", new, three.agent, upper)
    assert states(three, "upper")["upper"] == "stale"  # it stands on what has to be carried


def test_words_for_people_say_what_to_type(three):
    assert render_status(status_of(three.store)) == (
        "everything is current: agent:v1, assistant:v1, poet:v1"
    )
    new = three.layer("assistant", number=2, supersedes=three.assistant)
    three.name("assistant", new)
    text = render_status(status_of(three.store))
    assert "agent:v1 is stale; bring it up to date: lamina refresh agent\n" in text
    assert re.search(r"  assistant  @\w{12}  superseded by @\w{12} \(assistant:v2\)", text)
    assert re.search(r"  agent      @\w{12}  stale: assistant changed beneath it", text)
    assert text.endswith("\n\ncurrent: assistant:v2")


def test_names_are_checked(three):
    with pytest.raises(UnknownNameError, match="agnet"):
        status_of(three.store, "agnet")
    with pytest.raises(UnknownNameError, match="v7"):
        status_of(three.store, "agent:v7")
    with pytest.raises(UsageError, match="is a base"):
        status_of(three.store, "pico")
    with pytest.raises(UnknownNameError):
        graph(three.store, "agnet")


def test_a_name_without_a_version_is_seen(books):
    layer = books.layer("plain")
    books.store.tag(Name("plain"), books.put(layer), expected=None)
    (found,) = status_of(books.store)
    assert (found.version, found.fresh) == ("plain", True)
    assert graph(books.store).nodes[0].version == "plain"


def test_an_empty_store(books):
    assert status_of(books.store) == ()
    assert "no stack has a name yet" in render_status(())
    assert graph(books.store).render() == "no name has been given yet"


# -- the history -----------------------------------------------------------------------------------


def test_the_history_knows_each_move(three):
    three.name("agent", three.assistant)
    moves = history(three.store, None)
    assert [(m["name"], m["version"]) for m in moves] == [
        ("agent", 2),
        ("poet", 1),
        ("agent", 1),
        ("assistant", 1),
    ]
    assert {m["author"] for m in moves} == {"ann"}
    assert all(m["passed"] for m in moves)
    assert [m["version"] for m in history(three.store, "agent")] == [2, 1]
