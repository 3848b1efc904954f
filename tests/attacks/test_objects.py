# ruff: noqa: PT012
"""Manifests, configs, indexes and layouts from strangers: each refused in its own words."""

import json
import os

import pytest

from lamina.core.digest import digest_bytes
from lamina.core.errors import (
    CorruptBlobError,
    LaminaError,
    MissingBlobError,
    StoreError,
    UsageError,
    WrongParentError,
)
from lamina.core.manifests import (
    CONFIG_SUFFIX,
    LAYER_TYPE,
    MANIFEST_TYPE,
    STACK_TYPE,
    TITLE,
    ImageManifest,
    LayerConfig,
    StackConfig,
)
from lamina.core.names import parse_reference
from lamina.stack.compile import base_directory
from lamina.stack.resolve import of_descriptor
from lamina.store.layout import Store
from tests.store import make

ONE = digest_bytes(b"one")
HEAD = b'{"schemaVersion":2,"mediaType":"' + MANIFEST_TYPE.encode() + b'",'


@pytest.fixture
def store(tmp_path):
    store = Store.open(tmp_path / "store")
    make.put_base(store)
    store.move("support", make.put_stack(store, "one", "two"), expected=None)
    return store


def listing(store):
    return store.index_path.read_bytes(), sorted(path.name for path in store.blobs_dir.iterdir())


def blob(digest=ONE, size=3, **more):
    return {"mediaType": "application/json", "digest": digest, "size": size, **more}


def manifest(**changes):
    found = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": LAYER_TYPE,
        "config": blob(),
        "layers": [],
    }
    return json.dumps(found | changes).encode()


def titled(*titles):
    return [blob(annotations={TITLE: title}) for title in titles]


