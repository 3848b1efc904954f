"""Pulling from the Hub: the very same digests, at one commit, or nothing at all."""

import json
import shutil
import subprocess

import pytest
import torch

from lamina.core.digest import digest_bytes
from lamina.core.errors import (
    BaseError,
    CheckError,
    CorruptBlobError,
    GateError,
    LaminaError,
    LayerError,
    ShareError,
    StoreError,
    StoreFullError,
    TrustError,
    UsageError,
)
from lamina.core.evidence import NAMING_TYPE, SCORES_TYPE, ScoresEvidence
from lamina.core.manifests import REF_NAME
from lamina.core.names import Name
from lamina.core.report import Silent
from lamina.export.parity import logits_of
from lamina.flows.adapters import export
from lamina.flows.card import gather
from lamina.flows.hub import pull
from lamina.flows.publish import Landing
from lamina.flows.trust import Trust
from lamina.share.card import render
from lamina.share.hub import BLOBS, INDEX
from lamina.share.hub_source import HubSource
from lamina.stack.compile import compile_stack
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from lamina.store.refs import SUBJECT
from tests.flows.world import Said
from tests.hub.state import Fault
from tests.hub.test_card import CERTIFICATE
from tests.hub.world import place, pushed
from tests.stacks import BASE, new_store, put_stack

pytestmark = pytest.mark.slow


@pytest.fixture
def other(trained, tmp_path):
    """Another machine's store: the base, and nothing else."""
    store = Store.open(tmp_path / "other")
    copied = trained.bases()[BASE]
    manifest = trained.manifest(copied.digest)
    for blob in (manifest.config, *manifest.layers):
        shutil.copyfile(trained.path(blob.digest), store.blobs_dir / blob.digest[7:])
    store.add_root(store.put_manifest(manifest), trained.bases()[BASE].annotations)
    store.tag_base(BASE, copied)
    return store


@pytest.fixture
def there(hub, store):
    """The Hub with `second` pushed to org/agent."""
    pushed(hub, store)
    hub.requests.clear()
    return hub


def pulled(hub, store, repo="org/agent", revision=None, *, on=None, confirm=None, **landing):
    at = place(hub, repo, revision)
    return pull(store, at, Silent(), Landing(**landing), on=on, confirm=confirm)


def weights_of(store, name="second"):
    return [each.manifest.blob("adapter_model.safetensors").digest
            for each in resolve(store, name).layers]  # fmt: skip


def untouched(store):
    """Nothing is named or kept that was not, and what is there is whole."""
    assert store.names() == {}
    report = store.verify()
    assert report.faults == ()
    assert report.entries == len(store.entries())


def test_a_round_trip_gives_the_same_digests(there, store, other):
    found = pulled(there, other)
    assert found["stack"] == resolve(store, "second").digest
    assert found["name"] == "agent:v1"
    assert found["commit"] == there.repos["org/agent"].head.oid
    ours, theirs = resolve(store, "second"), resolve(other, "agent")
    assert ours.config == theirs.config
    assert [each.manifest for each in ours.layers] == [each.manifest for each in theirs.layers]
    for digest in (ours.digest, *(each.digest for each in ours.layers)):
        sent = {e.digest for e in store.referrers(digest) if e.artifactType != NAMING_TYPE}
        assert sent <= {e.digest for e in other.referrers(digest)}
    assert other.verify().faults == ()
    prompts = [list(range(8, 30))]
    a, b = (logits_of(compile_stack(s, resolve(s, n)).model, prompts)[0]
            for s, n in ((store, "second"), (other, "agent")))  # fmt: skip
    assert torch.equal(a, b)


def test_pushed_again_from_there_nothing_is_uploaded(there, store, other):
    pulled(there, other)
    before = there.repos["org/agent"].head.oid
    found, _ = pushed(there, other, "agent")
    again = there.repos["org/agent"]
    blobs = [set(filter(lambda p: p.startswith(BLOBS), again.commits[c].files))
             for c in (before, found["commit"])]  # fmt: skip
    assert blobs[0] == blobs[1]


def test_the_base_can_come_along(hub, store, tmp_path):
    pushed(hub, store, with_base=True)
    fresh = Store.open(tmp_path / "fresh")
    found = pulled(hub, fresh)
    assert found["new_base"] == BASE
    assert resolve(fresh, "agent").config == resolve(store, "second").config
    assert fresh.verify().faults == ()


def test_without_its_base_a_stack_does_not_land(there, tmp_path):
    fresh = Store.open(tmp_path / "fresh")
    with pytest.raises(BaseError, match="not at hand"):
        pulled(there, fresh)
    untouched(fresh)


