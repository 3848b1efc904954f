"""Evidence in registries: with the referrers API and without it."""

import json
import multiprocessing

import pytest

from lamina.core.errors import ShareError
from lamina.core.evidence import COST_TYPE, SCORES_TYPE, CostEvidence
from lamina.core.manifests import INDEX_TYPE, MANIFEST_TYPE, Descriptor
from lamina.core.report import Silent
from lamina.flows.publish import Landing, pull, push
from lamina.share.parcel import parcel_of
from lamina.share.reference import parse_place
from lamina.share.referrers import Repository, tag_of
from lamina.store.layout import Store
from tests.share.modern import Modern
from tests.share.registries import get
from tests.share.stacks import cost, tall
from tests.store.make import put_base


@pytest.fixture
def stack(home):
    return tall(home, ["a", "b"])


def through(front, place):
    return f"oci://127.0.0.1:{front.port}/{place.removeprefix('oci://').partition('/')[2]}"


def test_without_the_api_an_index_is_tagged(home, registry, place, access, stack):
    push(home, "tall", place, access, Silent())
    ref = parse_place(place)
    for item in parcel_of(home, stack.digest).evidence:
        subject = parcel_of(home, stack.digest).subjects[item.digest]
        url = f"http://{ref.host}/v2/{ref.repository}/manifests/{tag_of(subject)}"
        status, headers, data = get(url, Accept=INDEX_TYPE)
        assert (status, headers["Content-Type"]) == (200, INDEX_TYPE)
        listed = {entry["digest"]: entry for entry in json.loads(data)["manifests"]}
        assert listed[item.digest]["artifactType"] == item.artifactType
        assert listed[item.digest]["mediaType"] == MANIFEST_TYPE


def test_with_the_api_no_tag_is_made(home, away, registry, place, access, stack):
    put_base(away)
    for number in range(5):  # more than a page of the stand-in's
        home.put_evidence(COST_TYPE, cost(10 + number), stack)
    with Modern(registry.port) as front:
        push(home, "tall", through(front, place), access, Silent())
        pulled = pull(away, through(front, place), access, Silent(), Landing())
        assert not [line for line in front.asked if "/manifests/sha256-" in line]
        assert [line for line in front.asked if "?from=" in line]
    assert pulled["preview"]["evidence"] == len(parcel_of(home, stack.digest).evidence)
    assert len(away.evidence(stack.digest, COST_TYPE, CostEvidence)) == 5
    with Repository(parse_place(place), access) as repository:
        assert repository.referrers(stack.digest) == ()  # nothing by the tag schema


def test_more_evidence_is_added_to_what_is_there(home, registry, place, access, stack):
    push(home, "tall", place, access, Silent())
    home.put_evidence(COST_TYPE, cost(20), stack)
    sent = push(home, "tall", place, access, Silent())
    assert sent["blobs"] == 1
    with Repository(parse_place(place), access) as repository:
        kinds = [item.artifactType for item in repository.referrers(stack.digest)]
    assert COST_TYPE in kinds
    assert len(kinds) == 2


def test_what_other_tools_put_there_stays(home, away, registry, place, access, stack):
    put_base(away)
    push(home, "tall", place, access, Silent())
    ref = parse_place(place)
    tag = tag_of(stack.digest)
    foreign = {
        "mediaType": MANIFEST_TYPE,
        "digest": "sha256:" + "7" * 64,
        "size": 7,
        "artifactType": "application/vnd.dev.cosign.signature",
        "platform": {"os": "linux", "architecture": "none"},
    }
    with Repository(ref, access) as repository:
        repository.upload(blob := home.put_bytes(b"x", "text/plain"), memoryview(b"x"))
        signature = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": foreign["artifactType"],
            "config": {"mediaType": "text/plain", "digest": blob.digest, "size": 1},
            "layers": [],
            "other": "key",
        }
        data = json.dumps(signature).encode()
        from lamina.core.digest import digest_bytes

        repository.put_manifest(data, digest_bytes(data))
        foreign |= {"digest": digest_bytes(data), "size": len(data)}
        index = json.loads(repository.read_manifest(tag)[0])
        index["manifests"].append(foreign)
        repository.put_manifest(json.dumps(index).encode(), tag, INDEX_TYPE)
        home.put_evidence(COST_TYPE, cost(30), stack)
        push(home, "tall", place, access, Silent())
        index = json.loads(repository.read_manifest(tag)[0])
    assert foreign in index["manifests"]
    assert len(index["manifests"]) == 3
    pulled = pull(away, place, access, Silent(), Landing())
    assert not pulled["preview"]["left_out"]


def test_a_lost_line_is_put_back(home, registry, place, access, stack):
    """Somebody else's update drops ours between our update and the end of the push."""
    ref = parse_place(place)
    item = Descriptor(
        mediaType=MANIFEST_TYPE, digest=stack.digest, size=stack.size, artifactType=SCORES_TYPE
    )
    push(home, "tall", place, access, Silent())
    with Repository(ref, access) as repository:
        tag = tag_of(stack.digest)
        before = repository.read_manifest(tag)[0]
        assert repository.about.note(stack.digest, [item])
        repository.put_manifest(before, tag, INDEX_TYPE)  # the other one, who had read it before
        repository.about.settle()
        listed = {entry.digest for entry in repository.referrers(stack.digest)}
        assert item.digest in listed
        assert {e["digest"] for e in json.loads(before)["manifests"]} < listed


def test_another_thing_under_the_tag_is_said(home, registry, place, access, stack):
    push(home, "tall", place, access, Silent())
    ref = parse_place(place)
    with Repository(ref, access) as repository:
        repository.put_manifest(home.read(stack.digest), tag_of(stack.digest))
        with pytest.raises(ShareError, match="is no index"):
            repository.referrers(stack.digest)


def _push_cost(root, place, numbers):
    from lamina.share.wire import Access
    from tests.share.conftest import QUICK

    store = Store.open(root)
    from lamina.core.names import Name

    stack = store.resolve(Name("tall"))
    for number in numbers:
        store.put_evidence(COST_TYPE, cost(number), stack)
        push(store, "tall", place, Access(patience=QUICK), Silent())


@pytest.mark.slow
def test_pushers_at_once_end_with_everything_listed(home, registry, place, access, stack, tmp_path):
    """Each has its own store and keeps pushing; after one more push of each nothing is lost."""
    import shutil

    roots = [shutil.copytree(home.root, tmp_path / f"pusher-{n}") for n in range(3)]
    context = multiprocessing.get_context("spawn")
    jobs = [
        context.Process(target=_push_cost, args=(root, place, range(10 * n + 10, 10 * n + 14)))
        for n, root in enumerate(roots)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
        assert job.exitcode == 0
    for root in roots:
        push(Store.open(root), "tall", place, access, Silent())
    with Repository(parse_place(place), access) as repository:
        listed = {e.digest for e in repository.referrers(stack.digest)}
    for root in roots:
        store = Store.open(root)
        assert {e.digest for e in store.referrers(stack.digest, COST_TYPE)} <= listed
