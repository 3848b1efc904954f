import shutil

import pytest

from lamina.core.errors import StoreError, TrustError, UsageError
from lamina.core.evidence import SCORES_TYPE, SIGNATURE_TYPE, ScoresEvidence, SignatureEvidence
from lamina.core.manifests import JSON_TYPE, ImageManifest
from lamina.core.names import Name
from lamina.flows.hosting import Host
from lamina.flows.inventory import describe, history, render, render_history
from lamina.flows.trust import (
    Trust,
    check_policy,
    check_stack,
    check_stored,
    known_object,
    render_check,
    sign_object,
    signatures,
)
from lamina.share.policy import FILE, Subject
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from lamina.web.errors import refusal
from tests.store import make


@pytest.fixture
def store(tmp_path):
    store = Store.open(tmp_path / "store")
    make.put_base(store)
    stack = make.put_stack(store, "one", "two")
    store.move("support", stack, expected=None)
    return store


@pytest.fixture
def trust(tmp_path):
    trust = Trust(tmp_path / "config")
    trust.keys.new("anna")
    return trust


def asked(name):
    raise AssertionError


def sign(store, trust, text="support", **rest):
    return sign_object(store, trust, text, asked, **rest)


def weights_in(store):
    """A layer's payload, of the 1,000 bytes that `make.put_layer` gives it."""
    return next(path for path in store.blobs_dir.iterdir() if path.stat().st_size == 1000)


def test_a_signature_is_evidence_about_the_stack(store, trust):
    done = sign(store, trust, statement="read by me")
    stack = store.resolve(Name("support")).digest
    assert done["object"] == stack
    (finding,) = signatures(store, trust, stack)
    assert (finding.state, finding.name, finding.statement) == ("trusted", "anna", "read by me")
    assert store.verify().clean
    assert [entry.digest for entry in store.referrers(stack, SIGNATURE_TYPE)] == [done["signature"]]


def test_a_layer_and_a_base_can_be_signed_too(store, trust):
    layer = store.resolve(Name("support"))
    first = check_stored(store, trust, "support")["layers"][0]["layer"]
    sign(store, trust, f"@{first}")
    assert signatures(store, trust, first)[0].state == "trusted"
    assert signatures(store, trust, layer.digest) == ()


def test_show_and_log_tell_who_signed(store, trust):
    assert "signed" not in render_history(history(store, "support", trust))
    sign(store, trust)
    assert "signed by anna" in render_history(history(store, "support", trust))
    assert "signed by anna" in render(describe(store, "support", trust))
    trust.keys.revoke("anna", "compromised")
    assert "signed by revoked anna" in render(describe(store, "support", trust))


def test_verify_checks_bytes_signatures_and_policy(store, trust):
    (trust.folder / FILE).write_text('unsigned = "refuse"\n')
    found = check_stored(store, trust, "support")
    assert not found["ok"]
    assert "REFUSED" in render_check(found)
    sign(store, trust)
    found = check_stored(store, trust, "support")
    assert found["ok"]
    assert "every byte is sound" in render_check(found)
    weights = weights_in(store)
    weights.write_bytes(b"other" + weights.read_bytes()[5:])
    found = check_stored(Store.open(store.root), trust, "support")
    assert (found["ok"], len(found["faults"])) == (False, 1)


def test_what_is_not_whole_is_not_signed(store, trust):
    weights = weights_in(store)
    weights.write_bytes(b"other" + weights.read_bytes()[5:])
    with pytest.raises(StoreError, match="not whole"):
        sign(Store.open(store.root), trust)


def test_the_policy_is_asked_at_its_moments_only(store, trust):
    stack = resolve(store, "support", force=True)
    (trust.folder / FILE).write_text('unsigned = "refuse"\ncheck = ["pull"]\n')
    assert check_stack(store, trust, stack) is None
    (trust.folder / FILE).write_text('unsigned = "refuse"\ncheck = ["serve"]\n')
    with pytest.raises(TrustError) as refused:
        check_stack(store, trust, stack)
    assert refused.value.exit_code == 1
    assert "is not signed by anybody you trust" in refused.value.faults[0]
    sign(store, trust)
    assert check_stack(store, trust, stack).signed_by == ("anna",)


