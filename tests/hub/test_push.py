"""Pushing to the Hub: one commit or none, only what changed, and others' tools can use it."""

import json
import subprocess
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from peft import PeftModel

from lamina.core.errors import CheckError, ShareError, UsageError
from lamina.export.parity import logits_of
from lamina.share.hub import BLOBS, INDEX
from lamina.stack.compile import compile_stack
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from tests.flows.world import FIRST, learned
from tests.hub.state import Fault
from tests.hub.world import place, pushed
from tests.stacks import base_model

pytestmark = pytest.mark.slow

PROMPTS = [list(range(8, 30)), [11, 250, 9, 9, 70]]


def head(hub, name="org/agent"):
    return hub.repos[name].head


def test_what_lies_in_a_repository(hub, store):
    found, said = pushed(hub, store)
    files = head(hub).files
    assert found["commit"] == head(hub).oid
    assert head(hub).message == f"second: stack {found['stack'][7:19]}, by lamina"
    assert {name for name in files if not name.startswith(BLOBS)} == {
        ".gitattributes",
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "lamina.json",
        "lamina/index.json",
        "lamina/oci-layout",
    }
    index = json.loads(files[INDEX])
    assert index["manifests"][0]["digest"] == found["stack"] == resolve(store, "second").digest
    assert json.loads(files["lamina.json"])["parity"]["ok"]
    assert any("12 exam questions" in text and "colour.jsonl" in text for text in said.sentences)
    assert str(store.root) not in b"".join(files.values()).decode("latin-1")


def test_peft_loads_a_repository_and_agrees(hub, store, tmp_path):
    pushed(hub, store)
    folder = snapshot_download("org/agent", endpoint=hub.endpoint, local_dir=tmp_path / "down")
    theirs = logits_of(PeftModel.from_pretrained(base_model(store), folder).eval(), PROMPTS)
    ours = logits_of(compile_stack(store, resolve(store, "second")).model.float(), PROMPTS)
    plain = logits_of(base_model(store), PROMPTS)
    for a, b, c in zip(theirs, ours, plain, strict=True):
        assert (a - b).abs().max() < 2e-2 * b.abs().max()
        assert (a - c).abs().max() > (a - b).abs().max() * 4


def test_a_downloaded_repository_is_an_image_layout(hub, store, tmp_path):
    pushed(hub, store)
    folder = snapshot_download("org/agent", endpoint=hub.endpoint, local_dir=tmp_path / "down")
    opened = Store.open(tmp_path / "down" / "lamina", create=False)
    assert opened.verify().faults == ()
    digest = resolve(store, "second").digest
    assert {e.digest for e in opened.entries()} >= {digest}
    skopeo = ["skopeo", "inspect", "--raw", f"oci:{folder}/lamina:latest"]
    raw = subprocess.run(skopeo, capture_output=True, check=True).stdout
    assert raw == store.read(digest)


def test_a_second_push_uploads_nothing(hub, store):
    first, _ = pushed(hub, store)
    before = hub.uploaded()
    second, _ = pushed(hub, store)
    assert second["commit"] == first["commit"]
    assert not second["changed"]
    assert hub.uploaded() == before


def test_a_stack_over_a_pushed_one_uploads_one_layer(hub, store):
    pushed(hub, store, "first")
    before = hub.uploaded()
    over, _ = pushed(hub, store, "second")
    blobs = [path for path in head(hub).files if path.startswith(BLOBS)]
    layer = resolve(store, "second").layers[0]
    weights = layer.manifest.blob("adapter_model.safetensors")
    assert f"{BLOBS}{weights.digest[7:]}" in blobs
    puts = [n for m, _, _, n in hub.requests if m == "PUT"]
    assert over["unchanged"] >= 5
    assert sum(1 for n in puts if n == weights.size) <= 3  # two layers' own, and the joined one
    assert hub.uploaded() - before < over["bytes"] * 2


