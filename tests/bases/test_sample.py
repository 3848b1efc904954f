"""Batched, streamed and transformers' own generation agree token by token."""

import pytest
import torch

from lamina.bases.load import load
from lamina.bases.sample import Stream, generate
from lamina.bases.sampling import Sampling
from tests.pico import pico_base

STOP = (2,)
PROMPTS = [list(range(10, 10 + n)) for n in (3, 17, 9, 30, 1)]


@pytest.fixture(scope="module", params=["llama", "gemma3_text", "qwen2"])
def model(request, tmp_path_factory):
    directory = pico_base(tmp_path_factory.mktemp("pico") / request.param, family=request.param)
    return load(directory, dtype=torch.float32).model


def test_a_rows_answer_does_not_depend_on_its_batch(model):
    alone = [generate(model, [p], max_new_tokens=20, stop_ids=STOP)[0] for p in PROMPTS]
    told = []
    together = generate(model, PROMPTS, max_new_tokens=20, stop_ids=STOP, progress=told.append)
    assert together == alone
    assert told[-1] == len(PROMPTS)


def test_equals_transformers_generate(model):
    ours = generate(model, PROMPTS, max_new_tokens=20, stop_ids=STOP)
    for prompt, answer in zip(PROMPTS, ours, strict=True):
        out = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=3,
        )
        theirs = out[0][len(prompt) :].tolist()
        assert answer == [t for t in theirs if t != 2]


def test_stream_reuses_what_prompts_share(model):
    stream = Stream(model)
    expected = generate(model, PROMPTS, max_new_tokens=12, stop_ids=STOP)
    for prompt, answer in zip(PROMPTS, expected, strict=True):
        got = list(stream.tokens(prompt, max_new_tokens=12, stop_ids=STOP, sampling=Sampling()))
        assert got == answer
    longer = PROMPTS[3] + expected[3][:5] + [40, 41]
    again = list(stream.tokens(longer, max_new_tokens=8, stop_ids=STOP, sampling=Sampling()))
    assert again == generate(model, [longer], max_new_tokens=8, stop_ids=STOP)[0]


def test_what_a_row_draws_depends_on_its_place_alone(model):
    sampling = Sampling(temperature=1.0, seed=5)
    options = {"max_new_tokens": 12, "stop_ids": STOP, "sampling": sampling}
    whole = generate(model, PROMPTS, **options)
    assert generate(model, PROMPTS[:2], **options) == whole[:2]
    same = generate(model, [PROMPTS[1]] * 3, **options)
    assert len({tuple(answer) for answer in same}) == 3
