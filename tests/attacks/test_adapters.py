"""Adapters from strangers: each is refused in its own words, and nothing lands in the store."""

import json
import pickle
import resource
import shutil
import time

import pytest

from lamina.store.layout import Store
from tests.attacks.hostile import A, B, Opened, adapter, config, entry, weights
from tests.cli.program import Program
from tests.stacks import new_store

PAIR = {A: entry("F32", (2, 64), 0), B: entry("F32", (64, 2), 512)}


def pair(dtype="F32", a=(2, 64), b=(64, 2)):
    first = entry(dtype, a, 0)
    return {A: first, B: entry(dtype, b, first["data_offsets"][1])}


def renamed(name):
    return weights({name: PAIR[A], B: PAIR[B]}, 1024)


WEIGHTS = {
    "a pickle under a safetensors name": (pickle.dumps({"a": 1}), "its header claims"),
    "a zip (what torch.save writes)": (b"PK\x03\x04" + bytes(100), "its header claims"),
    "nothing": (b"", "its header claims"),
    "a header longer than the file": (weights(PAIR, 1024, length=1 << 40), "its header claims"),
    "a header longer than any": (weights(PAIR, 1024, length=2**64 - 1), "its header claims"),
    "a header cut short": (weights(PAIR, 1024, length=50), "not JSON"),
    "offsets that overlap": (
        weights({A: entry("F32", (2, 64), 0), B: entry("F32", (64, 2), 256)}, 768),
        "overlaps the tensor before it",
    ),
    "a hole between tensors": (
        weights({A: entry("F32", (2, 64), 0), B: entry("F32", (64, 2), 600)}, 1112),
        "leaves a hole",
    ),
    "offsets past the end": (weights(PAIR, 1000), "the file has 1000"),
    "bytes after the end": (weights(PAIR, 2000), "the file has 2000"),
    "offsets that go back": (
        weights({A: entry("F32", (2, 64), 512, 0), B: PAIR[B]}, 1024),
        "is not -512 bytes",
    ),
    "a negative shape": (weights({A: entry("F32", (-2, -64), 0), B: PAIR[B]}, 1024), "natural"),
    "a shape of floats": (weights({A: entry("F32", (2.0, 64.0), 0, 512)}, 512), "natural"),
    "a shape of truth values": (weights({A: entry("F32", (True, 1), 0)}, 4), "natural"),
    "a shape of huge numbers": (
        weights({A: entry("F32", (2**63, 2**63), 0, 512)}, 512),
        "is not 512 bytes",
    ),
    "no elements along huge axes": (
        weights({A: entry("F32", (0, 2**62), 0, 0), B: entry("F32", (2**62, 0), 0, 0)}, 0),
        "too large",
    ),
    "an offset of -0": (
        weights(json.dumps(PAIR).replace("[0, 512]", "[-0, 512]").encode(), 1024),
        "-0 is an integer to some readers",
    ),
    "metadata that are no texts": (
        weights({"__metadata__": {"format": 3}, **PAIR}, 1024),
        "no object of texts",
    ),
    "a shape of numbers that do not fit": (
        weights(json.dumps({A: entry("F32", (10**100, 1), 0, 8)}).encode(), 8),
        "does not fit",
    ),
    "a shape of very many axes": (
        weights({A: entry("F32", [2] * 100_000, 0, 512)}, 512),
        "100000 axes",
    ),
    "half as many bytes as the dtype says": (
        weights({A: entry("F32", (2, 64), 0, 256), B: entry("F32", (64, 2), 256)}, 768),
        "F32 of shape (2, 64) is not 256 bytes",
    ),
    "a dtype that nobody knows": (weights({A: entry("F33", (2, 64), 0)}, 128), "unknown dtype"),
    "a dtype that is a list": (
        weights({A: PAIR[A] | {"dtype": ["F32"]}, B: PAIR[B]}, 1024),
        "unknown dtype",
    ),
    "integers": (weights(pair("I64"), 2048), "no floating-point type"),
    "a name twice": (
        weights(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}}', 1),
        "a key comes twice",
    ),
    "a field twice": (
        weights(b'{"a":{"dtype":"U8","dtype":"F32","shape":[1],"data_offsets":[0,1]}}', 1),
        "a key comes twice",
    ),
    "two names for one module": (
        weights({**PAIR, A.removeprefix("base_model.model."): entry("F32", (2, 64), 1024)}, 1536),
        "is there twice",
    ),
    "very many tensors": (
        weights({f"t{i}": entry("U8", (0,), 0) for i in range(100_001)}, 0),
        "100,001 tensors",
    ),
    "very many values": (weights(b'{"a":[' + b"0," * 2_000_001 + b"0]}", 0), "2,000,000 values"),
    "a deep header": (weights(b'{"a":' + b"[" * 500_000, 0), "nested deeper"),
    "a header with NaN": (weights(b'{"a":NaN}', 0), "not a JSON number"),
    "a header in UTF-16": (weights('{"a":1}'.encode("utf-16"), 0), "utf-8"),
    "a name with escapes": (renamed("a\x1b[2J"), "control character"),
    "a name that reads backwards": (renamed("a\u202ebin"), "control character"),
    "a very long name": (renamed("a" * 10_000), "10000 characters"),
    "a name that is no adapter's": (renamed("../../etc/passwd"), "no lora_A"),
    "numbers that are NaN": (weights(PAIR, b"\xff" * 1024), "not finite"),
    "numbers that are infinite": (weights(PAIR, b"\x00\x00\x80\x7f" * 256), "not finite"),
    "a half": (weights({A: entry("F32", (2, 64), 0)}, 512), "no lora_B"),
    "ranks that differ": (weights(pair(b=(64, 4)), 512 + 1024), "differ in rank"),
    "a rank above all": (
        weights(pair("F16", (20_000, 2), (2, 20_000)), 160_000),
        "the tensors have 20000",
    ),
    "three axes": (weights(pair(a=(2, 8, 8)), 1024), "3 axes"),
    "an empty tensor": (weights(pair(a=(2, 0), b=(0, 2)), 0), "A is empty"),
    "no tensor": (weights({}, 0), "touches no module"),
}
CONFIGS = {
    "no JSON": (b"\x80\x04\x95", "not JSON"),
    "an array": (b"[]", "not a JSON object"),
    "depth": (b'{"a":' * 100_000, "nested deeper"),
    "depth that is closed": (b'{"a":' + b"[" * 50 + b"]" * 50 + b"}", "nested deeper"),
    "a key twice": (b'{"peft_type":"LORA","peft_type":"X"}', "a key comes twice"),
    "a large file": (b" " * (5 << 20), "bytes; 4194304 are read"),
    "a rank of a thousand million": (config(r=10**9), "the config says rank 1000000000"),
    "a rank of very many digits": (b'{"peft_type":"LORA","r":' + b"9" * 5000 + b"}", "not fit"),
    "a rank below nothing": (config(r=-2), "r is -2"),
    "an infinite alpha": (b'{"peft_type":"LORA","r":2,"lora_alpha":1e999}', "does not fit"),
    "an alpha that is no number": (b'{"peft_type":"LORA","r":2,"lora_alpha":NaN}', "NaN"),
    "an alpha of text": (config(lora_alpha="nan"), "lora_alpha is 'nan'"),
    "an alpha above all": (config(lora_alpha=1e300), "lora_alpha is 1e+300"),
    "an alpha of a list": (config(lora_alpha=[1]), "lora_alpha is [1]"),
    "a pattern that would run for ever": (
        config(rank_pattern={"(a+)+(b|c)*$": 2}),
        "is not evaluated",
    ),
    "a pattern of a list": (config(rank_pattern=["a"]), "is no table"),
    "another method": (config(peft_type="BOFT"), "only LORA"),
    "DoRA": (config(use_dora=True), "use_dora"),
}