def test_what_an_older_push_left_is_removed_and_history_keeps_it(hub, store):
    first, _ = pushed(hub, store, "second")
    second, _ = pushed(hub, store, "first")
    assert second["removed"] > 0
    top = resolve(store, "second").layers[1]
    gone = f"{BLOBS}{top.digest[7:]}"
    assert gone not in head(hub).files
    assert gone in hub.repos["org/agent"].commits[first["commit"]].files


@pytest.mark.parametrize("chunk", [0, 3000])
def test_large_files_go_in_one_piece_or_in_parts(hub, store, chunk):
    hub.chunk = chunk
    pushed(hub, store)
    assert bool(hub.asked("PUT", "*part=*")) == bool(chunk)
    assert hub.asked("POST", "/lfs/verify")
    assert bool(hub.asked("POST", "/lfs/complete/*")) == bool(chunk)


def test_no_token_leaves_the_hub(hub, store):
    pushed(hub, store)
    stored = [headers for _, path, headers, _ in hub.requests if "signed=yes" in path]
    assert stored
    assert not any("Authorization" in headers for headers in stored)


def test_a_branch_is_made_and_main_stays(hub, store):
    pushed(hub, store, "first")
    main = head(hub).oid
    found, _ = pushed(hub, store, "second", revision="try/two")
    repo = hub.repos["org/agent"]
    assert repo.branches == {"main": main, "try/two": found["commit"]}


def test_private_is_kept(hub, store):
    pushed(hub, store, private=True)
    assert hub.repos["org/agent"].private
    hub.repos["org/agent"].private = False
    with pytest.raises(UsageError, match="open to everybody"):
        pushed(hub, store, private=True)


def test_a_dry_run_changes_nothing(hub, store):
    found, said = pushed(hub, store, dry_run=True)
    assert found["bytes"] > 0
    assert hub.repos == {}
    assert said.sentences
    assert {m for m, *_ in hub.requests} == {"GET"}


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "why"),
    [
        ("hf_wrong", "Invalid credentials"),
        ("hf_reader", "namespace org/agent"),
        ("", "hf auth login"),
    ],
)
def test_who_may_not_write_is_told_so(hub, store, monkeypatch, token, why):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ShareError) as caught:
        pushed(hub, store)
    assert why in caught.value.render()
    assert token == "" or token not in caught.value.render()
    assert hub.repos == {}


def test_a_commit_is_no_place_to_push_to(hub, store):
    with pytest.raises(UsageError, match="is a commit"):
        pushed(hub, store, revision="a" * 40)


def test_a_bare_base_is_not_pushed(hub, store):
    with pytest.raises(UsageError, match="a bare base"):
        pushed(hub, store, "pico")


def test_a_licence_that_forbids_sharing_stops_it(hub, store, tmp_path):
    learned(store, tmp_path, **(FIRST | {"name": "closed", "licence": "CC-BY-ND-4.0", "seed": 5}))
    with pytest.raises(CheckError, match="a licence forbids pushing") as caught:
        pushed(hub, store, "closed")
    assert "--despite" in caught.value.hint
    assert hub.requests == []
    pushed(hub, store, "closed", despite="its author is me")
    assert b"CC-BY-ND-4.0" in head(hub).files["README.md"]


def test_what_somebody_else_keeps_there_is_not_overwritten(hub, store):
    hub.add("org/agent", {"README.md": b"mine", "model.safetensors": b"x"})
    before = head(hub).oid
    with pytest.raises(UsageError, match="lamina did not push") as caught:
        pushed(hub, store)
    assert caught.value.faults == ("model.safetensors",)
    assert head(hub).oid == before


def test_a_repository_made_on_the_page_counts_as_empty(hub, store):
    hub.add("org/agent", {"README.md": b"---\nlicense: mit\n---\n"})
    pushed(hub, store)
    assert b"# `second`" in head(hub).files["README.md"]


