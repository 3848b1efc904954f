"""Accepting a proposal survives a kill at any write; a refusal leaves no trace."""

import shutil

import pytest

from lamina.flows import propose as flow
from lamina.flows.quarantine import quarantine
from lamina.store.layout import Store
from tests.flows import accept_crash
from tests.flows.deaths import report_of
from tests.flows.world import Said, learned


@pytest.fixture
def offer(store, tmp_path):
    """A contributor's `third` over `second`, proposed for it, as a file beside the store."""
    theirs = Store.open(shutil.copytree(store.root, tmp_path / "theirs", symlinks=True))
    learned(theirs, tmp_path, "third", on="second", word="tree", accept_regression="a test")
    path = store.root / accept_crash.OFFER
    flow.propose(theirs, "third", str(path), Said(), onto="second", author="ben")
    return path


@pytest.mark.slow
def test_killed_anywhere_an_acceptance_can_be_done_again(store, offer, tmp_path):
    found = report_of("tests.flows.accept_crash", store.root, tmp_path)
    assert found["deaths"] > 5
    assert found["wanted"]["moves"] == [[2, True], [1, True]]
    assert found["wanted"]["reviewed"] is True


def test_a_quarantine_has_everything_and_writes_nothing_back(store):
    before = {p.name: p.read_bytes() for p in store.blobs_dir.iterdir()}
    index = store.index_path.read_bytes()
    with quarantine(store) as beside:
        assert beside.entries() == store.entries()
        assert beside.verify().clean
        put = beside.put_bytes(b"a stranger's", "text/plain")
        assert not store.has(put.digest)
        beside.untag_all("second")
    assert {p.name: p.read_bytes() for p in store.blobs_dir.iterdir()} == before
    assert store.index_path.read_bytes() == index
    assert not beside.root.exists()


def test_what_a_kill_left_of_a_quarantine_is_swept(store):
    left = store.cache_dir / ".tmp-review-dead"
    (left / "blobs" / "sha256").mkdir(parents=True)
    (left / "blobs" / "sha256" / "x").write_bytes(b"x")
    assert ".tmp-review-dead" in "".join(store.collect(grace_seconds=0).temporary)
    assert not left.exists()
