"""A base that is left in the store: the same layers, to the digest, and a cost that is said."""

import pytest
import torch

from lamina.bases import load as loading
from lamina.bases.streamed import StreamedLinear
from lamina.core.errors import BaseError
from lamina.flows import bases, learn
from lamina.flows.examine import examine_stack
from lamina.flows.talk import Conversation
from lamina.stack.compile import compile_stack
from lamina.stack.resolve import resolve
from tests.flows.world import Said, learned, request, write_rows
from tests.stacks import BASE, new_store

pytestmark = pytest.mark.slow  # whole verbs, again and again

ANYHOW = {"accept_regression": "only its way is tested"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two stores with the same two layers over the same base; one leaves it in the store."""
    found = {}
    for stream in (False, True):
        root = tmp_path_factory.mktemp(f"stream-{stream}")
        store = new_store(root / "store", layers=2, dtype=torch.bfloat16)
        learned(store, root, "first", steps=8, stream=stream, **ANYHOW)
        learned(store, root, "second", "first", word="animal", stream=stream, **ANYHOW)
        found[stream] = store
    return found


@pytest.fixture
def small(monkeypatch):
    """Memory that no base fits into."""
    monkeypatch.setattr(loading, "free", lambda: 1000)


def test_the_layers_have_the_digests_of_those_trained_in_memory(trained):
    for name in ("first", "second"):
        streamed, resident = (resolve(trained[stream], name) for stream in (True, False))
        assert streamed.digest == resident.digest
        assert [a.digest for a in streamed.layers] == [b.digest for b in resident.layers]


def test_examinations_and_answers_are_the_same(trained, small, monkeypatch):
    store = trained[True]
    compiled = compile_stack(store, resolve(store, "second"))
    assert all(isinstance(linear, StreamedLinear) for linear in compiled.linears.values())
    question = "which animal has number 3?"

    def asked():
        scores = examine_stack(store, "second", Said(), fresh=True).to_json()["scores"]
        return scores, "".join(Conversation(store, "second", max_tokens=6).ask(question))

    streamed = asked()
    monkeypatch.undo()
    compiled = compile_stack(store, resolve(store, "second"))
    assert not any(isinstance(linear, StreamedLinear) for linear in compiled.linears.values())
    assert streamed == asked()


def trained_on_metals(store, folder, name, said, **options):
    data = write_rows(folder / f"{name}.jsonl", word="metal")
    return learn.execute(
        store, learn.prepare(store, request(data, name, "second", **options, **ANYHOW), said), said
    )


def test_the_cost_is_said_before_the_first_step(trained, tmp_path):
    said, quiet = Said(), Said()
    trained_on_metals(trained[True], tmp_path, "third", said, stream=True)
    sentence = next(text for text in said.sentences if "stay in the store" in text)
    assert "a step reads" in sentence
    assert "GB/s (measured now)" in sentence
    trained_on_metals(trained[True], tmp_path, "fourth", quiet)
    assert not any("stay in the store" in text for text in quiet.sentences)


def test_a_base_that_does_not_fit_is_left_in_the_store_unasked(trained, tmp_path, monkeypatch):
    expected = trained_on_metals(trained[False], tmp_path, "here", Said())
    monkeypatch.setattr(loading, "free", lambda: 1000)
    said = Said()
    learn_there = trained_on_metals(trained[True], tmp_path, "here", said)
    assert any("stay in the store" in text for text in said.sentences)
    assert learn_there.layer.digest == expected.layer.digest


def test_packed_weights_are_loaded_whole(trained):
    store = trained[True]
    bases.pull(store, BASE, "packed", Said(), quantise="int8")
    with pytest.raises(BaseError, match="leave out --stream"):
        compile_stack(store, resolve(store, "packed"), stream=True)
