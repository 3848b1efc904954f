"""Loading: frozen, faithful to the files, without network, pickles or foreign code."""

import json
import shutil
import socket

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from lamina.bases.load import load, load_tokenizer
from lamina.bases.quiet import quiet
from lamina.core.errors import BaseError
from tests.pico import FAMILIES, pico_base


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("pico")
    return {family: pico_base(root / family, family=family) for family in FAMILIES}


@pytest.fixture
def source(bases, tmp_path):
    return shutil.copytree(bases["llama"], tmp_path / "source")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_family_loads_frozen_and_in_the_dtype(bases, family, dtype):
    loaded = load(bases[family], dtype=dtype)
    assert not loaded.model.training
    assert loaded.model.config._attn_implementation == "sdpa"
    parameters = dict(loaded.model.named_parameters())
    assert all(p.dtype == dtype and not p.requires_grad for p in parameters.values())
    stored = load_file(bases[family] / "model.safetensors")
    assert all(torch.equal(parameters[name], t.to(dtype)) for name, t in stored.items())
    assert loaded.config["model_type"] == family
    ids = loaded.tokenizer("Paris is", return_tensors="pt").input_ids
    assert loaded.model(input_ids=ids).logits.shape == (1, ids.shape[1], 384)


def test_writing_into_a_loaded_model_leaves_the_file_alone(source):
    before = (source / "model.safetensors").read_bytes()
    loaded = load(source, dtype=torch.float32)
    for parameter in loaded.model.parameters():
        parameter.data.fill_(7)
    del loaded
    assert (source / "model.safetensors").read_bytes() == before


def test_no_connection_is_tried(source, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("tried to connect")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    (source / "generation_config.json").unlink()
    assert load(source, dtype=torch.float32).model.config.model_type == "llama"


def test_a_missing_or_misshapen_tensor_is_refused(source):
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.norm.weight"] = torch.ones(63)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseError) as caught:
        load(source, dtype=torch.float32)
    said = str(caught.value)
    assert "model.layers.1.mlp.up_proj.weight: missing" in said
    assert "model.norm.weight" in said


def test_foreign_code_is_never_run(source, tmp_path):
    ran = tmp_path / "ran"
    (source / "modeling_evil.py").write_text(f"open({str(ran)!r}, 'w')")
    config = json.loads((source / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil"}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseError, match="never run"):
        load(source, dtype=torch.float32)
    assert not ran.exists()


@pytest.mark.parametrize("size", [0, 7, 1000, 300_000])
def test_a_truncated_file_is_refused(source, size):
    data = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(data[:size])
    with pytest.raises(BaseError, match="cannot be loaded"):
        load(source, dtype=torch.float32)


def test_a_pickle_is_never_opened(source):
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(BaseError, match="has no model"):
        load(source, dtype=torch.float32)


def test_missing_files_are_named(source):
    (source / "tokenizer.json").unlink()
    with pytest.raises(BaseError, match=r"no tokenizer\.json"):
        load_tokenizer(source)
    (source / "config.json").unlink()
    with pytest.raises(BaseError, match=r"no config\.json"):
        load(source, dtype=torch.float32)


def test_a_damaged_tokenizer_is_refused(source):
    (source / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(BaseError, match="cannot be loaded"):
        load_tokenizer(source)


@settings(max_examples=50, deadline=None)
@given(text=st.text())
def test_any_text_comes_back_from_the_pico_tokenizer(bases, text):
    for family in ("llama", "qwen2"):
        tokenizer = load_tokenizer(bases[family])
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def _fail_quietly(seen):
    with quiet(swallow_stderr=True):
        seen.append(logging.is_progress_bar_enabled())
        raise KeyError


def test_quiet_puts_every_switch_back():
    before, seen = (logging.get_verbosity(), logging.is_progress_bar_enabled()), []
    with pytest.raises(KeyError):
        _fail_quietly(seen)
    assert seen == [False]
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
