import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.core.errors import (
    LaminaError,
    MissingBlobError,
    StoreBusyError,
    StoreError,
    UnknownNameError,
    UsageError,
)
from lamina.core.manifests import REF_NAME, Descriptor, ImageIndex
from lamina.core.names import DigestPrefix, Name, parse_reference
from lamina.store.layout import Store
from lamina.store.refs import ANYTHING, SUBJECT
from tests.store.make import put_base, put_layer, put_naming, put_stack


def hex_of(descriptor):
    return descriptor.digest.removeprefix("sha256:")


def test_move_keeps_every_version(store):
    a, b = put_stack(store, "a"), put_stack(store, "b")
    assert store.move("support", a, expected=None) == 1
    assert store.move("support", b, expected=a.digest) == 2
    assert store.move("support", a, expected=b.digest) == 3  # going back is a new version
    assert store.names() == {"support": {"v1": a, "latest": a, "v2": b, "v3": a}}
    assert store.resolve(Name("support")) == a
    assert store.resolve(Name("support", "v2")) == b


def test_move_to_where_it_is_writes_nothing(store):
    a = put_stack(store, "a")
    store.move("support", a, expected=None)
    before = store.index_path.stat()
    assert store.move("support", a, expected=None) == 1
    assert store.index_path.stat() == before


def test_compare_and_swap(store):
    a, b = put_stack(store, "a"), put_stack(store, "b")
    store.tag(Name("support"), a, expected=None)
    for expected, now in ((None, "not to exist"), (b.digest, "expected")):
        with pytest.raises(StoreError, match="somebody else moved") as caught:
            store.tag(Name("support"), put_stack(store, "c"), expected=expected)
        assert now in str(caught.value)
    with pytest.raises(StoreError, match="does not exist"):
        store.move("other", a, expected=b.digest)
    assert store.names() == {"support": {"latest": a}}
    store.tag(Name("support"), b, expected=ANYTHING)
    assert store.resolve(Name("support")) == b


def test_latest_without_a_version_gets_one(store):
    a = put_stack(store, "a")
    store.tag(Name("support"), a, expected=None)
    assert store.move("support", a, expected=None) == 1
    assert store.names()["support"] == {"latest": a, "v1": a}


def test_nothing_incomplete_is_named(store):
    a = put_stack(store, "a")
    gone = store.manifest(a.digest).layers[-1]
    store.path(gone.digest).unlink()
    for use in (
        lambda: store.move("support", a, expected=None),
        lambda: store.tag(Name("support"), a, expected=None),
        lambda: store.add_root(a),
    ):
        with pytest.raises(MissingBlobError, match=gone.digest):
            use()
    blob = store.put_bytes(b"{}", "application/json")
    with pytest.raises(StoreError):
        store.tag(Name("support"), blob, expected=None)
    assert store.names() == {}


def test_base_and_stack_do_not_share_a_name(store):
    base, stack = put_base(store), put_stack(store, "a")
    store.tag_base("pico", base)
    with pytest.raises(UsageError, match="names a base and a stack"):
        store.move("pico", stack, expected=None)
    store.move("support", stack, expected=None)
    with pytest.raises(UsageError, match="names a base and a stack"):
        store.tag_base("support", base)
    assert store.resolve(Name("pico")).digest == base.digest


def test_untag(store):
    a = put_stack(store, "a")
    store.move("support", a, expected=None)
    store.move("keep", a, expected=None)
    store.untag(Name("support", "v1"))
    with pytest.raises(UnknownNameError, match="it has: latest"):
        store.untag(Name("support", "v1"))
    assert store.untag_all("support") == ("latest",)
    with pytest.raises(UnknownNameError, match="known: keep"):
        store.untag_all("support")
    assert list(store.names()) == ["keep"]


def test_unknown_names_get_near_ones(store):
    with pytest.raises(UnknownNameError, match="no names yet"):
        store.resolve(Name("support"))
    store.move("support", put_stack(store, "a"), expected=None)
    with pytest.raises(UnknownNameError, match="did you mean: support"):
        store.resolve(Name("suport"))
    with pytest.raises(UnknownNameError, match="it has: v1, latest"):
        store.resolve(Name("support", "v9"))


def test_digests_resolve_through_stacks(store):
    layer, stack = put_layer(store, "a"), put_stack(store, "a")
    store.move("support", stack, expected=None)
    store.remove_root(layer.digest)
    for wanted in (layer, stack):
        for digits in (6, 12, 64):
            assert store.resolve(parse_reference("@" + hex_of(wanted)[:digits])) == wanted
    with pytest.raises(UnknownNameError, match="check the digits"):
        store.resolve(DigestPrefix("0" * 12))
    payload = store.manifest(layer.digest).layers[0]
    with pytest.raises(UsageError, match="is a blob"):
        store.resolve(DigestPrefix(hex_of(payload)))