def test_a_preview_moves_no_payload(there, store, other):
    seen = []
    with pytest.raises(CheckError, match="nothing was pulled"):
        pulled(there, other, confirm=lambda text: seen.append(text) or False)
    assert "layer second" in seen[0]
    assert "by ann" in seen[0]
    found = pulled(there, other, dry_run=True)
    assert [layer["name"] for layer in found["preview"]["layers"]] == ["first", "second"]
    for digest in weights_of(store):
        assert not there.asked("GET", f"*{digest[7:]}*")
    untouched(other)


def test_a_second_pull_moves_no_payload(there, store, other):
    pulled(there, other)
    there.requests.clear()
    assert pulled(there, other)["name"] == "agent:v1"
    for digest in weights_of(store):
        assert not there.asked("GET", f"*{digest[7:]}*")


def test_a_revision_is_one_commit_whatever_is_pushed_meanwhile(there, store, other, tmp_path):
    repo = place(there).look()
    source = HubSource(repo, tmp_path / "work", place(there), lambda _: None)
    pushed(there, store, "first")
    assert source.root.digest == resolve(store, "second").digest
    top = resolve(store, "second").layers[1].manifest.blob("adapter_model.safetensors")
    assert digest_bytes(b"".join(source.blob(top))) == top.digest
    old = pulled(there, other, revision=repo.commit)
    assert old["stack"] == resolve(store, "second").digest
    newest = pulled(there, other, name="newest")
    assert newest["stack"] == resolve(store, "first").digest


def test_a_branch_is_pulled(there, store, other):
    pushed(there, store, "first", revision="try/one")
    assert pulled(there, other, revision="try/one")["stack"] == resolve(store, "first").digest


def test_a_name_moves_through_the_gate(there, store, other):
    pulled(there, other)
    pushed(there, store, "first")  # without the layer above it knows less
    with pytest.raises(GateError, match="got significantly worse"):
        pulled(there, other)
    assert set(other.names()["agent"]) == {"v1", "latest"}
    found = pulled(there, other, override="it is a test")
    assert found["name"] == "agent:v2"
    assert set(other.names()["agent"]) == {"v1", "v2", "latest"}


# -- a network that breaks, a Hub that lies --------------------------------------------------------


def largest(store):
    return max(
        (b for each in resolve(store, "second").layers for b in each.manifest.layers),
        key=lambda blob: blob.size,
    )


def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(there, store, other):
    blob = largest(store)
    there.faults = [Fault("GET", f"*/{blob.digest[7:]}*", drop="half", times=2)]
    pulled(there, other)
    ranges = [
        h.get("Range") for m, p, h, _ in there.requests if blob.digest[7:] in p and m == "GET"
    ]
    assert any(r and r != "bytes=0-" for r in ranges)
    assert other.verify().faults == ()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_is_busy_is_asked_again(there, store, other, status):
    fault = Fault("GET", f"*/resolve/*{largest(store).digest[7:]}", status=status, times=2)
    there.faults = [fault]
    pulled(there, other)
    assert fault.times == 0


@pytest.mark.parametrize("small", [True, False])
def test_bytes_that_are_not_the_objects_never_land(there, store, other, small):
    blob = resolve(store, "second").layers[0].manifest.config if small else largest(store)
    there.faults = [Fault("GET", f"*{blob.digest[7:]}*", drop="spoil", times=99)]
    with pytest.raises((CorruptBlobError, ShareError)) as caught:
        pulled(there, other)
    assert caught.value.hint
    assert not other.has(blob.digest)
    untouched(other)
    there.faults = []
    pulled(there, other)
    assert other.verify().faults == ()


def test_a_large_object_that_was_swapped_is_noticed(there, store, other):
    """The Hub's storage holds other bytes of the same length under the right name."""
    digest = weights_of(store)[0]
    data = bytearray(there.storage[digest[7:]])
    data[-1] ^= 1
    there.storage[digest[7:]] = bytes(data)
    with pytest.raises(CorruptBlobError):
        pulled(there, other)
    assert not other.has(digest)
    untouched(other)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda index: b"{",
        lambda index: b"[" * 100_000,
        lambda index: json.dumps({**index, "manifests": []}).encode(),
        lambda index: json.dumps({**index, "manifests": index["manifests"] * 2}).encode(),
        lambda index: json.dumps({**index, "extra": 1}).encode(),
        lambda index: json.dumps({**index, "manifests": [
            {**index["manifests"][0], "digest": "sha256:" + "0" * 64}]}).encode(),
        lambda index: json.dumps({**index, "manifests": [
            {**index["manifests"][1], "annotations": {REF_NAME: "latest"}}]}).encode(),
        lambda index: json.dumps({**index, "manifests": [
            {**index["manifests"][0], "digest": "sha256:../../../../etc/passwd"}]}).encode(),
    ],
    ids=["cut", "deep", "empty", "twice", "unknown key", "absent", "evidence", "path"],
)  # fmt: skip
def test_an_index_that_is_no_such_thing_is_refused(there, other, spoil):
    repo = there.repos["org/agent"]
    files = dict(repo.head.files)
    files[INDEX] = spoil(json.loads(files[INDEX]))
    repo.commit("spoilt", files, set(repo.head.large))
    with pytest.raises((StoreError, ShareError)) as caught:
        pulled(there, other)
    assert isinstance(caught.value, LaminaError)
    untouched(other)