MANIFESTS = {
    "a key twice": (HEAD + b'"artifactType":"a","artifactType":"b"}', StoreError, "comes twice"),
    "a key twice, deep": (
        HEAD + b'"artifactType":"a","layers":[],"config":{"size":1,"size":2}}',
        StoreError,
        "comes twice",
    ),
    "depth": (b'{"a":' * 200_000, StoreError, "nested deeper"),
    "depth that is closed": (
        HEAD + b'"annotations":' + b"[" * 100 + b"]" * 100 + b"}",
        StoreError,
        "nested deeper",
    ),
    "a size that is infinite": (manifest(config=blob(size=float("inf"))), StoreError, "Infinity"),
    "a size that overflows": (
        manifest(config=blob(size=0)).replace(b'"size": 0', b'"size": 1e999'),
        StoreError,
        "does not fit",
    ),
    "a size of very many digits": (
        manifest(config=blob(size=0)).replace(b'"size": 0', b'"size": ' + b"9" * 4000),
        StoreError,
        "does not fit",
    ),
    "a size below nothing": (manifest(config=blob(size=-1)), StoreError, "config.size"),
    "a size of text": (manifest(config=blob(size="3")), StoreError, "config.size"),
    "a size that is true": (manifest(config=blob(size=True)), StoreError, "config.size"),
    "a size above all": (manifest(config=blob(size=2**63)), StoreError, "config.size"),
    "a digest that is a path": (
        manifest(config=blob("sha256:../../../etc/passwd")),
        StoreError,
        "config.digest",
    ),
    "a digest in capitals": (manifest(config=blob(ONE.upper())), StoreError, "config.digest"),
    "a digest of another kind": (manifest(config=blob("md5:" + "0" * 32)), StoreError, "digest"),
    "a digest and a line end": (manifest(config=blob(ONE + "\n")), StoreError, "config.digest"),
    "a field that nobody knows": (manifest(run="rm -rf /"), StoreError, "unknown key"),
    "an index instead": (
        manifest(mediaType="application/vnd.oci.image.index.v1+json"),
        StoreError,
        "mediaType",
    ),
    "a type with escapes": (manifest(artifactType="a\x1b[2J"), StoreError, "artifactType"),
    "a file name that climbs": (
        manifest(layers=titled("../../../.bashrc")),
        StoreError,
        "no plain file name",
    ),
    "an absolute file name": (manifest(layers=titled("/etc/cron.d/x")), StoreError, "no plain"),
    "a file name that is a folder's": (manifest(layers=titled("..")), StoreError, "no plain"),
    "a hidden file": (manifest(layers=titled(".bashrc")), StoreError, "no plain file name"),
    "a file name of another system": (
        manifest(layers=titled("a\\..\\b")),
        StoreError,
        "no plain file name",
    ),
    "a file name with NUL": (manifest(layers=titled("a\x00b")), StoreError, "no plain file name"),
    "a file name in other letters": (
        manifest(layers=titled("аdapter_config.json")),
        StoreError,
        "no plain file name",
    ),
    "a file name twice": (manifest(layers=titled("a", "a")), StoreError, "same file name"),
    "a long file name": (manifest(layers=titled("a" * 300)), StoreError, "no plain file name"),
    "an array": (b"[]", StoreError, "not a JSON object"),
    "UTF-16": ("{}".encode("utf-16"), StoreError, "utf-8"),
    "a byte order mark": (b"\xef\xbb\xbf{}", StoreError, "not JSON"),
    "half of a surrogate": (manifest(artifactType="X").replace(b"X", b"\\ud800"), StoreError, ""),
    "nothing": (b"", StoreError, "not JSON"),
    "a pickle": (b"\x80\x04\x95\x10", StoreError, "not JSON"),
    "five million bytes": (b" " * (5 << 20), UsageError, "at most 4194304"),
    "very many blobs": (manifest(layers=[blob()] * 60_000), UsageError, "at most 4194304"),
    "blobs that nobody has": (manifest(), MissingBlobError, "names blobs that the store lacks"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_hostile_manifests(store, name):
    data, kind, fragment = MANIFESTS[name]
    before = listing(store)
    with pytest.raises(kind) as caught:
        store.put_manifest(data)
    assert fragment in caught.value.render()
    assert listing(store) == before


LAYER = {
    "name": "evil",
    "base": make.IDENTITY_OF_BASE,
    "parents": [],
    "rank": 1,
    "alpha": 2.0,
    "scaling": "lora",
    "modules": ["q_proj"],
    "parameters": 3,
}
EXAM = {"name": "e", "scorer": "exact", "items": ONE, "rows": 1}
LAYERS = {
    "a rank of a thousand million": ({"rank": 10**9}, "rank"),
    "a rank of nothing": ({"rank": 0}, "rank"),
    "a rank below nothing": ({"rank": -1}, "rank"),
    "a rank of text": ({"rank": "1"}, "rank"),
    "a rank that is true": ({"rank": True}, "rank"),
    "a rank and a half": ({"rank": 1.5}, "rank"),
    "very many parameters": ({"parameters": 2**63}, "parameters"),
    "a name that climbs": ({"name": "../../etc"}, "is not a name"),
    "a name with escapes": ({"name": "evil\x1b]0;x\x07"}, "control character"),
    "a name that reads backwards": ({"name": "\u202elive"}, "control character"),
    "a name in other letters": ({"name": "suppоrt"}, "is not a name"),
    "a name in wide letters": ({"name": "ｓｕｐｐｏｒｔ"}, "is not a name"),
    "an invisible letter": ({"name": "sup\u200bport"}, "is not a name"),
    "a long name": ({"name": "a" * 101}, "is not a name"),
    "no name": ({"name": ""}, "is not a name"),
    "an author of several lines": ({"author": "anna\n  signed by bob"}, "control character"),
    "an author with escapes": ({"author": "\x9b2Janna"}, "control character"),
    "a long author": ({"author": "a" * 501}, "501 characters"),
    "a licence with escapes": ({"licence": "MIT\x1b[8m"}, "control character"),
    "a module that climbs": ({"modules": ["../q_proj"]}, "is no module's name"),
    "a module that is a pattern": ({"modules": ["(a+)+$"]}, "is no module's name"),
    "a long module": ({"modules": ["a" * 301]}, "is no module's name"),
    "an exam of endless answers": (
        {"exams": [EXAM | {"max_new_tokens": 10**9}]},
        "max_new_tokens",
    ),
    "an exam with escapes": ({"exams": [EXAM | {"name": "e\x1b[2J"}]}, "control character"),
    "a scorer that nobody knows": ({"exams": [EXAM | {"scorer": "os.system"}]}, "scorer"),
    "a field that nobody knows": ({"postinstall": "rm -rf /"}, "unknown key"),
    "a weight of text": ({"parents": [{"layer": ONE, "weight": "1"}]}, "weight"),
}


def put_layer(store, config, media_type=LAYER_TYPE + CONFIG_SUFFIX):
    """A layer's manifest over config bytes that lamina would not have written."""
    data = config if isinstance(config, bytes) else json.dumps(config).encode()
    return store.put_manifest(
        ImageManifest(
            artifactType=LAYER_TYPE, config=store.put_bytes(data, media_type), layers=()
        ).to_bytes()
    )


@pytest.mark.parametrize("name", LAYERS)
def test_hostile_layers(store, name):
    change, fragment = LAYERS[name]
    found = put_layer(store, LAYER | change)
    with pytest.raises(StoreError) as caught:
        store.config(store.manifest(found.digest), LayerConfig)
    assert fragment in caught.value.render()
    assert listing(store)[0] == Store.open(store.root).index_path.read_bytes()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["alpha", "weight"])
def test_numbers_that_are_none(store, number, field):
    config = LAYER | {"parents": [{"layer": ONE, "weight": 0.123}], "alpha": 0.456}
    text = json.dumps(config).replace({"alpha": "0.456", "weight": "0.123"}[field], number)
    found = put_layer(store, text.encode())
    with pytest.raises(StoreError, match="number"):
        store.config(store.manifest(found.digest), LayerConfig)


def test_a_config_of_another_type(store):
    found = put_layer(store, LAYER, "application/x-python-pickle")
    with pytest.raises(StoreError, match=r"expected application/vnd\.lamina\.layer"):
        store.config(store.manifest(found.digest), LayerConfig)
    stack = put_layer(store, {"base": ONE, "layers": []}, STACK_TYPE + CONFIG_SUFFIX)
    with pytest.raises(StoreError, match=r"expected application/vnd\.lamina\.layer"):
        of_descriptor(store, stack, label="it")


def test_a_config_of_very_many_values(store):
    found = put_layer(store, b'{"a":[' + b"0," * 2_000_001 + b"0]}")
    with pytest.raises(StoreError, match="more than 2,000,000 values"):
        store.config(store.manifest(found.digest), LayerConfig)
    found = put_layer(store, b'{"a":"' + b"0" * (16 << 20) + b'"}')
    with pytest.raises(StoreError, match="at most 16777216 are read"):
        store.config(store.manifest(found.digest), LayerConfig)


def put_stack(store, *layers):
    config = StackConfig.parse(
        {"base": make.IDENTITY_OF_BASE, "layers": [{"layer": each} for each in layers]}, "it"
    )
    return store.put_object(STACK_TYPE, config)


def test_a_stack_that_lists_a_stack(store):
    """A digest of its own it cannot hold; that of a stack which holds others it can."""
    inner = store.names()["support"]["latest"].digest
    with pytest.raises(LaminaError):
        of_descriptor(store, put_stack(store, inner), label="it")
    with pytest.raises(LaminaError):
        of_descriptor(store, put_stack(store, make.put_base(store).digest), label="it")
    with pytest.raises(MissingBlobError):
        of_descriptor(store, put_stack(store, ONE), label="it")


def test_a_stack_that_does_not_carry_its_layers_is_told(store):
    layer = make.put_layer(store, "one").digest
    store.tag(parse_reference("evil"), put_stack(store, layer), expected=None)
    assert any("doesn't carry its layer" in fault for fault in store.verify().faults)


def test_a_layer_that_claims_another_base(store):
    found = put_layer(store, LAYER | {"base": ONE})
    with pytest.raises(LaminaError):
        of_descriptor(store, found, label="it")
    with pytest.raises(WrongParentError, match="not trained"):
        of_descriptor(store, put_stack(store, found.digest), label="it")


def test_blobs_that_lie(store):
    before = listing(store)
    with pytest.raises(CorruptBlobError, match="expected"), store.writer() as writer:
        writer.write(b"not what was asked for")
        writer.commit(ONE)
    with pytest.raises(CorruptBlobError, match="more than"), store.writer(limit=10) as writer:
        for _ in range(10**6):
            writer.write(b"and on and on")
    for digest in ("sha256:" + "../" * 21 + "a", "sha256:" + "A" * 64, "../../etc/passwd", ""):
        with pytest.raises(UsageError):
            store.read(digest)
    assert listing(store) == before


@pytest.mark.skipif(os.name != "posix", reason="links and pipes are POSIX's")
def test_links_and_pipes_in_a_layout(store, tmp_path):
    outside = tmp_path / "secret"
    outside.write_text("secret")
    os.symlink(outside, store.blobs_dir / ONE.removeprefix("sha256:"))
    with pytest.raises(CorruptBlobError) as caught:
        store.read(ONE)
    assert "secret" not in caught.value.render()
    other = digest_bytes(b"other")
    os.mkfifo(store.blobs_dir / other.removeprefix("sha256:"))
    for read in (store.read, store.path):
        with pytest.raises(CorruptBlobError):
            read(other)
    os.remove(store.index_path)
    os.symlink(outside, store.index_path)
    with pytest.raises(StoreError) as caught:
        store.entries()
    assert "secret" not in caught.value.render()
    os.remove(store.index_path)
    os.mkfifo(store.index_path)
    with pytest.raises(StoreError, match="no file"):
        store.entries()
    os.remove(store.root / "oci-layout")
    os.mkfifo(store.root / "oci-layout")
    with pytest.raises(StoreError, match="no file"):
        Store.open(store.root)


@pytest.mark.slow
def test_an_index_of_ten_million_entries(store):
    one = json.dumps({**blob(), "mediaType": MANIFEST_TYPE}).encode() + b","
    with store.index_path.open("wb") as handle:
        handle.write(b'{"schemaVersion":2,"manifests":[')
        for _ in range(100):
            handle.write(one * 100_000)
    with pytest.raises(StoreError, match="more than 67108864 bytes"):
        store.entries()
    store.index_path.write_bytes(b'{"schemaVersion":2,"manifests":[' + b"{}," * 10_000_000)
    with pytest.raises(StoreError, match="more than 2,000,000 values"):
        store.entries()


@pytest.mark.parametrize(
    "text",
    [
        "../../etc/passwd",
        "support/../x",
        "Support",
        "suppоrt",
        "ｓupport",
        "support\x1b[2J",
        "support\n",
        "\u202etroppus",
        "sup\u200bport",
        "a" * 101,
        "a..b",
        "-rf",
        ".hidden",
        "support:",
        "support:../x",
        "support:" + "v" * 129,
        "support:v1\n",
        "support:v1:v2",
        "@../../etc",
        "@ABCDEF",
        "@" + "a" * 65,
        "",
        "a" * 1_000_000,
        "-".join("a" * 500_000),
    ],
)
def test_hostile_names(text):
    with pytest.raises(UsageError) as caught:
        parse_reference(text)
    assert len(caught.value.render()) < 1000
    assert not set(caught.value.render()) & set("\x1b\u202e")


def test_a_base_s_files_stay_in_its_folder(store):
    base = store.find_base(make.IDENTITY_OF_BASE)
    folder = base_directory(store, base)
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("text", ["a\x7fb", "a\x1bb", "a\u202eb", "a" * 501, "a\tb", "a\nb"])
@pytest.mark.parametrize("escaped", [True, False])
def test_a_text_on_one_line_however_it_is_written(store, text, escaped):
    data = json.dumps(LAYER | {"author": text}, ensure_ascii=escaped).encode()
    with pytest.raises(StoreError, match="author has"):
        found = put_layer(store, data)
        store.config(store.manifest(found.digest), LayerConfig)