def test_an_adapter_that_is_another_model_is_not_pushed(hub, store, monkeypatch):
    from lamina.export import vllm

    write = vllm.write_joined

    def tripled(joined, *rest):
        write({n: replace(f, b_OR=f.b_OR * 3) for n, f in joined.items()}, *rest)

    monkeypatch.setattr(vllm, "write_joined", tripled)
    with pytest.raises(CheckError, match="is not the stack"):
        pushed(hub, store)
    assert hub.repos == {}


# -- what goes wrong on the way --------------------------------------------------------------------


def test_somebody_elses_commit_in_between_is_noticed(hub, store):
    pushed(hub, store, "first")
    repo = hub.repos["org/agent"]

    def meanwhile():
        repo.commit("theirs", {**repo.head.files, "note.txt": b"hi"}, set(repo.head.large))

    hub.faults = [Fault("POST", "*/commit/main", call=meanwhile)]
    with pytest.raises(ShareError, match="A commit has happened since") as caught:
        pushed(hub, store, "second")
    assert "somebody else pushed meanwhile" in caught.value.hint
    assert head(hub).message == "theirs"
    pushed(hub, store, "second")  # over theirs, which stays
    assert head(hub).files["note.txt"] == b"hi"


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT", "*signed=yes", drop="before"),
        Fault("PUT", "*signed=yes", drop="after"),
        Fault("PUT", "*signed=yes", status=500, times=2),
        Fault("POST", "*/preupload/*", status=429, headers={"Retry-After": "1"}),
        Fault("POST", "*/objects/batch", status=503),
        Fault("POST", "*/lfs/verify", status=502),
    ],
    ids=lambda f: f"{f.path} {f.status or f.drop}",
)
def test_what_passes_is_retried(hub, store, fault):
    hub.faults = [fault]
    pushed(hub, store)
    assert INDEX in head(hub).files
    assert fault.times == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "*signed=yes"),
        ("POST", "*/preupload/*"),
        ("POST", "*/objects/batch"),
        ("POST", "*/lfs/verify"),
        ("POST", "*/validate-yaml"),
        ("POST", "*/commit/main"),
    ],
)
@pytest.mark.parametrize(
    "how",
    [
        {"drop": "before"},
        pytest.param({"status": 500}, marks=pytest.mark.slow),
        pytest.param({"status": 400}, marks=pytest.mark.slow),
    ],
)
def test_what_does_not_pass_leaves_the_old_commit(hub, store, method, path, how):
    pushed(hub, store, "first")
    before = head(hub).oid
    hub.faults = [Fault(method, path, times=99, **how)]
    with pytest.raises(ShareError) as caught:
        pushed(hub, store, "second")
    assert "nothing was committed" in caught.value.message
    assert caught.value.hint
    assert head(hub).oid == before
    hub.faults = []
    found, _ = pushed(hub, store, "second")
    assert head(hub).oid == found["commit"]


def test_a_lost_answer_to_the_commit_is_looked_up(hub, store):
    fault = Fault("POST", "*/commit/main", drop="after")
    hub.faults = [fault]
    found, _ = pushed(hub, store)
    assert fault.times == 0
    assert found["commit"] == head(hub).oid
    assert found["changed"]


def test_a_stand_in_refuses_what_the_hub_refuses(hub):
    """The stand-in itself: without its refusals the tests above would prove nothing."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=hub.endpoint)
    api.create_repo("org/x")
    first = hub.repos["org/x"].head.oid
    api.create_commit("org/x", [CommitOperationAdd("a.txt", b"a")], commit_message="a")
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit(
            "org/x", [CommitOperationAdd("b.txt", b"b")], commit_message="b", parent_commit=first
        )
    with pytest.raises(ValueError, match="license"):
        api.create_commit(
            "org/x",
            [CommitOperationAdd("README.md", b"---\nlicense: none such\n---\n")],
            commit_message="c",
        )
    assert ModelCard.load  # the library's own reader is used in test_card
    assert sorted(hub.repos["org/x"].head.files) == [".gitattributes", "a.txt"]
    assert place(hub, "org/x").look().commit == hub.repos["org/x"].head.oid
