"""The program as a whole against a stand-in of the Hub: commands, kills, what stays at home."""

import json
import resource
import signal
import threading

import pytest

from lamina.core.errors import UsageError
from lamina.core.evidence import SCORES_TYPE, ScoresEvidence
from lamina.core.manifests import JSONL_TYPE, Descriptor
from lamina.core.names import Name
from lamina.share.hub import BLOBS, INDEX
from lamina.share.parcel import parcel_of
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from lamina.store.refs import ANYTHING
from tests.cli.program import start, wait
from tests.flows.world import FIRST, learned
from tests.hub.state import Fault
from tests.hub.world import pushed

pytestmark = pytest.mark.slow


@pytest.fixture
def lamina(hub, store):
    """The command line in a child of its own, with this Hub as the Hub."""
    variables = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_writer", "HF_HUB_DISABLE_XET": "1"}

    def run(*arguments, home=store.root, preexec_fn=None, **more):
        return start(home, *arguments, env={**variables, **more}, preexec_fn=preexec_fn)

    return run


@pytest.mark.slow
def test_push_and_pull_by_command(hub, store, lamina, tmp_path):
    said = wait(lamina("push", "second", "hf:org/agent", "--with-base", "--private", "--json"))
    assert said.done().json["commit"] == hub.repos["org/agent"].head.oid
    assert hub.repos["org/agent"].private
    assert "12 exam questions" in said.err
    again = wait(lamina("push", "second", "hf:org/agent", "--with-base")).done()
    assert "already" in again.out
    home = tmp_path / "elsewhere"
    shown = wait(lamina("pull", "hf:org/agent", "--dry-run", home=home)).done()
    assert "layer second" in shown.out
    found = wait(lamina("pull", "hf:org/agent", "--as", "mine", "--json", home=home)).done().json
    assert found["stack"] == resolve(store, "second").digest
    listed = wait(lamina("list", "--json", home=home)).done().json
    assert [stack["name"] for stack in listed["stacks"]] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("push", "second", "hf:org/agent", "--plain-http"), "--plain-http can't be used"),
        (("push", "second", "oci://localhost:9/x", "--private"), "--private can't be used"),
        (("push", "second", "hf:agent"), "hf:"),
        (("pull", "hf:org/agent", "--no-tls-verify"), "--no-tls-verify can't be used"),
        (("pull", "oci://localhost:9/x", "--on", "pico"), "--on can't be used"),
        (("pull", "hf:org/none"), "RepositoryNotFound"),
    ],
)
def test_what_makes_no_sense_is_refused(hub, lamina, arguments, why):
    wait(lamina(*arguments)).refused(why)
    assert hub.repos == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "path", "arrived"),
    [
        ("POST", "*/preupload/*", False),
        ("PUT", "*signed=yes", False),
        ("POST", "*/commit/main", False),
        ("POST", "*/commit/main", True),
    ],
)
def test_a_push_killed_on_the_way_is_no_push_or_a_whole_one(
    hub, store, lamina, method, path, arrived
):
    """`arrived`: the Hub goes on with a commit that it has read whole, whoever asked for it."""
    pushed(hub, store, "first")
    before = hub.repos["org/agent"].head.oid
    reached, killed = threading.Event(), threading.Event()

    def hold():
        reached.set()
        assert killed.wait(60)

    hub.faults = [Fault(method, path, drop="" if arrived else "before", call=hold)]
    child = lamina("push", "second", "hf:org/agent")
    assert reached.wait(60)
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=60)
    killed.set()
    hub.settled()
    assert (hub.repos["org/agent"].head.oid != before) == arrived
    whole("second" if arrived else "first", hub, store)
    hub.faults = []
    found, _ = pushed(hub, store, "second")
    assert found["commit"] == hub.repos["org/agent"].head.oid
    whole("second", hub, store)


def whole(name, hub, store):
    """The repository's head is this stack, with everything."""
    files = hub.repos["org/agent"].head.files
    named = [item["digest"] for item in json.loads(files[INDEX])["manifests"]]
    assert named[0] == resolve(store, name).digest
    wanted = parcel_of(store, named[0])
    everything = (*wanted.blobs, *wanted.manifests, *wanted.evidence)
    assert {f"{BLOBS}{item.digest[7:]}" for item in everything} <= set(files)