def test_ambiguous_digits_list_all(store):
    seen: dict[str, Descriptor] = {}
    for number in range(40):  # two of 40 share their first hex digit
        layer = put_layer(store, f"layer{number}")
        twin = seen.setdefault(hex_of(layer)[0], layer)
        if twin != layer:
            break
    with pytest.raises(UsageError, match="ambiguous") as caught:
        store.resolve(DigestPrefix(hex_of(layer)[0]))
    assert {twin.digest, layer.digest} == {f.split()[0] for f in caught.value.faults}


def test_roots_are_idempotent(store):
    layer = put_layer(store, "a")
    before = store.index_path.read_bytes()
    assert store.add_root(layer) == layer
    assert store.index_path.read_bytes() == before
    store.add_root(layer, {"x": "1"})
    store.add_root(layer, {"y": "2"})
    (entry,) = store.entries()
    assert entry.annotations == {"x": "1", "y": "2"}
    assert store.remove_root(layer.digest) is True
    assert store.remove_root(layer.digest) is False
    assert store.entries() == ()


def test_evidence_entry_names_its_subject(store):
    stack = put_stack(store, "a")
    put_naming(store, stack)
    notes = [e.annotations for e in store.entries() if e.annotations]
    assert notes == [{SUBJECT: stack.digest}]


def test_other_tools_entries_are_kept_and_skipped(store):
    stack = put_stack(store, "a")
    entry = stack.model_copy(update={"annotations": {REF_NAME: "Foo/Bar"}, "artifactType": None})
    index = ImageIndex(manifests=(entry,), annotations={"by": "skopeo"})
    store.index_path.write_bytes(index.to_bytes())
    assert store.names() == {}
    store.move("support", stack, expected=None)
    assert store.entries()[0] == entry
    assert b'"by":"skopeo"' in store.index_path.read_bytes()


def test_a_held_lock_times_out(store):
    impatient = Store(store.root, lock_seconds=0.05)
    stack = put_stack(store, "a")
    held, done = threading.Event(), threading.Event()

    def hold():
        with store._locked():
            held.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(10)
        with pytest.raises(StoreBusyError, match="wait for the other lamina"):
            impatient.move("support", stack, expected=None)
        assert impatient.names() == {}  # reading takes no lock
    finally:
        done.set()
        thread.join()
    assert impatient.move("support", stack, expected=None) == 1


def test_threads_get_distinct_versions(store):
    stacks = [put_stack(store, word) for word in "abcdefgh"]
    versions: list[int] = []
    threads = [
        threading.Thread(
            target=lambda s=s: versions.append(store.move("support", s, expected=ANYTHING))
        )
        for s in stacks
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == list(range(1, 9))


names = st.sampled_from(["a", "b.c", "d-1"])
moves = st.tuples(
    st.sampled_from(["tag", "move", "untag", "untag_all"]),
    names,
    st.sampled_from(["latest", "v1", "v2", "stable"]),
    st.integers(0, 2),
    st.sampled_from(["right", "wrong", "anything"]),
)


def predict(model, verb, name, tag, target, expected):
    """The same verbs over a dict: the new dict, or None where the store must refuse."""
    new = {n: dict(tags) for n, tags in model.items()}
    tags = new.setdefault(name, {})
    if verb == "untag_all":
        return {n: t for n, t in new.items() if n != name} if tags else None
    if verb == "untag":
        return new if tags.pop(tag, None) is not None else None
    key = tag if verb == "tag" else "latest"
    moved = tags.get(key) != target
    if moved and expected == "wrong":
        return None
    versions = {int(t[1:]): d for t, d in tags.items() if t[0] == "v"}
    if verb == "move" and (moved or target not in versions.values()):
        tags[f"v{max(versions, default=0) + 1}"] = target
    tags[key] = target
    return new


@settings(max_examples=12, deadline=None)
@given(steps=st.lists(moves, max_size=12))
def test_names_behave_like_a_dict(steps):
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "s")
        stacks = [put_stack(store, word) for word in "xyz"]
        model: dict[str, dict[str, str]] = {}
        for verb, name, tag, number, guess in steps:
            target = stacks[number]
            current = model.get(name, {}).get(tag if verb == "tag" else "latest")
            expected = {"right": current, "wrong": "sha256:" + "0" * 64, "anything": ANYTHING}
            after = predict(model, verb, name, tag, target.digest, guess)
            verbs = {
                "tag": lambda: store.tag(Name(name, tag), target, expected=expected[guess]),  # noqa: B023
                "move": lambda: store.move(name, target, expected=expected[guess]),  # noqa: B023
                "untag": lambda: store.untag(Name(name, tag)),  # noqa: B023
                "untag_all": lambda: store.untag_all(name),  # noqa: B023
            }
            if after is None:
                with pytest.raises(LaminaError):
                    verbs[verb]()
            else:
                verbs[verb]()
                model = {n: tags for n, tags in after.items() if tags}
            seen = {n: {t: d.digest for t, d in ts.items()} for n, ts in store.names().items()}
            assert seen == model
        assert store.verify().clean
