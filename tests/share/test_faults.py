"""Bad networks and lying registries: what arrives is right, or nothing does."""

import re

import pytest

from lamina.core.errors import (
    CorruptBlobError,
    DroppedError,
    LaminaError,
    MissingBlobError,
    StoreFullError,
)
from lamina.core.manifests import Descriptor
from lamina.core.names import Name
from lamina.core.report import Silent
from lamina.flows.publish import Landing, pull, push
from lamina.share import registry as registry_module
from lamina.share.reference import parse_place
from lamina.share.referrers import Repository
from lamina.share.transfer import Moved, fetch
from lamina.share.wire import Access, Patience
from lamina.store.layout import Store
from lamina.store.partial import resumed
from tests.share.conftest import QUICK
from tests.share.modern import Modern
from tests.share.proxy import FAULTS, Proxy
from tests.share.stacks import noise, tall
from tests.store.make import put_base

pytestmark = pytest.mark.slow

SIZE = 400_000
WORDS = ["a", "b", "c"]


def through(port, place):
    return re.sub(r"127.0.0.1:\d+", f"127.0.0.1:{port}", place)


def blob_of(home, word="a"):
    data = noise(word, SIZE)
    return home.put_bytes(data, "application/octet-stream"), data


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_lived_with(home, away, registry, place, access, fault):
    """Half of all requests are broken in one way; the rest get through."""
    stack = tall(home, WORDS, size=SIZE)
    put_base(away)
    patient = Access(patience=Patience(attempts=30, first_seconds=0.001, most_seconds=0.02))
    with Proxy(registry.port, seed=7, rate=0.4, faults=[fault], far=SIZE) as proxy:
        bad = through(proxy.port, place)
        push(home, "tall", bad, patient, Silent())
        pulled = pull(away, bad, patient, Silent(), Landing())
        assert proxy.counts[fault] > 3
    assert pulled["stack"] == stack.digest
    assert away.verify().clean
    fresh = Store.open(away.root.parent / "fresh")
    put_base(fresh)
    assert pull(fresh, place, access, Silent(), Landing())["stack"] == stack.digest


@pytest.mark.parametrize("seed", range(3))
def test_mixed_faults_leave_nothing_half(home, away, registry, place, access, seed):
    stack = tall(home, WORDS, size=SIZE)
    put_base(away)
    with Proxy(registry.port, seed=seed, rate=0.3, far=SIZE) as proxy:
        bad = through(proxy.port, place)
        for work in (
            lambda: push(home, "tall", bad, access, Silent()),
            lambda: pull(away, bad, access, Silent(), Landing()),
        ):
            for _ in range(40):
                try:
                    work()
                    break
                except LaminaError:
                    assert home.verify().clean
                    assert away.verify().clean
            else:
                pytest.fail("it never got through")
    assert away.resolve(Name(parse_place(place).repository.rpartition("/")[2])) == stack


class Lying:
    """A source whose blob is changed by a function of (bytes, offset, times asked)."""

    def __init__(self, data, lie):
        self.data, self.lie, self.asked = data, lie, []

    def blob(self, item, *, offset=0):
        self.asked.append(offset)
        yield from self.lie(self.data, offset, len(self.asked))


def pieces(data, size=50_000):
    return [data[i : i + size] for i in range(0, len(data), size)]


def bring(store, source, item, attempts=4):
    moved = Moved()
    patience = Patience(attempts=attempts, first_seconds=0.001)
    fetch(store, source, [item], patience=patience, moved=moved)
    return moved


def test_a_download_goes_on_where_it_broke_off(home, away):
    item, data = blob_of(home)

    def breaks(data, offset, times):
        yield from pieces(data[offset : offset + 100_000])
        if offset + 100_000 < len(data):
            raise DroppedError("broke off")

    source = Lying(data, breaks)
    moved = bring(away, source, item, attempts=2)  # headway starts the count anew
    assert source.asked == [0, 100_000, 200_000, 300_000]
    assert moved.bytes == len(data)
    assert away.read(item.digest) == data


def test_a_download_goes_on_in_a_new_process(home, away):
    item, data = blob_of(home)
    with resumed(away, item) as writer:
        writer.write(data[:123_456])  # and no commit
    source = Lying(data, lambda data, offset, _: pieces(data[offset:]))
    bring(Store.open(away.root), source, item)
    assert source.asked == [123_456]
    assert away.read(item.digest) == data
    assert not list(away.blobs_dir.glob(".tmp-*"))


def test_wrong_bytes_are_asked_for_again_from_the_beginning(home, away):
    item, data = blob_of(home)

    def first_is_wrong(data, offset, times):
        yield from pieces(data[offset:-1] + b"?" if times == 1 else data[offset:])

    source = Lying(data, first_is_wrong)
    moved = bring(away, source, item)
    assert source.asked == [0, 0]
    assert moved.retried == 1


