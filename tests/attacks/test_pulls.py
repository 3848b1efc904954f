"""Places that lie, and signatures that are not what they seem: nothing lands in the store."""

import pytest

from lamina.core.digest import digest_bytes
from lamina.core.errors import ShareError, StoreError, TrustError
from lamina.core.evidence import SIGNATURE_TYPE, SignatureEvidence
from lamina.core.manifests import (
    STACK_TYPE,
    Descriptor,
    ImageManifest,
    LayerConfig,
    StackConfig,
    StackedLayer,
)
from lamina.core.names import Name
from lamina.core.report import Silent
from lamina.flows.publish import Landing, Taking
from lamina.flows.trust import Trust, sign_object, signatures
from lamina.share.incoming import EVIDENCE_LIMIT
from lamina.share.parcel import parcel_of
from lamina.share.policy import FILE
from lamina.share.wire import Patience
from lamina.store.layout import Store
from tests.share.places import Shelf
from tests.share.stacks import tall
from tests.store import make

QUICK = Patience(attempts=2, first_seconds=0.01, most_seconds=0.1, silent_seconds=20)
PLACE = "oci://registry.example/acme/support:latest"


@pytest.fixture
def theirs(tmp_path):
    """The sender's store, with one stack."""
    store = Store.open(tmp_path / "theirs")
    tall(store, ["one", "two"], name="support")
    return store


@pytest.fixture
def anna(tmp_path):
    """The sender's keys."""
    trust = Trust(tmp_path / "anna")
    trust.keys.new("anna")
    return trust


@pytest.fixture
def mine(tmp_path):
    """The receiver's store: the base, and nothing else."""
    store = Store.open(tmp_path / "mine")
    make.put_base(store)
    return store


@pytest.fixture
def careful(tmp_path, anna):
    """The receiver's trust: anna's key, and nothing unsigned."""
    trust = Trust(tmp_path / "careful")
    trust.keys.trust(anna.keys.find("anna").line)
    (trust.folder / FILE).write_text('unsigned = "refuse"\n')
    return trust


def nobody(name):
    raise AssertionError(name)


def stack_of(store):
    return store.resolve(Name("support")).digest


def shelf_of(store):
    return Shelf(store, parcel_of(store, stack_of(store)))


def take(mine, shelf, digest, trust, **more):
    taking = Taking(mine, shelf, PLACE, Silent(), QUICK)
    return taking.take(digest, Landing(trust=trust, **more), "acme/support", None)


def refused(mine, shelf, digest, trust, kind=TrustError):
    before = mine.index_path.read_bytes(), sorted(mine.blobs_dir.iterdir())
    with pytest.raises(kind) as caught:
        take(mine, shelf, digest, trust)
    assert mine.index_path.read_bytes() == before[0]
    if kind is TrustError:
        assert sorted(mine.blobs_dir.iterdir()) == before[1]
    return caught.value


def test_what_is_signed_by_a_trusted_key_lands_with_its_signature(theirs, anna, mine, careful):
    sign_object(theirs, anna, "support", nobody, statement="for acme")
    found = take(mine, shelf_of(theirs), stack_of(theirs), careful)
    assert found["name"] == "support:v1"
    assert found["preview"]["policy"]["signed_by"] == ["anna"]
    (finding,) = signatures(mine, careful, stack_of(mine))
    assert (finding.state, finding.statement) == ("trusted", "for acme")


def test_what_nobody_signed(theirs, mine, careful):
    error = refused(mine, shelf_of(theirs), stack_of(theirs), careful)
    assert "is not signed by anybody you trust" in error.faults[0]
    shown = take(mine, shelf_of(theirs), stack_of(theirs), careful, dry_run=True)
    assert "REFUSED by the trust policy" in shown["text"]


def test_what_somebody_else_signed(theirs, mine, careful, tmp_path):
    mallory = Trust(tmp_path / "mallory")
    mallory.keys.new("anna")  # by her name
    sign_object(theirs, mallory, "support", nobody)
    error = refused(mine, shelf_of(theirs), stack_of(theirs), careful)
    assert any("nobody here decided to trust this key" in fault for fault in error.faults)


def test_what_a_revoked_key_signed(theirs, anna, mine, careful):
    sign_object(theirs, anna, "support", nobody)
    careful.keys.revoke("anna", "compromised")
    error = refused(mine, shelf_of(theirs), stack_of(theirs), careful)
    assert any("the key is compromised" in fault for fault in error.faults)


def test_a_signature_of_another_stack(theirs, anna, mine, careful):
    """Right, by the right key, but put behind another object."""
    sign_object(theirs, anna, "support", nobody)
    good = stack_of(theirs)
    evil = make.put_stack(theirs, "one")
    theirs.move("evil", evil, expected=None)
    (entry,) = theirs.referrers(good, SIGNATURE_TYPE)
    envelope = theirs.config(theirs.manifest(entry.digest), SignatureEvidence)
    moved = theirs.put_evidence(SIGNATURE_TYPE, envelope, theirs.describe(evil.digest))
    shelf = Shelf(theirs, parcel_of(theirs, evil.digest))
    error = refused(mine, shelf, evil.digest, careful)
    assert any("made for another object" in fault for fault in error.faults)
    # the same, with evidence whose subject is the other stack
    shelf.about[evil.digest] = [entry]
    for digest in (entry.digest, theirs.manifest(entry.digest).config.digest):
        shelf.things[digest] = theirs.read(digest)
    error = refused(mine, shelf, evil.digest, careful)
    assert len(error.faults) == 1
    assert moved.digest != entry.digest