@pytest.mark.slow
@pytest.mark.parametrize("most", [2000, 5000])
def test_a_disk_that_fills_up_leaves_nothing_half(hub, store, lamina, tmp_path, most):
    """`most`: bytes that a file may have; the index has more than the first, factors more than the
    second."""
    pushed(hub, store, with_base=True)
    weights = resolve(store, "second").layers[0].manifest.blob("adapter_model.safetensors")
    index = len(hub.repos["org/agent"].head.files[INDEX])
    assert 2000 < index < 5000 < weights.size
    home = tmp_path / "elsewhere"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    child = lamina("pull", "hf:org/agent", home=home, preexec_fn=limit)
    wait(child).refused("no space left", "free space")
    there = Store.open(home)
    assert there.names() == {}
    assert there.verify().faults == ()
    wait(lamina("pull", "hf:org/agent", home=home)).done()
    assert Store.open(home).verify().faults == ()


# -- what stays at home ----------------------------------------------------------------------------


@pytest.fixture
def secret(store, tmp_path):
    """A store with `secret`, a layer of private rows."""
    learned(store, tmp_path, **(FIRST | {"name": "secret", "private": True, "word": "pin"}))
    return store


def test_private_rows_stay_at_home(hub, secret):
    pushed(hub, secret, "secret")
    assert list((secret.root / "private").iterdir())
    sent = b"".join(hub.repos["org/agent"].head.files.values()) + b"".join(hub.storage.values())
    assert b"which pin has number" not in sent
    for path in (secret.root / "private").iterdir():
        assert path.read_bytes() not in sent
    records = [
        json.loads(data) for path, data in hub.repos["org/agent"].head.files.items()
        if path.startswith(BLOBS) and data.startswith(b'{"created"') and b"exam_digest" in data
    ]  # fmt: skip
    assert records
    assert all(answer is None for each in records for _, _, answer in each["items"])


def carrying(store, title, data):
    """`secret` again, made by somebody whose layer carries what it says it withholds."""
    layer = resolve(store, "secret").layers[0]
    blobs = [b for b in layer.manifest.layers if b.title != title]
    wrong = store.put_bytes(data, JSONL_TYPE, title=title)
    config = layer.config
    if title == "exam-0.jsonl":
        spec = config.exams[0].model_copy(update={"items": wrong.digest, "rows": 1})
        config = config.model_copy(update={"exams": (spec,)})
    else:
        config = config.model_copy(update={"rehearsal": "sample"})
    made = store.put_layer(config, [*blobs, wrong])
    return f"@{made.digest[7:]}"


@pytest.mark.parametrize(
    ("title", "why"),
    [
        ("exam-0.jsonl", "the questions of its private exam"),
        ("rehearsal.jsonl", "a sample of its rows"),
        ("seen.bin", "marks by which its rows can be guessed"),
    ],
)
def test_a_layer_that_carries_what_it_withholds_is_not_sent(hub, secret, title, why):
    text = carrying(secret, title, b'{"messages": []}\n')
    with pytest.raises(UsageError, match="nothing was sent") as caught:
        pushed(hub, secret, text)
    assert any(why in fault for fault in caught.value.faults)
    assert hub.repos == {}
    assert hub.requests == []


def test_answers_to_withheld_questions_are_left_out(hub, secret):
    stack = resolve(secret, "secret")
    spec = stack.layers[0].config.exams[0]
    record = ScoresEvidence(created="2020-01-01T00:00:00+00:00", exam_digest=spec.items,
                            scorer="exact", max_new_tokens=4, engine="sha256:" + "1" * 64,
                            items=((1.0, 1.0, "the pin is 1234"),))  # fmt: skip
    secret.put_evidence(SCORES_TYPE, record, secret.describe(stack.digest))
    pushed(hub, secret, "secret")
    assert b"1234" not in b"".join(hub.repos["org/agent"].head.files.values())


def test_a_layer_by_its_digest_is_pushed_as_the_stack_it_tops(hub, store):
    top: Descriptor = store.describe(resolve(store, "second").layers[1].digest)
    store.tag(Name("kept"), store.describe(resolve(store, "second").digest), expected=ANYTHING)
    found, _ = pushed(hub, store, f"@{top.digest[7:]}")
    assert found["stack"] == resolve(store, "second").digest


@pytest.mark.slow
def test_signatures_travel(hub, store, lamina, tmp_path):
    config = {"LAMINA_CONFIG": str(tmp_path / "config")}
    wait(lamina("key", "new", "--name", "ann@example.org", **config)).done()
    wait(lamina("sign", "second", "--statement", "read", **config)).done()
    wait(lamina("push", "second", "hf:org/agent", "--with-base")).done()
    home = tmp_path / "elsewhere"
    wait(lamina("pull", "hf:org/agent", "--as", "mine", home=home, **config)).done()
    found = wait(lamina("verify", "mine", "--json", home=home, **config)).done().json
    signed = [(each["name"], each["statement"]) for each in found["signatures"]]
    assert signed == [("ann@example.org", "read")]