@pytest.mark.parametrize(
    "lie",
    [
        lambda data, offset, _: pieces(bytes(len(data))[offset:]),
        lambda data, offset, _: pieces(data[offset:] + b"more"),
        lambda data, offset, _: pieces((data + data)[offset:]),
    ],
    ids=["other", "more", "twice"],
)
def test_a_source_that_keeps_lying_is_refused(home, away, lie):
    item, data = blob_of(home)
    with pytest.raises(CorruptBlobError):
        bring(away, Lying(data, lie), item)
    assert not list(away.blobs_dir.iterdir())


def test_a_source_that_always_stops_short_is_given_up(home, away):
    item, data = blob_of(home)
    with pytest.raises(DroppedError, match="of 400000 bytes came"):
        bring(away, Lying(data, lambda data, offset, _: pieces(data[offset:1000])), item)
    assert not away.has(item.digest)


def test_two_who_bring_the_same_blob_do_not_mix(home, away):
    item, data = blob_of(home)
    with resumed(away, item) as first, resumed(Store.open(away.root), item) as second:
        for piece in pieces(data):
            first.write(piece)
            second.write(piece)
        second.commit(item.digest)
        first.commit(item.digest)
    assert away.read(item.digest) == data
    assert [path.name for path in away.blobs_dir.iterdir()] == [item.digest[7:]]


def test_no_room_is_said_before_anything_moves(away):
    huge = Descriptor(mediaType="x", digest="sha256:" + "0" * 64, size=1 << 60)
    with pytest.raises(StoreFullError, match="are free"):
        bring(away, Lying(b"", lambda *_: []), huge)


def test_a_range_that_is_ignored_is_coped_with(home, registry, place, access):
    item, data = blob_of(home)
    with Repository(parse_place(place), access) as repository:
        repository.upload(item, memoryview(data))
    with (
        Proxy(registry.port, rate=1.0, faults=["no_range"]) as proxy,
        Repository(parse_place(through(proxy.port, place)), access) as repository,
    ):
        assert b"".join(repository.blob(item, offset=150_001)) == data[150_001:]
        assert proxy.counts["no_range"]
    with Repository(parse_place(place), access) as repository:
        assert b"".join(repository.blob(item, offset=150_001)) == data[150_001:]
        assert b"".join(repository.blob(item, offset=len(data) + 5)) == b""


def test_a_missing_blob_is_said(registry, place, access):
    item = Descriptor(mediaType="x", digest="sha256:" + "1" * 64, size=5)
    with Repository(parse_place(place), access) as repository:
        with pytest.raises(MissingBlobError):
            b"".join(repository.blob(item))
        with pytest.raises(MissingBlobError):
            repository.manifest(item.digest)


# -- uploads in pieces -----------------------------------------------------------------------------


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(registry_module, "PIECE_BYTES", 100_000)


def arrives(port, place, item, data, access):
    with Repository(parse_place(through(port, place)), access) as repository:
        repository.upload(item, memoryview(data))
        assert repository.has_blob(item)
        assert b"".join(repository.blob(item)) == data
        return repository.wire.traffic


def test_a_blob_goes_up_in_pieces(home, registry, place, access, small_pieces):
    item, data = blob_of(home)
    before = len(registry.lines())
    assert arrives(registry.port, place, item, data, access).sent == len(data)
    patches = [line for line in registry.lines()[before:] if '"PATCH ' in line]
    assert len(patches) == 4


def test_an_upload_goes_on_where_the_registry_has_it(home, registry, place, access, small_pieces):
    item, data = blob_of(home)
    with Modern(registry.port, break_after=[70_000, 1, 99_999]) as front:
        traffic = arrives(front.port, place, item, data, access)
        assert not front.break_after
        assert front.resumed == 3
    assert traffic.sent < len(data) + 3 * 100_000


def test_an_upload_that_is_lost_begins_again(home, registry, place, small_pieces):
    """Debian's registry forgets an upload in which a piece broke off."""
    item, data = blob_of(home)
    patient = Access(patience=Patience(attempts=20, first_seconds=0.001, most_seconds=0.02))
    with Proxy(registry.port, seed=3, rate=0.2, faults=["drop"], far=100_000) as proxy:
        traffic = arrives(proxy.port, place, item, data, patient)
        assert proxy.counts["drop"]
    assert traffic.retried


def test_a_registry_that_takes_no_pieces_gets_all_at_once(
    home, registry, place, access, small_pieces, monkeypatch
):
    from tests.share import modern

    def refuse(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer(405, {}, b"")

    monkeypatch.setattr(modern._Handler, "do_PATCH", refuse)
    item, data = blob_of(home)
    with Modern(registry.port) as front:
        arrives(front.port, place, item, data, access)


def test_an_empty_blob_goes_up_and_down(home, away, place, access):
    item = home.put_bytes(b"", "text/plain")
    with Repository(parse_place(place), access) as repository:
        repository.upload(item, memoryview(b""))
        fetch(away, repository, [item], patience=QUICK)
    assert away.read(item.digest) == b""


def test_faults_are_drawn_from_a_seed():
    draws = [Proxy(1, seed=5, rate=0.5) for _ in range(2)]
    assert [draws[0]._draw() for _ in range(50)] == [draws[1]._draw() for _ in range(50)]
    for proxy in draws:
        proxy.close()
