import json
import subprocess
import sys

import pytest

from lamina.core.errors import StoreError
from lamina.core.names import Name
from lamina.store.layout import Store
from tests.store.make import put_stack


def test_new_store_is_an_empty_oci_layout(store):
    assert json.loads((store.root / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((store.root / "index.json").read_bytes())
    assert index["schemaVersion"] == 2
    assert index["manifests"] == []
    assert (store.root / "blobs" / "sha256").is_dir()
    assert store.verify().clean


def test_opening_twice_keeps_everything(store):
    store.move("support", put_stack(store, "a"), expected=None)
    again = Store.open(store.root)
    assert again.names() == store.names() != {}


def test_empty_folder_becomes_a_store(tmp_path):
    assert Store.open(tmp_path).entries() == ()


def test_begun_store_is_finished(tmp_path):
    (tmp_path / "lamina.lock").touch()
    (tmp_path / "blobs").mkdir()
    (tmp_path / ".tmp-index.json-1").write_bytes(b"{")
    assert Store.open(tmp_path).verify().clean


@pytest.mark.parametrize("name", ["notes.txt", "runs", "blobs", "index.json"])
def test_foreign_folder_is_refused_and_left_alone(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(StoreError, match="neither empty nor a store") as caught:
        Store.open(tmp_path)
    assert name in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_file_is_no_store(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="can't be a store"):
        Store.open(tmp_path / "file")


def test_create_false_makes_nothing(tmp_path):
    with pytest.raises(StoreError, match="there is no store at"):
        Store.open(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        (b'{"imageLayoutVersion":"2.0.0"}', "version 2.0.0"),
        (b"{", "not JSON"),
        (b'{"imageLayoutVersion":"1.0.0","x":1}', "not valid"),
    ],
)
def test_other_layout_versions_are_refused(store, marker, message):
    (store.root / "oci-layout").write_bytes(marker)
    with pytest.raises(StoreError, match=message):
        Store.open(store.root)


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"schemaVersion":2,"manifests":[{}]}', b"[" * 100_000, b"\xff"]
)
def test_damaged_index_is_an_error_and_never_reset(store, damage):
    stack = put_stack(store, "a")
    store.index_path.write_bytes(damage)
    again = Store.open(store.root)
    for use in (
        again.entries,
        again.names,
        lambda: again.move("support", stack, expected=None),
        lambda: again.collect(grace_seconds=0),
    ):
        with pytest.raises(StoreError, match=r"index\.json") as caught:
            use()
        assert "lamina verify" in str(caught.value)
    assert store.index_path.read_bytes() == damage
    report = again.verify()
    assert any("index.json" in fault for fault in report.faults)
    assert report.orphans == 6  # nothing was collected


def test_missing_index_is_an_error(store):
    store.index_path.unlink()
    with pytest.raises(StoreError, match=r"index\.json"):
        Store.open(store.root).resolve(Name("support"))


def test_store_starts_fast_and_light():
    code = (
        "import sys, lamina.store.layout; "
        "print(*(m for m in ('torch', 'transformers', 'numpy', 'filelock') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_lost_marker_loses_no_names(store):
    store.move("support", put_stack(store, "a"), expected=None)
    (store.root / "oci-layout").unlink()
    assert list(Store.open(store.root).names()) == ["support"]