def test_a_signature_whose_statement_was_swapped(theirs, anna, mine, careful):
    sign_object(theirs, anna, "support", nobody)
    good = stack_of(theirs)
    (entry,) = theirs.referrers(good, SIGNATURE_TYPE)
    right = theirs.config(theirs.manifest(entry.digest), SignatureEvidence)
    theirs.remove_root(entry.digest)
    sign_object(theirs, anna, "@" + theirs.manifest(good).layers[0].digest[7:], nobody)
    layer = theirs.manifest(good).layers[0].digest
    (other,) = theirs.referrers(layer, SIGNATURE_TYPE)
    wrong = theirs.config(theirs.manifest(other.digest), SignatureEvidence)
    swapped = right.model_copy(update={"signatures": wrong.signatures})
    theirs.put_evidence(SIGNATURE_TYPE, swapped, theirs.describe(good))
    error = refused(mine, shelf_of(theirs), good, careful)
    assert any("does not fit the statement" in fault for fault in error.faults)


def test_junk_beside_a_right_signature_keeps_nothing_out(theirs, anna, mine, careful):
    sign_object(theirs, anna, "support", nobody)
    stack = theirs.resolve(Name("support"))
    config = theirs.put_bytes(b'{"junk":"\\u001b[2J"}', SIGNATURE_TYPE + ".config+json")
    junk = ImageManifest(artifactType=SIGNATURE_TYPE, config=config, layers=(), subject=stack)
    theirs.add_root(theirs.put_manifest(junk))
    found = take(mine, shelf_of(theirs), stack.digest, careful)
    assert found["preview"]["policy"]["signed_by"] == ["anna"]


def test_a_flood_of_evidence_is_bounded(theirs, anna, mine, careful):
    stack = theirs.resolve(Name("support"))
    shelf = shelf_of(theirs)
    for number in range(EVIDENCE_LIMIT + 500):
        data = b'{"n":%d}' % number
        config = make_blob(shelf, data, SIGNATURE_TYPE + ".config+json")
        manifest = ImageManifest(
            artifactType=SIGNATURE_TYPE, config=config, layers=(), subject=stack
        ).to_bytes()
        item = make_blob(shelf, manifest, stack.mediaType)
        shelf.about.setdefault(stack.digest, []).append(item)
    refused(mine, shelf, stack.digest, careful)
    assert len(shelf.asked) < 2 * (EVIDENCE_LIMIT + 50)


def make_blob(shelf, data, media_type):
    digest = digest_bytes(data)
    shelf.things[digest] = data
    return Descriptor(mediaType=media_type, digest=digest, size=len(data))


@pytest.mark.parametrize("which", ["root", "layer", "config", "weights"])
@pytest.mark.parametrize("how", ["flipped", "short", "long", "swapped"])
def test_a_place_that_serves_other_bytes(theirs, mine, which, how):
    root = stack_of(theirs)
    manifest = theirs.manifest(root)
    layer = manifest.layers[0].digest
    digest = {
        "root": root,
        "layer": layer,
        "config": theirs.manifest(layer).config.digest,
        "weights": theirs.manifest(layer).layers[-1].digest,
    }[which]
    shelf = shelf_of(theirs)
    good = shelf.things[digest]
    shelf.things[digest] = {
        "flipped": bytes([good[0] ^ 1]) + good[1:],
        "short": good[:-1],
        "long": good + b" ",
        "swapped": theirs.read(manifest.config.digest if which != "root" else layer),
    }[how]
    refused(mine, shelf, root, None, (StoreError, ShareError))
    assert mine.verify().clean
    assert mine.names() == {}


def test_a_stack_put_together_by_hand(theirs, mine):
    """It lists a layer that it does not carry, a base as a layer, a layer of another base."""
    base = theirs.find_base(make.IDENTITY_OF_BASE)
    foreign = theirs.put_object(
        "application/vnd.lamina.layer.v1",
        LayerConfig(
            name="evil",
            base=digest_bytes(b"another"),
            parents=(),
            rank=1,
            alpha=1.0,
            scaling="lora",
            modules=("q",),
            parameters=1,
        ),
    )
    cases = {
        make.put_layer(theirs, "left").digest: (),
        base.digest: (theirs.describe(base.digest),),
        foreign.digest: (theirs.describe(foreign.digest),),
    }
    for layer, carried in cases.items():
        config = StackConfig(
            base=make.IDENTITY_OF_BASE, layers=(StackedLayer(layer=layer, weight=1.0),)
        )
        evil = theirs.put_object(STACK_TYPE, config, carried)
        shelf = shelf_of(theirs)
        for digest in (evil.digest, theirs.manifest(evil.digest).config.digest, layer):
            shelf.things[digest] = theirs.read(digest)
        inner = theirs.manifest(layer)
        for blob in (inner.config, *inner.layers):
            shelf.things[blob.digest] = theirs.read(blob.digest)
        refused(mine, shelf, evil.digest, None, StoreError)