def test_a_layer_s_digest_is_no_way_around_the_policy(store, trust):
    (trust.folder / FILE).write_text('unsigned = "refuse"\ncheck = ["serve"]\n')
    layer = make.put_layer(store, "alone").digest
    with pytest.raises(TrustError):
        check_stack(store, trust, resolve(store, layer))
    assert check_stack(store, trust, resolve(store, f"@{make.put_base(store).digest}")) is None


def test_the_policy_knows_names_and_authors(store, trust):
    stack = store.resolve(Name("support")).digest
    found = known_object(store, trust, stack).subject
    assert {"support", "support:v1", "one", "two"} <= set(found.names)


def test_a_policy_that_cannot_be_read_stops_everything(store, trust):
    (trust.folder / FILE).write_text("unsigned = ")
    with pytest.raises(UsageError):
        check_policy(trust, "pull", Subject(digest="sha256:" + "0" * 64), ())


def test_a_signature_that_was_moved_to_another_object_proves_nothing(store, trust):
    """Somebody puts anna's signature of one stack behind another."""
    done = sign(store, trust)
    other = make.put_stack(store, "evil")
    store.move("evil", other, expected=None)
    theirs = store.manifest(done["signature"])
    envelope = store.config(theirs, SignatureEvidence)
    store.put_evidence(SIGNATURE_TYPE, envelope, store.describe(other.digest))
    (finding,) = signatures(store, trust, other.digest)
    assert finding.state == "wrong"
    assert "made for another object" in finding.why


def test_junk_that_calls_itself_a_signature_is_no_obstacle(store, trust):
    stack = store.resolve(Name("support"))
    config = store.put_bytes(b'{"junk": 1}', SIGNATURE_TYPE + ".config+json")
    manifest = ImageManifest(
        artifactType=SIGNATURE_TYPE,
        config=config,
        layers=(store.put_bytes(b"junk", JSON_TYPE),),
        subject=stack,
    )
    store.add_root(store.put_manifest(manifest))
    sign(store, trust)
    assert [f.state for f in signatures(store, trust, stack.digest)] == ["trusted"]
    assert "signed by anna" in render_history(history(store, "support", trust))
    assert not store.verify().clean


def test_a_signature_goes_where_its_store_goes(store, trust, tmp_path):
    sign(store, trust)
    shutil.copytree(store.root, tmp_path / "elsewhere")
    theirs = Trust(tmp_path / "theirs")
    copy = Store.open(tmp_path / "elsewhere")
    stack = copy.resolve(Name("support")).digest
    assert signatures(copy, theirs, stack)[0].state == "unknown"
    theirs.keys.trust(trust.keys.find("anna").line, "anna-of-legal")
    assert signatures(copy, theirs, stack)[0].name == "anna-of-legal"


def test_scores_of_no_weight_are_shown_as_none(store, trust):
    stack = store.resolve(Name("support"))
    record = ScoresEvidence(
        created="2026-01-01T00:00:00+00:00",
        exam_digest=stack.digest,
        scorer="exact",
        max_new_tokens=8,
        engine=stack.digest,
        items=((0.0, 0.0, None),),
    )
    store.put_evidence(SCORES_TYPE, record, stack)
    assert "exact      ?  n=1" in render(describe(store, "support", trust))


def test_a_server_refuses_what_the_policy_refuses_until_it_is_signed(store, trust):
    store.move("alone", make.put_stack(store, "one"), expected=None)
    (trust.folder / FILE).write_text('unsigned = "refuse"\ncheck = ["serve"]\n')

    def never(store, base):
        raise AssertionError("nothing is loaded to resolve a name")

    host = Host(store, never, trust=trust)
    with pytest.raises(TrustError):
        host.resolve("alone")
    refused = refusal(TrustError("no", faults=["because"], hint="see /home/anna/policy.toml"))
    assert (refused.status, refused.message) == (403, "no; because")
    sign(store, trust, "alone")
    assert host.resolve("alone").digest == store.resolve(Name("alone")).digest
    trust.keys.revoke("anna", "compromised")
    with pytest.raises(TrustError):
        host.resolve("alone")
