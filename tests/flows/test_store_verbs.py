"""Talking, listing, removing: the verbs that look at what is there."""

import json

import pytest

from lamina.core.errors import CorruptBlobError, UnknownNameError, UsageError
from lamina.core.report import Silent
from lamina.data.example import Message
from lamina.flows import bases
from lamina.flows.inventory import describe, history, inventory, render, render_history
from lamina.flows.talk import Conversation
from lamina.stack.compile import compile_stack
from lamina.stack.resolve import resolve
from tests.flows.world import learned
from tests.pico import pico_base
from tests.stacks import damage


def roles(conversation):
    return [message.role for message in conversation.history]


def test_answers_stream_and_are_remembered(store):
    talk = Conversation(store, "first", system="be short", max_tokens=12)
    pieces = list(talk.ask("which colour has number 3?"))
    assert len(pieces) > 1
    assert roles(talk) == ["system", "user", "assistant"]
    assert talk.history[-1].content == "".join(pieces)
    list(talk.ask("and 4?"))
    assert roles(talk) == ["system", "user", "assistant", "user", "assistant"]
    talk.reset()
    assert talk.history == (Message(role="system", content="be short"),)


def test_greedy_is_the_same_whether_or_not_something_was_cached(store):
    talk = Conversation(store, "first", max_tokens=8)
    one = "".join(talk.ask("which colour has number 3?"))
    talk.reset()
    assert "".join(talk.ask("which colour has number 3?")) == one
    fresh = Conversation(store, "first", max_tokens=8)
    assert "".join(fresh.ask("which colour has number 3?")) == one


def test_the_seed_decides_a_draw(store):
    def said(seed):
        talk = Conversation(store, "first", max_tokens=16, temperature=2.0, seed=seed)
        return "".join(talk.ask("hello"))

    assert said(1) == said(1) != said(2)


def test_another_stack_goes_on_with_the_history(store):
    talk = Conversation(store, "first", max_tokens=6)
    list(talk.ask("which colour has number 3?"))
    before = talk.history
    assert talk.digest == resolve(store, "first").digest
    talk.switch("second")
    assert talk.history == before
    assert talk.digest == resolve(store, "second").digest
    assert "".join(talk.ask("and 5?")) == talk.history[-1].content
    assert talk.history[:2] == before
    with pytest.raises(UnknownNameError):
        talk.switch("nobody")
    assert talk.digest == resolve(store, "second").digest


def test_stopping_early_keeps_what_was_said(store):
    talk = Conversation(store, "first", max_tokens=64)
    stream = talk.ask("which colour has number 3?")
    piece = next(stream)
    stream.close()
    assert roles(talk) == ["user", "assistant"]
    assert talk.history[-1].content == piece
    rest = "".join(talk.ask("go on"))
    again = Conversation(store, "first", max_tokens=64)
    again.history = talk.history[:2]
    assert "".join(again.ask("go on")) == rest  # the cache of the stopped turn misleads nobody


def test_a_turn_that_cannot_be_asked_is_not_in_the_history(store):
    talk = Conversation(store, "first", max_tokens=4)
    list(talk.ask("hello"))
    before = talk.history

    def refuse(*_):
        raise ValueError("too long")

    talk._compiled.format.prompt_ids = refuse
    with pytest.raises(ValueError, match="too long"):
        list(talk.ask("hello"))
    assert talk.history == before


# -- what is there ---------------------------------------------------------------------------------


def test_inventory(store):
    found = inventory(store)
    assert [base["name"] for base in found["bases"]] == ["pico"]
    assert [(s["name"], s["version"], s["versions"]) for s in found["stacks"]] == [
        ("first", "v1", 1),
        ("second", "v1", 1),
    ]
    assert found["stacks"][1]["layers"] == ["first", "second"]
    assert found["stacks"][1]["base"] == found["bases"][0]["digest"]
    json.dumps(found)


def test_describe_a_stack_a_layer_and_a_base(store):
    stack = describe(store, "second")
    assert stack["kind"] == "stack"
    assert [layer["name"] for layer in stack["layers"]] == ["first", "second"]
    assert len(stack["scores"]) == 2
    text = render(stack)
    assert text.index("layer second") < text.index("layer first")  # the top first
    assert "learned from" in text
    assert "exam first/loss" in text
    layer = describe(store, "@" + stack["layers"][0]["layer"][7:19])
    assert (layer["kind"], layer["name"], layer["author"]) == ("layer", "first", "ann")
    assert "by ann" in render(layer)
    base = describe(store, "pico")
    assert (base["kind"], base["family"]) == ("base", "llama")
    assert "model.safetensors" in render(base)
    assert describe(store, base["manifest"])["name"] == "pico"
    with pytest.raises(UnknownNameError):
        describe(store, "nobody")
    json.dumps([stack, layer, base])


def test_history_is_newest_first(store, tmp_path):
    learned(store, tmp_path, "first", steps=16)
    moves = history(store, "first")
    assert [move["version"] for move in moves] == [2, 1]
    assert moves[0]["previous"] == moves[1]["stack"]
    assert {move["name"] for move in history(store, None)} == {"first", "second"}
    text = render_history(moves)
    assert text.startswith("first:v2")
    assert "by ann  gate passed" in text
    with pytest.raises(UnknownNameError):
        history(store, "nobody")


# -- bases and removing ----------------------------------------------------------------------------


def test_a_base_that_carries_stacks_stays(store):
    with pytest.raises(UsageError) as caught:
        bases.remove(store, "pico")
    assert "second:latest" in caught.value.faults
    assert "pico" in store.bases()


def test_removed_names_free_their_layers(store):
    first, second = resolve(store, "second").layers
    weights = [layer.manifest.blob("adapter_model.safetensors").digest for layer in (first, second)]
    store.untag_all("second")
    store.collect(grace_seconds=0)
    assert [store.has(digest) for digest in weights] == [True, False]
    compile_stack(store, resolve(store, "first"))
    store.untag_all("first")
    bases.remove(store, "pico")
    store.collect(grace_seconds=0)
    assert list(store.blobs_dir.iterdir()) == []
    assert store.verify().clean


def test_pulling_again(store, tmp_path):
    known = store.bases()["pico"]
    source = pico_base(tmp_path / "again", hidden=32, layers=1)
    pulled = bases.pull(store, str(source), "other", Silent())
    assert not pulled.new
    assert pulled.descriptor.digest == known.digest
    assert sorted(store.bases()) == ["other", "pico"]
    bases.remove(store, "other")
    assert bases.ensure(store, "pico", Silent()).descriptor.digest == known.digest
    with pytest.raises(UsageError, match="stack's name"):
        bases.pull(store, str(source), "first", Silent())
    assert not list((store.root / "work").glob("*"))


def test_pulling_again_heals_a_damaged_base(store, tmp_path):
    blob = store.manifest(store.bases()["pico"].digest).blob("model.safetensors")
    damage(store.root / "blobs" / "sha256" / blob.digest[7:])
    with pytest.raises(CorruptBlobError, match="pull it"):
        compile_stack(store, resolve(store, "first"))
    source = pico_base(tmp_path / "again", hidden=32, layers=1)
    assert not bases.pull(store, str(source), "pico", Silent()).new
    compile_stack(store, resolve(store, "first"))
    assert store.verify().clean
