"""Which decoder a base gets, and that each says what exams hear."""

import queue
from functools import partial

import pytest
import torch

from lamina.bases.sample import generate
from lamina.core.errors import UsageError
from lamina.core.report import Silent
from lamina.flows.bases import pull
from lamina.serve import native
from lamina.serve.engine import Engine
from lamina.serve.generic import GenericDecoder
from lamina.serve.open import decoder_of
from lamina.serve.request import Finished, Request
from lamina.stack.compile import compile_stack, layer_factors
from lamina.stack.resolve import over_base, resolve
from tests.serve.bases import VOCAB, tokens
from tests.stacks import BASE, new_store, put_stack

NEW = 12


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    made = new_store(tmp_path_factory.mktemp("open") / "home", hidden=128, vocab=VOCAB)
    put_stack(made, "two", 2)
    return made


def said(store, stack, prompts, dtype):
    """What an engine in `dtype` answers to all prompts at once."""
    base = over_base(store, stack.base, label="the base")
    compiled = compile_stack(store, base, dtype=dtype)
    read = partial(layer_factors, store)
    engine = Engine(stack.base.digest, decoder_of(compiled), read, context=512)
    told, ended = [[] for _ in prompts], queue.Queue()
    for row, prompt in enumerate(prompts):

        def hear(event, row=row):
            ended.put(event) if isinstance(event, Finished) else told[row].append(event.id)

        engine.submit(Request(stack, tuple(prompt), NEW), hear)
    for _ in prompts:
        assert ended.get(timeout=60).reason == "length"
    assert engine.drain(5)
    return told


def examined(store, stack, prompts):
    """What exams hear, in float32: layers folded in."""
    model = compile_stack(store, stack, dtype=torch.float32).model
    return generate(model, prompts, max_new_tokens=NEW, stop_ids=())


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_over_a_quantised_base_answers_are_those_of_exams(store, kind):
    pull(store, BASE, kind, Silent(), quantise=kind)
    stack = over_base(store, store.bases()[kind], label=kind)
    assert "packed" in native.why_not(compile_stack(store, stack).model)
    prompts = [tokens(seed, 9 + 5 * seed) for seed in range(4)]
    assert said(store, stack, prompts, torch.float32) == examined(store, stack, prompts)
    with pytest.raises(UsageError, match="8 bits need the native kernels"):
        decoder_of(compile_stack(store, stack), layer_bits=8)


def test_weights_that_stay_in_the_store_are_served(store):
    stack = resolve(store, BASE)
    compiled = compile_stack(store, stack, stream=True)
    assert "not in memory" in native.why_not(compiled.model)
    assert isinstance(decoder_of(compiled), GenericDecoder)


@pytest.mark.parametrize("name", ["two", BASE])
def test_what_was_examined_is_what_is_served(store, name):
    """In float32 to the token, though exams fold layers in and the engine keeps them apart."""
    stack = resolve(store, name)
    prompts = [tokens(seed, 9 + 5 * seed) for seed in range(6)]
    expected = examined(store, stack, prompts)
    assert said(store, stack, prompts, torch.float32) == expected
    firsts = [answer[0] for answer in said(store, stack, prompts, torch.bfloat16)]
    assert sum(a == b[0] for a, b in zip(firsts, expected, strict=True)) >= 5  # near ties remain