def test_a_push_mends_an_index_that_somebody_spoilt(there, store, other):
    repo = there.repos["org/agent"]
    repo.commit("spoilt", {**repo.head.files, INDEX: b"{"}, set(repo.head.large))
    found, said = pushed(there, store)
    assert any("written anew" in text for text in said.sentences)
    assert pulled(there, other)["stack"] == found["stack"]


def test_evidence_that_is_not_there_whole_is_not_kept(there, store, other):
    repo = there.repos["org/agent"]
    index = json.loads(repo.head.files[INDEX])
    lost = {**index["manifests"][1], "digest": "sha256:" + "3" * 64}
    files = {**repo.head.files, INDEX: json.dumps(
        {**index, "manifests": [*index["manifests"], lost]}).encode()}  # fmt: skip
    repo.commit("half", files, set(repo.head.large))
    pushed(there, store)
    assert json.loads(repo.head.files[INDEX]) == index
    pulled(there, other)


def test_evidence_of_others_stays_when_we_push_again(there, store, other):
    """Somebody else's record about the layer, put there by a push of theirs."""
    pulled(there, other)
    stack = resolve(other, "agent")
    theirs = other.put_evidence(
        SCORES_TYPE,
        ScoresEvidence(created="2030-01-01T00:00:00+00:00", exam_digest="sha256:" + "1" * 64,
                       scorer="loss", max_new_tokens=1, engine="sha256:" + "2" * 64, items=()),
        other.describe(stack.digest),
    )  # fmt: skip
    pushed(there, other, "agent")
    found, _ = pushed(there, store, "second")  # ours knows nothing of it
    index = json.loads(there.repos["org/agent"].head.files[INDEX])
    listed = {item["digest"]: item for item in index["manifests"]}
    assert listed[theirs.digest]["annotations"] == {SUBJECT: stack.digest}
    assert found["commit"] == there.repos["org/agent"].head.oid
    pulled(there, store)
    assert theirs.digest in {e.digest for e in store.referrers(stack.digest)}


# -- who may read ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "token", "why", "hint"),
    [
        ("gated", "hf_other", "GatedRepo", "accept its terms"),
        ("gated", "", "GatedRepo", "accept its terms"),
        ("private", "hf_other", "RepositoryNotFound", "hf auth login"),
        ("private", "", "RepositoryNotFound", "hf auth login"),
        ("private", "hf_wrong", "Invalid credentials", "HF_TOKEN"),
    ],
)
def test_who_may_not_read_is_told_why(there, other, monkeypatch, state, token, why, hint):
    setattr(there.repos["org/agent"], state, True)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ShareError) as caught:
        pulled(there, other)
    assert why in caught.value.render()
    assert hint in caught.value.render()
    untouched(other)


@pytest.mark.parametrize("state", ["gated", "private"])
def test_members_read_it(there, store, other, monkeypatch, state):
    setattr(there.repos["org/agent"], state, True)
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert pulled(there, other)["stack"] == resolve(store, "second").digest


def test_no_such_repository_and_revision(there, other):
    with pytest.raises(ShareError, match="RepositoryNotFound"):
        pulled(there, other, repo="org/nothing")
    with pytest.raises(ShareError, match="RevisionNotFound"):
        pulled(there, other, revision="v9")


def test_no_space_is_said_before_anything_moves(there, other, monkeypatch):
    real = shutil.disk_usage
    monkeypatch.setattr("shutil.disk_usage", lambda path: real(path)._replace(free=10))
    with pytest.raises(StoreFullError):
        pulled(there, other)
    untouched(other)


# -- what lamina did not make ----------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path):
    """Files of a PEFT adapter over the base, as another tool would push them."""
    made = new_store(tmp_path / "made" / "store", layers=1)
    put_stack(made, "s", 1)
    export(made, "s", tmp_path / "adapter", "peft", Silent())
    folder = tmp_path / "adapter"
    return {name: (folder / name).read_bytes()
            for name in ("adapter_config.json", "adapter_model.safetensors")}  # fmt: skip


