"""What a user types, as a stack; and stacks that nobody trained."""

import pytest

from lamina.core.errors import UnknownNameError, UsageError, WrongParentError
from lamina.core.manifests import StackedLayer
from lamina.core.names import Name
from lamina.stack.resolve import resolve
from lamina.store.refs import ANYTHING
from tests.stacks import BASE, new_store, put_layer, put_stack, random_factors


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = new_store(tmp_path_factory.mktemp("resolve") / "store", layers=1)
    put_stack(store, "two", 2)
    return store


def version(store, name):
    """Give a name its next fixed version, where it points now."""
    target = store.resolve(Name(name))
    return store.move(name, target, expected=ANYTHING)


def test_every_way_to_say_a_stack(store):
    assert version(store, "two") == 1
    stack = resolve(store, "two")
    top = stack.layers[-1].digest
    ways = ["two", "two:v1", stack.digest, f"@{stack.digest[7:19]}", top, f"@{top[7:15]}"]
    found = [resolve(store, way) for way in ways]
    assert {each.digest for each in found} == {stack.digest}
    assert [each.label for each in found] == ways
    assert [layer.config.name for layer in stack.layers] == ["two0", "two1"]


def test_a_lower_layer_means_the_stack_it_was_the_top_of(store):
    low = resolve(store, "two").layers[0].digest
    assert [layer.digest for layer in resolve(store, low).layers] == [low]


def test_a_base_is_the_stack_of_no_layers(store):
    stack = resolve(store, BASE)
    assert stack.layers == ()
    assert stack.config.base == stack.base_config.identity == resolve(store, "two").config.base
    assert resolve(store, stack.base.digest).digest == stack.digest


def test_unknown_names_say_what_there_is(store):
    for text in ("nobody", "two:v9", f"{BASE}:v1", "@0123456789", "sha256:" + "0" * 64):
        with pytest.raises(UnknownNameError) as caught:
            resolve(store, text)
        assert caught.value.hint
    with pytest.raises(UnknownNameError, match=r"known: pico, two"):
        resolve(store, "nobody")
    for text in ("No Name", "@12", ""):
        with pytest.raises(UsageError):
            resolve(store, text)


def test_wrong_parents_name_both_digests(store):
    low, high = (layer.digest for layer in resolve(store, "two").layers)
    base = resolve(store, BASE).config.base
    other = put_layer(store, "other", random_factors(store, seed=9))
    swapped = [StackedLayer(layer=other.digest), StackedLayer(layer=high)]
    store.tag(Name("swapped"), store.put_stack(base, swapped), expected=ANYTHING)
    with pytest.raises(WrongParentError) as caught:
        resolve(store, "swapped")
    (fault,) = caught.value.faults
    assert low in fault
    assert other.digest in fault
    assert "--force" in caught.value.hint
    assert [x.digest for x in resolve(store, "swapped", force=True).layers] == [other.digest, high]


def test_wrong_base_and_wrong_weight(store):
    low, high = (layer.digest for layer in resolve(store, "two").layers)
    base = resolve(store, BASE).config.base
    foreign = put_layer(store, "foreign", random_factors(store), base="sha256:" + "7" * 64)
    store.tag(
        Name("foreign"),
        store.put_stack(base, [StackedLayer(layer=foreign.digest)]),
        expected=ANYTHING,
    )
    with pytest.raises(WrongParentError) as caught:
        resolve(store, "foreign")
    assert "sha256:" + "7" * 64 in caught.value.faults[0]
    assert base in caught.value.faults[0]
    weighted = [StackedLayer(layer=low, weight=0.5), StackedLayer(layer=high)]
    store.tag(Name("weighted"), store.put_stack(base, weighted), expected=ANYTHING)
    with pytest.raises(WrongParentError, match=r"x 0\.5"):
        resolve(store, "weighted")


def test_the_top_may_have_any_weight(store):
    low, high = (layer.digest for layer in resolve(store, "two").layers)
    base = resolve(store, BASE).config.base
    stacked = [StackedLayer(layer=low), StackedLayer(layer=high, weight=0.25)]
    store.tag(Name("softer"), store.put_stack(base, stacked), expected=ANYTHING)
    assert [layer.weight for layer in resolve(store, "softer").layers] == [1.0, 0.25]


def test_reading_writes_nothing(store):
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    for text in ("two", BASE, resolve(store, "two").layers[-1].digest):
        resolve(store, text)
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*")} == before
