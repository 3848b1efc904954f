import os

import pytest

from lamina.core.errors import StoreError
from lamina.core.names import Name
from lamina.store.layout import Store
from tests.store.make import age, put_base, put_layer, put_naming, put_stack


def on_disk(store):
    return {f"sha256:{p.name}" for p in store.blobs_dir.iterdir()}


def drop_layers(store):
    for entry in store.entries():
        store.remove_root(entry.digest)


def test_what_is_reached_stays(store):
    put_base(store)
    put_naming(store, put_stack(store, "a"))
    store.move("support", put_stack(store, "a", "b"), expected=None)
    store.move("support", put_stack(store, "a"), expected=store.resolve(Name("support")).digest)
    before = on_disk(store)
    age(store)
    report = store.collect()
    assert (report.blobs, report.evidence, report.bytes, report.young) == ((), (), 0, 0)
    assert on_disk(store) == before
    assert store.verify().clean


def test_layers_carried_by_a_stack_outlive_their_own_roots(store):
    store.move("support", put_stack(store, "a", "b"), expected=None)
    drop_layers_not_names = [e.digest for e in store.entries() if e.ref_name is None]
    for digest in drop_layers_not_names:
        store.remove_root(digest)
    before = on_disk(store)
    store.collect(grace_seconds=0)
    assert on_disk(store) == before


def test_shared_blobs_stay_for_the_other(store):
    a, b = put_layer(store, "a"), put_layer(store, "b")
    shared = store.manifest(a.digest).layers[0].digest
    assert shared == store.manifest(b.digest).layers[0].digest
    payload = store.manifest(a.digest).layers[1].digest
    config = store.manifest(a.digest).config.digest
    store.remove_root(a.digest)
    report = store.collect(grace_seconds=0)
    assert set(report.blobs) == {a.digest, payload, config}
    assert store.has(shared)
    assert store.verify().clean


def test_young_orphans_stay_until_the_grace_is_over(store):
    blob = store.put_bytes(b"not named yet", "text/plain")
    (store.blobs_dir / ".tmp-blob-1").write_bytes(b"half")
    report = store.collect()
    assert (report.blobs, report.temporary, report.young) == ((), (), 1)
    age(store)
    report = store.collect()
    assert report.blobs == (blob.digest,)
    assert report.bytes == blob.size
    assert report.temporary == ("blobs/sha256/.tmp-blob-1",)
    assert on_disk(store) == set()


def test_dry_run_tells_the_same_and_removes_nothing(store):
    stack = put_stack(store, "a")
    put_naming(store, stack)
    drop_layers_keep_evidence = [e.digest for e in store.entries() if not e.annotations]
    for digest in drop_layers_keep_evidence:
        store.remove_root(digest)
    (store.root / ".tmp-index.json-1").write_bytes(b"half")
    before, index = on_disk(store), store.index_path.read_bytes()
    told = store.collect(grace_seconds=0, dry_run=True)
    assert on_disk(store) == before
    assert store.index_path.read_bytes() == index
    assert (store.root / ".tmp-index.json-1").exists()
    done = store.collect(grace_seconds=0)
    assert done == told.model_copy(update={"dry_run": False})
    assert on_disk(store) == set()
    assert len(done.evidence) == 1


def test_evidence_goes_with_its_subject_and_evidence_about_it_too(store):
    stack, kept = put_stack(store, "a"), put_stack(store, "b")
    evidence = put_naming(store, stack)
    signature = put_naming(store, evidence, "signature")
    other = put_naming(store, kept)
    store.move("kept", kept, expected=None)
    age(store)
    report = store.collect()
    assert set(report.evidence) == {evidence.digest, signature.digest}
    assert stack.digest in report.blobs
    assert store.referrers(stack.digest) == ()
    assert store.referrers(kept.digest) == (other,)
    assert store.verify().clean


def test_evidence_stays_while_its_subject_is_young(store):
    stack = put_stack(store, "a")
    evidence = put_naming(store, stack)
    age(store)
    os.utime(store.path(stack.digest))
    assert store.collect().evidence == ()
    assert store.referrers(stack.digest) == (evidence,)


def test_a_writer_who_reuses_an_old_blob_is_not_robbed(store):
    layer = put_layer(store, "a")
    store.remove_root(layer.digest)
    age(store)
    writer = Store.open(store.root)
    stack = put_stack(writer, "a")  # every blob is there already, old and unreached
    for entry in writer.entries():
        writer.remove_root(entry.digest)
    assert store.collect().blobs == ()
    assert writer.move("support", stack, expected=None) == 1
    assert writer.verify().clean


def test_a_streaming_writer_is_not_robbed(store):
    with store.writer() as writer:
        writer.write(b"first half, ")
        store.collect()
        writer.write(b"second half")
        digest = writer.commit()
    assert store.read(digest) == b"first half, second half"


def test_damage_stops_the_collection(store):
    stack = put_stack(store, "a")
    store.move("support", stack, expected=None)
    orphan = store.put_bytes(b"orphan", "text/plain")
    store.path(stack.digest).write_bytes(b"{}")
    before = on_disk(store)
    with pytest.raises(StoreError, match="nothing was collected") as caught:
        store.collect(grace_seconds=0)
    assert stack.digest in str(caught.value)
    assert on_disk(store) == before
    assert orphan.digest in before
    store.untag_all("support")
    assert orphan.digest in store.collect(grace_seconds=0).blobs


def test_runs_and_strange_files_are_never_touched(store):
    run = store.runs_dir / ".tmp-run" / "checkpoint"
    run.parent.mkdir(parents=True)
    run.write_bytes(b"x")
    strange = store.blobs_dir / "README"
    strange.write_bytes(b"x")
    stale = store.cache_dir / "bases" / ".tmp-abc" / "deep" / ".tmp-inner"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"x")
    good = store.cache_dir / "bases" / "abc"
    good.write_bytes(b"x")
    assert store.collect().temporary == ()
    report = store.collect(grace_seconds=0)
    assert report.temporary == ("cache/bases/.tmp-abc",)
    assert run.exists()
    assert strange.exists()
    assert good.exists()
    assert not stale.exists()
