"""Questions and rehearsal rows that travel with a layer, as a stranger may write them."""

import pytest

from lamina.core.errors import DataError
from lamina.core.manifests import JSONL_TYPE
from lamina.data.exams import from_jsonl
from lamina.flows.rehearsal import FILE, of_layers
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from tests.store import make

ROWS = {
    "no JSON": b"\x80\x04\x95",
    "no object": b"3",
    "depth": b'{"messages":' + b"[" * 100_000,
    "depth that is closed": b'{"text":' + b"[" * 80 + b"]" * 80 + b"}",
    "a key twice": b'{"text":"a","text":"b"}',
    "a number that does not fit": b'{"text":"a","answer_index":1e999}',
    "a number of very many digits": b'{"text":"a","answer_index":' + b"9" * 5000 + b"}",
    "NaN": b'{"text":NaN}',
    "UTF-16": '{"text":"a"}'.encode("utf-16"),
    "roles that nobody knows": b'{"messages":[{"role":"root","content":"x"}]}',
    "a text that is none": b'{"text":[1]}',
}


@pytest.mark.parametrize("name", ROWS)
def test_hostile_rows(tmp_path, name):
    store = Store.open(tmp_path / "store")
    make.put_base(store)
    layer = make.put_layer(store, "one")
    manifest = store.manifest(layer.digest)
    rows = store.put_bytes(ROWS[name], JSONL_TYPE, title=FILE)
    evil = manifest.model_copy(update={"layers": (*manifest.layers, rows)})
    found = resolve(store, store.add_root(store.put_manifest(evil)).digest)
    with pytest.raises(DataError, match="the rehearsal set of layer one cannot be read"):
        of_layers(store, found.layers)


@pytest.mark.parametrize("name", ROWS)
def test_hostile_questions(name):
    with pytest.raises(DataError, match="cannot be read"):
        from_jsonl(ROWS[name])
