"""Stacks handed to other engines."""

import json
import sys
import urllib.request

import pytest
import torch

from lamina.core.errors import UsageError
from lamina.core.report import Silent
from lamina.export.likelihood import LIMITS
from lamina.export.parity import logits_of
from lamina.flows import to_llama
from lamina.flows.bases import pull
from lamina.flows.handover import (
    VLLM_RANKS,
    Adapter,
    GgufHandover,
    Handover,
    llamacpp_choice,
    llamacpp_command,
    prepare,
    prepare_gguf,
    vllm_command,
)
from lamina.flows.to_python import load_peft
from lamina.stack.compile import compile_stack
from lamina.stack.resolve import resolve
from tests.flows.world import Said
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


@pytest.fixture
def handed(store):
    """Two stacks for llama.cpp; their base, which is named too, is no adapter."""
    return prepare_gguf(store, ["second", "pico", "first"], None, Silent())


def test_llamacpp_gets_the_base_once_and_a_lora_for_each_stack(store, handed):
    assert handed.base_name == "pico"
    assert [name for name, _ in handed.adapters] == ["second", "first"]
    folders = [handed.base.parent, *(file.parent for _, file in handed.adapters)]
    for folder, name in zip(folders, ["pico", "second", "first"], strict=True):
        certificate = json.loads((folder / "lamina.json").read_text())
        assert certificate["stack"] == resolve(store, name).digest
        assert certificate["parity"]["ok"] is True
    files = [handed.base, *(file for _, file in handed.adapters)]
    before = [file.stat().st_mtime_ns for file in files]
    assert prepare_gguf(store, ["second", "first"], None, Silent()) == handed
    assert [file.stat().st_mtime_ns for file in files] == before


def test_the_base_is_written_once(store, monkeypatch):
    written = []
    write = to_llama.gguf_file.write
    monkeypatch.setattr(
        to_llama.gguf_file, "write", lambda *args: (written.append(args[2].name), write(*args))
    )
    prepare_gguf(store, ["second", "first"], None, Silent())
    assert written == ["model-f16.gguf"]


def test_ids_mean_the_stacks_that_were_said(store, handed):
    """llama.cpp itself, given all files in the command's order, answers as each stack does."""
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(handed.base), 512, 1
    params.warmup, params.verbosity, params.n_gpu_layers = False, 0, 0
    params.lora_init_without_apply = True
    loras = []
    for _, file in handed.adapters:
        info = xllamacpp.CommonAdapterLoraInfo()
        info.path, info.scale = str(file), 1.0
        loras.append(info)
    params.lora_adapters = loras
    server = xllamacpp.Server(params)
    ours = {}
    for name in ("pico", "first", "second"):
        model = compile_stack(store, resolve(store, name), dtype=torch.float32).model
        ours[name] = logits_of(model, PROMPTS)[0][-1].log_softmax(dim=-1)
    for chosen, name in [(0, "second"), (None, "pico"), (1, "first"), (0, "second")]:
        body = {"prompt": PROMPTS[0], "n_predict": 1, "n_probs": 50, "temperature": 0.0,
                "lora": llamacpp_choice(handed, chosen)}  # fmt: skip
        theirs = _likely(server.listening_address, body)
        far = {
            other: max(abs(log - logs_V[token].item()) for token, log in theirs.items())
            for other, logs_V in ours.items()
        }
        assert far[name] < LIMITS["f16"].worst
        assert far[name] < min(far[other] for other in far if other != name) / 10, far


def _likely(address: str, body: dict) -> dict[int, float]:
    """Log-probabilities of the likeliest next tokens."""
    request = urllib.request.Request(
        f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        (found,) = json.load(answer)["completion_probabilities"]
    return {token["id"]: token["logprob"] for token in found["top_logprobs"]}


def test_what_nothing_proved_is_said_again_and_proved_when_it_can_be(store, monkeypatch):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "xllamacpp", None)
        for _ in range(2):
            said = Said()
            given = prepare_gguf(store, ["second"], None, said)
            assert sum(line.startswith("NOT PROVED") for line in said.sentences) == 2
    pytest.importorskip("xllamacpp")
    said = Said()
    assert prepare_gguf(store, ["second"], None, said) == given
    assert not any(line.startswith("NOT PROVED") for line in said.sentences)


def test_llamacpp_gets_the_flags_it_needs(tmp_path):
    plain, odd = tmp_path / "a.gguf", tmp_path / 'x,"y' / "b.gguf"
    given = GgufHandover("pico", tmp_path / "m.gguf", (("a", plain), ("b:v2", odd)))
    command = llamacpp_command(given, "127.0.0.1", 8080)
    assert command == [
        *("llama-server", "-m", str(tmp_path / "m.gguf"), "--alias", "pico", "--jinja"),
        *("--host", "127.0.0.1", "--port", "8080"),
        *("--lora", f'{plain},"{tmp_path}/x,""y/b.gguf"', "--lora-init-without-apply"),
    ]
    assert llamacpp_choice(given, 1) == [{"id": 0, "scale": 0}, {"id": 1, "scale": 1}]
    bare = llamacpp_command(GgufHandover("pico", tmp_path, ()), "127.0.0.1", 8080)
    assert "--lora" not in bare


def test_several_bases_or_none_are_refused(store, tmp_path):
    pull(store, str(pico_base(tmp_path / "x", hidden=32, layers=1, seed=9)), "other", Silent())
    with pytest.raises(UsageError, match="second on pico"):
        prepare(store, ["second", "other"], None, Silent())
    with pytest.raises(UsageError, match="not all of these stand on other"):
        prepare(store, ["second"], "other", Silent())
    assert prepare(store, [], "other", Silent()).adapters == ()
