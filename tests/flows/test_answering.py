"""Exams' answers come from the engine that serves; the model they ask stays as it was."""

import pytest
import torch

from lamina.bases.sample import generate
from lamina.flows import answering
from lamina.serve import native
from lamina.stack.compile import compile_stack
from lamina.stack.resolve import resolve
from tests.serve.bases import VOCAB, own_logits, tokens
from tests.stacks import new_store, put_stack

NEW = 10
PROMPTS = [tokens(seed, 9 + 3 * seed) for seed in range(6)]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    store = new_store(tmp_path_factory.mktemp("asked") / "home", hidden=128, vocab=VOCAB)
    put_stack(store, "two", 2)
    made = compile_stack(store, resolve(store, "two"))
    if reason := native.why_not(made.model):
        pytest.skip(reason)
    return made


def test_answers_are_in_order_and_those_of_the_stack(compiled):
    before = {name: p.clone() for name, p in compiled.model.named_parameters()}
    told = []
    found = answering.answers(compiled, PROMPTS, max_new_tokens=NEW, progress=told.append)
    assert told == list(range(1, len(PROMPTS) + 1))
    for prompt, answer in zip(PROMPTS, found, strict=True):
        logits = own_logits(compiled.model, prompt, [])
        first = answer[0] if answer else compiled.format.stop_ids[0]
        assert logits.max() - logits[first] < 0.1  # it, or one that rounding cannot tell from it
    for name, parameter in compiled.model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_again_says_the_same_and_alone_too(compiled):
    def ask(prompts):
        return answering.answers(compiled, prompts, max_new_tokens=NEW, progress=lambda done: None)

    assert ask(PROMPTS) == ask(PROMPTS) == [ask([prompt])[0] for prompt in PROMPTS]
    assert ask([]) == []


def test_where_memory_is_short_the_model_answers_itself(compiled, monkeypatch):
    monkeypatch.setattr(answering, "free", lambda: 1000)
    monkeypatch.setattr(answering, "Engine", None)  # must not be called
    found = answering.answers(compiled, PROMPTS, max_new_tokens=NEW, progress=lambda done: None)
    stop_ids = compiled.format.stop_ids
    assert found == generate(compiled.model, PROMPTS, max_new_tokens=NEW, stop_ids=stop_ids)