@pytest.fixture(scope="module")
def seed(tmp_path_factory):
    """A store with a base that the good adapter fits. Never changed."""
    return new_store(tmp_path_factory.mktemp("seed") / "home", hidden=64, layers=1).root


@pytest.fixture
def program(seed, tmp_path, monkeypatch, capsys):
    shutil.copytree(seed, tmp_path / "home", symlinks=True)
    return Program(tmp_path / "home", monkeypatch, capsys)


def test_what_is_spoilt_below_is_taken_where_it_is_not(program, tmp_path):
    program("import", adapter(tmp_path / "good"), "--on", "pico", "--as", "good").done()


def refused(program, folder, fragment):
    """Import is refused in these words, in seconds, without much memory and without a trace."""
    store = Store.open(program.home)
    before = store.index_path.read_bytes(), sorted(store.blobs_dir.iterdir())
    peak, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    found = program("import", folder, "--on", "pico", "--as", "evil")
    found.refused(fragment)
    assert not set(found.err) & set("\x1b\u202e")
    assert time.monotonic() - begun < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1_000_000  # kB
    assert (store.index_path.read_bytes(), sorted(store.blobs_dir.iterdir())) == before


@pytest.mark.parametrize("name", WEIGHTS)
def test_hostile_weights(program, tmp_path, name):
    data, fragment = WEIGHTS[name]
    refused(program, adapter(tmp_path / "evil", data=data), fragment)


@pytest.mark.parametrize("name", CONFIGS)
def test_hostile_configs(program, tmp_path, name):
    text, fragment = CONFIGS[name]
    refused(program, adapter(tmp_path / "evil", text=text), fragment)


def test_very_many_patterns_for_very_many_modules(program, tmp_path):
    header = {}
    for i in range(4500):
        for side in "AB":
            key = f"base_model.model.m{i}.lora_{side}.weight"
            header[key] = entry("F16", (1, 1), 2 * len(header))
    data = weights(header, 2 * len(header))
    text = config(r=1, alpha_pattern={f"n{i}": 1 for i in range(4500)})
    refused(
        program, adapter(tmp_path / "evil", text=text, data=data), "the base has no such linear"
    )


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "weights.pkl"])
def test_a_pickle_is_never_opened(program, tmp_path, name):
    folder = adapter(tmp_path / "evil", data=None)
    mark = tmp_path / "opened"
    (folder / name).write_bytes(pickle.dumps(Opened(mark)))
    refused(program, folder, "is a pickle, which is never opened")
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps(Opened(mark)))
    refused(program, folder, "not a safetensors file")
    assert not mark.exists()
    pickle.loads((folder / name).read_bytes())
    assert mark.exists()  # it would have done its work
