"""Several stacks brought up to date: in an order in which no layer is carried twice."""

import pytest

from lamina.core.errors import TrainInterrupted, UsageError
from lamina.flows import refresh_all
from lamina.flows.lineage import status_of
from lamina.stack.resolve import resolve
from tests.flows.cascade import WHY, grow, renew
from tests.flows.world import Said
from tests.stacks import new_store

pytestmark = pytest.mark.slow

ABOVE = (("second", "first"), ("third", "first"), ("fourth", "second"))
HOW = refresh_all.How(keep=0.0, at_most="copy", override=WHY)


@pytest.fixture
def store(tmp_path):
    store = new_store(tmp_path / "store")
    grow(store, tmp_path, ABOVE)
    assert refresh_all.stale(store) == ()
    renew(store, tmp_path)
    return store


def test_waves_never_carry_a_layer_twice(store):
    assert refresh_all.stale(store) == ("second", "third", "fourth")
    assert refresh_all.waves(store, ["fourth", "third", "second"]) == ["second", "third"]
    assert refresh_all.waves(store, ["fourth", "third"]) == ["third", "fourth"]


def test_all_become_current_and_share_what_was_carried(store):
    said = Said()
    found = refresh_all.refresh_all(store, ["fourth", "third", "second"], HOW, said, lambda: False)
    assert [(each.name, each.state) for each in found] == [
        ("fourth", "refreshed"), ("third", "refreshed"), ("second", "refreshed"),
    ]  # fmt: skip
    assert all(each.fresh for each in status_of(store, None))
    second, fourth = (resolve(store, name).config.layers for name in ("second", "fourth"))
    assert fourth[:2] == second
    assert [e["name"] for e in said.events if e["event"] == "job"] == ["second", "third", "fourth"]
    again = refresh_all.refresh_all(store, ["second"], HOW, Said(), lambda: False)
    assert [each.state for each in again] == ["current"]


def test_one_that_fails_stops_nobody(store):
    strict = refresh_all.How(keep=50.0, at_most="copy")  # more than anything can keep
    found = refresh_all.refresh_all(store, ["second", "first"], strict, Said(), lambda: False)
    assert [(each.name, each.state) for each in found] == [
        ("second", "refused"), ("first", "current"),
    ]  # fmt: skip
    assert "copy" in found[0].result


def test_what_is_no_name_is_refused(store):
    with pytest.raises(UsageError, match="no name of a stack"):
        refresh_all.refresh_all(
            store, [f"@{resolve(store, 'first').digest[7:19]}"], HOW, Said(), lambda: False
        )


def test_a_stop_says_how_to_go_on(store):
    asked = iter([False, False, False, False])
    with pytest.raises(TrainInterrupted) as found:
        refresh_all.refresh_all(store, ["second", "third"], HOW, Said(), lambda: next(asked, True))
    assert "the same command goes on" in found.value.render()
    done = refresh_all.refresh_all(store, ["second", "third"], HOW, Said(), lambda: False)
    assert all(each.state in ("refreshed", "current") for each in done)
    assert all(each.fresh for each in status_of(store, "third"))
