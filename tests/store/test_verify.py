import pytest

from lamina.core.manifests import IDENTITY, STACK_TYPE, StackConfig, StackedLayer
from lamina.store.refs import SUBJECT
from tests.store.make import IDENTITY_OF_BASE, put_base, put_layer, put_naming, put_stack


@pytest.fixture
def full(store):
    put_base(store)
    stack = put_stack(store, "a", "b")
    store.move("support", stack, expected=None)
    put_naming(store, stack)
    return store


def test_a_whole_store_is_clean(full):
    full.put_bytes(b"orphan", "text/plain")
    told = []
    report = full.verify(lambda done, total: told.append((done, total)))
    assert report.clean
    assert (report.orphans, report.orphan_bytes) == (1, 6)
    assert report.entries == 6
    assert report.blobs == len(list(full.blobs_dir.iterdir())) - 1 == len(told)
    assert told[-1] == (report.bytes, report.bytes)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_every_damaged_blob_is_found_one_by_one(full):
    for path in sorted(full.blobs_dir.iterdir()):
        good = path.read_bytes()
        for bad, word in (
            (good[:-1] + bytes([good[-1] ^ 1]), "don't match"),
            (good[:-1], "bytes instead of"),
            (None, "is missing"),
        ):
            path.unlink()
            if bad is not None:
                path.write_bytes(bad)
            report = full.verify()
            assert len(report.faults) == 1, report.faults
            assert path.name in report.faults[0]
            assert word in report.faults[0]
            path.write_bytes(good)
    assert full.verify().clean


def test_all_damage_is_listed_at_once_and_nothing_changes(full):
    paths = sorted(full.blobs_dir.iterdir())
    for path in paths:
        path.write_bytes(b"")
    report = full.verify()
    listed = {e.digest for e in full.entries()}
    assert len(report.faults) == len(listed)  # what damaged manifests name can't be known
    assert report.orphans == len(paths) - len(listed)
    assert all(path.read_bytes() == b"" for path in paths)


def edit(store, change):
    text = store.index_path.read_text()
    assert change[0] in text
    store.index_path.write_text(text.replace(*change))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ((f'"{SUBJECT}":"sha256:', f'"{SUBJECT}":"sha256:0'), "another subject"),
        ((f'"{IDENTITY}":"sha256:', f'"{IDENTITY}":"sha256:0'), "another identity"),
        (('"support:v1"', '"support:latest"'), "listed twice"),
        (("vnd.lamina.layer.v1", "vnd.lamina.stack.v1"), "the index calls"),
        (("oci.image.manifest.v1", "oci.image.index.v1"), "is no image manifest"),
    ],
)
def test_an_index_that_contradicts_the_blobs(full, change, fault):
    text = full.index_path.read_text()
    if "oci.image.manifest" in change[0]:
        head, tail = text.split("]", 1)
        text = head.replace(*change) + "]" + tail
        full.index_path.write_text(text)
    else:
        edit(full, change)
    assert any(fault in text for text in full.verify().faults)


def test_a_stack_without_its_layers(store):
    layer = put_layer(store, "a")
    config = StackConfig(base=IDENTITY_OF_BASE, layers=(StackedLayer(layer=layer.digest),))
    store.add_root(store.put_object(STACK_TYPE, config))
    (fault,) = store.verify().faults
    assert "doesn't carry its layer" in fault


def test_a_config_that_is_no_config(store):
    store.add_root(store.put_object(STACK_TYPE, StackedLayer(layer=IDENTITY_OF_BASE)))
    assert any("is not valid" in fault for fault in store.verify().faults)
