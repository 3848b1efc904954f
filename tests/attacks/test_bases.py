"""Bases from strangers: folders and GGUF files."""

import json
import pickle
import shutil
import struct
import time

import pytest

from lamina.core.errors import BaseError
from lamina.core.report import Silent
from lamina.flows.bases import pull
from lamina.store.layout import Store
from tests.attacks.hostile import Opened


@pytest.fixture
def folder(tmp_path, pico):
    return shutil.copytree(pico, tmp_path / "evil")


def changed(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(tmp_path, source, fragment):
    store = Store.open(tmp_path / "store")
    before, begun = store.index_path.read_bytes(), time.monotonic()
    with pytest.raises(BaseError) as caught:
        pull(store, str(source), "evil", Silent())
    assert fragment in caught.value.render()
    assert time.monotonic() - begun < 30
    assert store.index_path.read_bytes() == before
    assert not list(store.blobs_dir.iterdir())


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1e+09"),
        ({"num_local_experts": 10**9}, "num_local_experts is 1e+09"),
        ({"hidden_size": 10**15}, "hidden_size is 1e+15"),
        ({"vocab_size": -(10**15)}, "vocab_size is -1e+15"),
        ({"nested": {"num_hidden_layers": 10**6}}, "num_hidden_layers is 1e+06"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "which is never run"),
        ({"model_type": "evil"}, "not a causal language model"),
        ({"hidden_size": 128}, "the architecture"),
    ],
)
def test_configurations_that_ask_for_too_much(tmp_path, folder, fields, fragment):
    changed(folder, **fields)
    refused(tmp_path, folder, fragment)


def test_pickled_weights_are_not_opened(tmp_path, folder):
    mark = tmp_path / "opened"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Opened(mark)))
    refused(tmp_path, folder, "pytorch_model.bin")
    assert not mark.exists()


def test_an_index_that_climbs_out_of_its_folder(tmp_path, folder):
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(tmp_path, folder, "names weight files that are not there")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("data", [b"{", b"[]", b"\x80\x04", b'{"a":' * 100_000])
def test_files_that_are_no_json(tmp_path, folder, name, data):
    (folder / name).write_bytes(data)
    refused(tmp_path, folder, name)


def gguf(tensors=0, keys=0, rest=b"", version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


def key(name, kind, value):
    data = name.encode()
    return struct.pack("<Q", len(data)) + data + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    ("data", "fragment"),
    [
        (b"PK\x03\x04", "is not a GGUF file"),
        (b"GGUF", "cut short"),
        (gguf(), "cannot be read as GGUF"),
        (gguf(version=99), "version 99"),
        (gguf(tensors=2**62), "4611686018427387904 tensors"),
        (gguf(keys=2**62), "4611686018427387904 keys"),
        (gguf(keys=1, rest=struct.pack("<Q", 2**62) + b"a"), "cannot be read as GGUF"),
        (gguf(keys=1, rest=key("a", 9, struct.pack("<IQ", 0, 2**62))), "cannot be read as GGUF"),
        (gguf(keys=1, rest=key("a", 77, b"")), "cannot be read as GGUF"),
        (
            gguf(keys=1, rest=key("a", 9, struct.pack("<IQ", 9, 1) * 5000)),
            "cannot be read as GGUF",
        ),
    ],
)
def test_hostile_gguf_files(tmp_path, data, fragment):
    (tmp_path / "evil.gguf").write_bytes(data)
    refused(tmp_path, tmp_path / "evil.gguf", fragment)
