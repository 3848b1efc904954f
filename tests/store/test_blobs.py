import hashlib
import itertools
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.core.digest import digest_bytes
from lamina.core.errors import CorruptBlobError, MissingBlobError, StoreError, UsageError
from lamina.store.layout import Store

NOWHERE = "sha256:" + "0" * 64


def temporary(store):
    return [p.name for p in store.root.rglob(".tmp-*")]


@settings(max_examples=25, deadline=None)
@given(data=st.binary(max_size=4096), cuts=st.lists(st.integers(0, 4096), max_size=4))
def test_bytes_come_back_however_they_were_written(data, cuts):
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "s")
        edges = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
        with store.writer() as writer:
            for start, end in itertools.pairwise(edges):
                writer.write(data[start:end])
            digest = writer.commit()
        assert digest == "sha256:" + hashlib.sha256(data).hexdigest()
        assert store.read(digest) == data == store.path(digest).read_bytes()
        assert store.put_bytes(data, "text/plain").digest == digest
        assert temporary(store) == []


@given(text=st.text(max_size=80) | st.from_regex(r"sha256:[0-9a-fA-F/.]{60,66}"))
def test_only_digests_become_paths(text):
    store = Store(Path("/nowhere"))
    lead, hexa = text[:7], text[7:]
    if lead == "sha256:" and len(hexa) == 64 and set(hexa) <= set("0123456789abcdef"):
        assert store.has(text) is False
        return
    with pytest.raises(UsageError):
        store.has(text)


def test_descriptor_says_what_was_put(store):
    found = store.put_bytes(b"abc", "text/plain", title="a.txt")
    assert (found.size, found.mediaType, found.title) == (3, "text/plain", "a.txt")
    assert store.put_bytes(b"abc", "text/plain").annotations is None


@pytest.mark.parametrize("verb", ["put_file", "adopt_file"])
def test_files_go_in_whole_and_stay_where_they_were(store, tmp_path, verb):
    source = tmp_path / "big"
    source.write_bytes(os.urandom((3 << 20) + 7))
    link = tmp_path / "link"
    link.symlink_to(source)
    found = getattr(store, verb)(link, "application/x", title="big")
    assert found.size == source.stat().st_size
    assert store.read(found.digest) == source.read_bytes()
    shared = store.path(found.digest).stat().st_ino == source.stat().st_ino
    assert shared == (verb == "adopt_file")
    assert not store.path(found.digest).is_symlink()
    assert temporary(store) == []


def test_adopt_copies_across_file_systems(store, tmp_path):
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == store.root.stat().st_dev:
        pytest.skip("no second file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir=elsewhere) as folder:
        source = Path(folder) / "f"
        source.write_bytes(b"far away")
        found = store.adopt_file(source, "text/plain")
        assert store.read(found.digest) == b"far away"
        assert source.exists()
    assert temporary(store) == []


@pytest.mark.parametrize("verb", ["put_file", "adopt_file"])
def test_unreadable_source_is_a_usage_error(store, tmp_path, verb):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match="cannot read"):
            getattr(store, verb)(path, "text/plain")


def test_existing_blob_is_not_rewritten(store, tmp_path):
    found = store.put_bytes(b"once", "text/plain")
    inode = store.path(found.digest).stat().st_ino
    (tmp_path / "f").write_bytes(b"once")
    store.put_bytes(b"once", "text/plain")
    store.put_file(tmp_path / "f", "text/plain")
    store.adopt_file(tmp_path / "f", "text/plain")
    with store.writer() as writer:
        writer.write(b"once")
        writer.commit()
    assert store.path(found.digest).stat().st_ino == inode


def test_put_renews_the_age(store):
    found = store.put_bytes(b"old", "text/plain")
    os.utime(store.path(found.digest), (1, 1))
    store.put_bytes(b"old", "text/plain")
    assert store.path(found.digest).stat().st_mtime > 1e9


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, truncate])
def test_damaged_blob_is_never_handed_out_and_a_put_heals_it(store, damage):
    data = b"precious" * 100
    digest = store.put_bytes(data, "text/plain").digest
    damage(store.path(digest))
    assert store.has(digest)
    assert not store.intact(digest)
    for use in (store.read, store.path):
        with pytest.raises(CorruptBlobError, match="lamina verify"):
            use(digest)
    store.put_bytes(data, "text/plain")
    assert store.read(digest) == data
    assert store.intact(digest)


def test_missing_blob(store):
    assert not store.has(NOWHERE)
    assert not store.intact(NOWHERE)
    for use in (store.read, store.path):
        with pytest.raises(MissingBlobError, match=NOWHERE):
            use(NOWHERE)


def test_read_has_a_limit(store):
    digest = store.put_bytes(b"12345", "text/plain").digest
    assert store.read(digest, limit=5) == b"12345"
    with pytest.raises(StoreError, match="5 bytes, at most 4"):
        store.read(digest, limit=4)


def test_path_hashes_again_only_after_a_change(store, monkeypatch):
    digest = store.put_bytes(b"abc", "text/plain").digest
    fresh = Store.open(store.root)
    hashed = []
    real = fresh.path.__globals__["digest_file"]
    monkeypatch.setitem(
        fresh.path.__globals__, "digest_file", lambda path: hashed.append(path) or real(path)
    )
    fresh.path(digest)
    fresh.path(digest)
    assert len(hashed) == 1
    os.utime(fresh.path(digest), (5, 5))
    fresh.path(digest)
    assert len(hashed) == 2


def test_writer_checks_the_expected_digest(store):
    with store.writer() as writer:
        writer.write(b"not that")
        with pytest.raises(CorruptBlobError, match="expected"):
            writer.commit(NOWHERE)
    assert not store.has(digest_bytes(b"not that"))
    assert temporary(store) == []


def test_writer_without_commit_leaves_nothing(store):
    with store.writer() as writer:
        writer.write(b"abandoned")
    with pytest.raises(KeyError), store.writer() as writer:
        writer.write({}["cut off"])
    assert list(store.blobs_dir.iterdir()) == []


def test_writer_stops_at_its_limit(store):
    with store.writer(limit=4) as writer:
        writer.write(b"1234")
        with pytest.raises(CorruptBlobError, match="expected 4 bytes"):
            writer.write(b"5")
    assert list(store.blobs_dir.iterdir()) == []