CARD = b"---\nlicense: apache-2.0\n---\n# theirs\n"


def test_an_adapter_becomes_a_layer(hub, store, adapter):
    extra = {"README.md": CARD, "training_args.bin": b"pickle", "run.py": b"raise SystemExit"}
    hub.add("org/lora", {**adapter, **extra}, large=("adapter_model.safetensors",))
    found = pulled(hub, store, "org/lora", on=BASE, name="theirs")
    layer = resolve(store, "theirs").layers[0]
    assert found["name"] == "theirs:v1"
    assert layer.config.origin == "imported"
    assert layer.config.licence == "apache-2.0"
    assert layer.config.author == "org"
    assert found["pulled"] == f"hf:org/lora@{hub.repos['org/lora'].head.oid}"
    card = render(gather(store, resolve(store, "theirs"), certificate=CERTIFICATE), "peft")
    assert "taken from another tool's files (peft: `adapter_config.json`" in card
    assert not hub.asked("GET", "*.bin")
    assert not hub.asked("GET", "*.py")


def test_over_what_has_to_be_said(hub, store, adapter):
    hub.add("org/lora", {**adapter, "README.md": CARD})
    with pytest.raises(UsageError, match="over what does it go"):
        pulled(hub, store, "org/lora")
    shown = pulled(hub, store, "org/lora", dry_run=True)
    assert shown["preview"]["licence"] == "apache-2.0"
    assert not hub.asked("GET", "*/resolve/*")
    with pytest.raises(CheckError):
        pulled(hub, store, "org/lora", on=BASE, confirm=lambda _: False)
    assert not hub.asked("GET", "*/resolve/*")


def test_an_adapter_that_the_policy_refuses_is_not_fetched(hub, store, adapter, tmp_path):
    trust = Trust(tmp_path / "config")
    trust.folder.mkdir()
    (trust.folder / "policy.toml").write_text('[[rules]]\nsource = "hf:org/*"\n')
    hub.add("org/lora", adapter)
    with pytest.raises(TrustError, match="refused by rule 1 of the trust policy"):
        pulled(hub, store, "org/lora", on=BASE, name="theirs", trust=trust)
    shown = pulled(hub, store, "org/lora", dry_run=True, trust=trust)
    assert "REFUSED" in shown["text"]
    assert not hub.asked("GET", "*/resolve/*")
    hub.add("else/lora", {**adapter, "README.md": CARD}, large=("adapter_model.safetensors",))
    assert pulled(hub, store, "else/lora", on=BASE, name="theirs", trust=trust)["layer"]


def test_a_stack_needs_no_parent(there, other):
    with pytest.raises(UsageError, match="stands on its own base"):
        pulled(there, other, on=BASE)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (["adapter_config.json", "adapter_model.bin"], "only as pickles"),
        (["model.safetensors", "config.json"], "lamina base pull"),
        ([], "no adapter_config"),
    ],
)
def test_what_is_no_adapter_is_refused_unread(hub, store, files, why):
    hub.add("org/lora", dict.fromkeys(files, b"x"))
    with pytest.raises(LayerError) as caught:
        pulled(hub, store, "org/lora", on=BASE, name="theirs")
    assert why in caught.value.render()
    assert not hub.asked("GET", "*/resolve/*")
    assert not hub.asked("HEAD", "*")


def test_a_spoilt_adapter_does_not_land(hub, store, adapter):
    hub.add("org/lora", adapter, large=("adapter_model.safetensors",))
    before = store.entries()
    hub.faults = [Fault("GET", "*signed=yes", drop="spoil", times=99)]
    with pytest.raises(ShareError, match="differ from their digests"):
        pulled(hub, store, "org/lora", on=BASE, name="theirs")
    assert store.entries() == before
    assert not list(store.cache_dir.glob(".tmp-hub-*"))


def test_a_name_that_is_no_name_here(hub, other, store):
    pushed(hub, store, name="org/My_Agent.v2")
    assert pulled(hub, other, "org/My_Agent.v2")["name"] == "my_agent.v2:v1"
    assert Name("my_agent.v2").name in other.names()


def test_skopeo_copies_what_is_pulled(there, other, tmp_path):
    pulled(there, other)
    ref = f"oci:{other.root}:agent:v1"
    shown = subprocess.run(["skopeo", "inspect", "--raw", ref], capture_output=True, check=True)
    assert digest_bytes(shown.stdout) == resolve(other, "agent").digest
    assert Said().sentences == []
