"""Stacks handed to other engines."""

import pytest
import torch

from lamina.core.errors import UsageError
from lamina.core.report import Silent
from lamina.export.parity import logits_of
from lamina.flows.adapters import load_peft
from lamina.flows.bases import pull
from lamina.flows.handover import (
    VLLM_RANKS,
    Adapter,
    Handover,
    llamacpp_steps,
    prepare,
    vllm_command,
)
from lamina.stack.compile import compile_stack
from lamina.stack.resolve import resolve
from tests.pico import pico_base
from tests.stacks import base_model
from tests.tolerance import TOLERANCE

PROMPTS = [list(range(8, 30))]


def test_each_stack_becomes_an_adapter_over_the_base(store):
    given = prepare(store, [], None, Silent())
    assert given.base_name == "pico"
    assert (given.base / "config.json").exists()
    assert [adapter.name for adapter in given.adapters] == ["first", "second"]
    assert [adapter.rank for adapter in given.adapters] == [2, 4]
    for adapter in given.adapters:
        theirs = load_peft(base_model(store), adapter.directory)
        ours = compile_stack(store, resolve(store, adapter.name), dtype=torch.float32).model
        for left, right in zip(logits_of(ours, PROMPTS), logits_of(theirs, PROMPTS), strict=True):
            torch.testing.assert_close(left, right, **TOLERANCE[torch.float32])


def test_what_was_exported_is_kept(store):
    first = prepare(store, ["second"], None, Silent()).adapters[0].directory
    before = first.stat().st_mtime_ns
    again = prepare(store, ["second"], None, Silent()).adapters[0].directory
    assert (again, again.stat().st_mtime_ns) == (first, before)


def test_vllm_gets_the_flags_it_needs(tmp_path):
    adapters = (Adapter("a", tmp_path / "a", 20), Adapter("b:v2", tmp_path / "b", 4))
    command = vllm_command(Handover("pico", tmp_path, adapters), "127.0.0.1", 8080)
    assert command[:3] == ["vllm", "serve", str(tmp_path)]
    flags = " ".join(command)
    assert "--served-model-name pico" in flags
    assert "--enable-lora --max-lora-rank 32 --max-loras 2" in flags
    assert f"--lora-modules a={tmp_path / 'a'} b:v2={tmp_path / 'b'}" in flags
    bare = vllm_command(Handover("pico", tmp_path, ()), "127.0.0.1", 8080)
    assert "--enable-lora" not in bare


def test_vllm_takes_only_some_ranks(tmp_path):
    wide = Adapter("a", tmp_path, VLLM_RANKS[-1] + 1)
    with pytest.raises(UsageError, match="lamina squash a --rank 512"):
        vllm_command(Handover("pico", tmp_path, (wide,)), "127.0.0.1", 8080)


def test_llamacpp_is_told_step_by_step(store):
    steps = llamacpp_steps(prepare(store, ["second"], None, Silent()), "127.0.0.1", 8080)
    assert "convert_hf_to_gguf.py" in steps[1]
    assert "convert_lora_to_gguf.py" in steps[2]
    assert steps[-1].endswith("--lora second.gguf")


def test_several_bases_or_none_are_refused(store, tmp_path):
    pull(store, str(pico_base(tmp_path / "x", hidden=32, layers=1, seed=9)), "other", Silent())
    with pytest.raises(UsageError, match="second on pico"):
        prepare(store, ["second", "other"], None, Silent())
    with pytest.raises(UsageError, match="not all of these stand on other"):
        prepare(store, ["second"], "other", Silent())
    assert prepare(store, [], "other", Silent()).adapters == ()
