"""GGUF exports, loaded by llama.cpp itself. Pico models of every family that is written."""

import json
import sys

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from lamina.core.errors import CheckError, LayerError, MissingPartError, UsageError
from lamina.core.report import Silent
from lamina.data.example import Message, ToolCall
from lamina.export import gguf_family, gguf_types, gguf_vocab, llama_cpp
from lamina.export.likelihood import LIMITS
from lamina.flows import to_llama
from lamina.flows.adapters import export
from lamina.flows.bases import pull
from lamina.lowrank.maths import Factors
from lamina.stack.compile import base_format
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from lamina.tokens.render import adapt
from tests.pico import pico_base
from tests.stacks import BASE, put_layer, put_stack, random_factors

pytestmark = pytest.mark.slow  # many files of many kinds

THETA = {"rope_theta": 1e4, "rope_type": "default"}
CASES = {
    "llama": {},
    "llama-untied-biased": {"tied": False, "attention_bias": True, "mlp_bias": True},
    "llama-3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "llama-linear": {
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    },
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "gemma3_text": {
        "query_pre_attn_scalar": 32,
        "sliding_window": 16,
        "layers": 7,
        "rope_parameters": {
            "full_attention": THETA | {"rope_theta": 1e6},
            "sliding_attention": THETA,
        },
    },
}
TEXT = (
    "Compute 12*345 - 67, step by step.\n\n\n  def f(x):\n\treturn x+1   # ünïcödé 你好 🙂 "
    "I'll we've <b>it</b>   \r\n end"
)


def put_base(store: Store, root, case: str):
    """A pico base whose norms and biases are no plain ones and zeros."""
    options = {"layers": 2} | CASES[case]
    family = case.partition("-")[0]
    source = pico_base(root / "source", family=family, hidden=128, **options)
    weights = load_file(source / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    for name in sorted(weights):
        if weights[name].ndim == 1:
            weights[name] += torch.randn(weights[name].shape, generator=generator) * 0.3
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    pull(store, str(source), BASE, Silent())


@pytest.fixture(scope="module", params=CASES)
def family_store(request, tmp_path_factory) -> Store:
    root = tmp_path_factory.mktemp("family")
    store = Store.open(root / "store")
    put_base(store, root, request.param)
    put_stack(store, "s", 3)
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    root = tmp_path_factory.mktemp("llama")
    store = Store.open(root / "store")
    put_base(store, root, "llama")
    put_stack(store, "s", 3)
    return store


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


@pytest.mark.parametrize("precision", ["f32", "f16", "q8_0", "q4_k"])
def test_llama_cpp_loads_the_same_model(family_store, tmp_path, precision):
    result = export(family_store, "s", tmp_path / "out", "gguf", Silent(), precision=precision)
    parity = result["parity"]
    assert parity["ok"] is True
    assert parity["tokens"] == "identical"
    assert 0 < parity["mean"] <= parity["value"] <= LIMITS[precision].worst
    certificate = json.loads((tmp_path / "out" / "lamina.json").read_text())
    assert certificate["parity"] == parity
    assert certificate["stack"] == resolve(family_store, "s").digest
    reader = gguf.GGUFReader(tmp_path / "out" / f"model-{precision}.gguf")
    kinds = {tensor.tensor_type.name for tensor in reader.tensors}
    expected = {"f32": {"F32"}, "f16": {"F32", "F16"}, "q8_0": {"F32", "Q8_0"},
                "q4_k": {"F32", "Q5_0", "Q8_0", "Q4_K", "Q6_K"}}  # fmt: skip
    assert kinds <= expected[precision]
    assert len(kinds) == len(expected[precision])


def test_one_adapter_over_the_base_is_the_stack(family_store, tmp_path):
    result = export(family_store, "s", tmp_path / "out", "gguf-lora", Silent())
    assert result["parity"]["ok"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "adapter.gguf",
        "lamina.json",
    ]
    reader = gguf.GGUFReader(tmp_path / "out" / "adapter.gguf")
    ranks = {t.name: int(t.shape[1]) for t in reader.tensors if t.name.endswith("lora_a")}
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    assert len(set(ranks.values())) > 1  # not every module is in every layer
    assert alpha == max(ranks.values())


def test_text_and_turns_have_the_same_tokens(family_store, tmp_path):
    export(family_store, "s", tmp_path / "out", "gguf", Silent())
    fmt = base_format(family_store, resolve(family_store, "s"))
    talk = [
        Message(role="system", content=TEXT),
        Message(role="user", content="two colours"),
        Message(role="assistant", content="red 100, blue\n"),
        Message(role="user", content=TEXT),
    ]
    with llama_cpp.loaded(tmp_path / "out" / "model-f16.gguf", context=512) as engine:
        for messages in (talk[:1], talk[1:2], talk):
            found = engine.prompt_ids(*adapt(messages, (), fmt.abilities))
            assert found == fmt.prompt_ids(messages)


TOOLS = (
    "{%- if tools %}{{- '<|im_start|>system\n' }}{%- for tool in tools %}{{- tool | tojson }}"
    "{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content }}"
    "{%- for call in message.tool_calls or [] %}"
    "{{- call.function.name + ' ' }}{{- call.function.arguments | tojson }}{%- endfor %}"
    "{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def test_a_template_with_tools_has_the_same_tokens(tmp_path):
    store = Store.open(tmp_path / "store")
    pull(store, str(pico_base(tmp_path / "source", chat_template=TOOLS)), BASE, Silent())
    stack = resolve(store, BASE)
    fmt = base_format(store, stack)
    assert fmt.abilities.tools
    properties = {"b": {"type": "integer", "description": 'é <"2">'}, "a": {"type": "integer"}}
    tool = json.dumps(
        {
            "name": "add",
            "description": "Adds",
            "parameters": {"type": "object", "properties": properties, "required": ["b"]},
        }
    )
    call = ToolCall(name="add", arguments='{"b": 2, "a": 1}')
    talk = [
        Message(role="user", content="add 1 and 2"),
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content="3", name="add"),
    ]
    job = to_llama.Job(store, stack, tmp_path, [], None)
    to_llama.write_model(job, tmp_path / "m.gguf", "f16", merged=True)
    with llama_cpp.loaded(tmp_path / "m.gguf", context=512) as engine:
        for messages in (talk[:1], talk):
            found = engine.prompt_ids(*adapt(messages, (tool,), fmt.abilities))
            assert found == fmt.prompt_ids(messages, (tool,))


def unpermuted(monkeypatch):
    monkeypatch.setattr(gguf_family, "interleave", lambda rows, heads: rows)


def other_pre(monkeypatch):
    monkeypatch.setattr(gguf_vocab, "_pre", lambda pre: "llama-bpe")


def halved(monkeypatch):
    monkeypatch.setattr(to_llama, "layer_factors", lambda store, layer: {})


@pytest.mark.parametrize("spoil", [unpermuted, halved])
@pytest.mark.parametrize("precision", ["f16", "q8_0"])
def test_another_model_is_refused(store, tmp_path, monkeypatch, spoil, precision):
    spoil(monkeypatch)
    with pytest.raises(CheckError, match="is not the stack it was made from"):
        export(store, "s", tmp_path / "out", "gguf", Silent(), precision=precision)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_without_the_permutation_is_refused(store, tmp_path, monkeypatch):
    write = to_llama.lora_file.write

    def wrong(*args):
        with monkeypatch.context() as inner:
            unpermuted(inner)
            write(*args)

    monkeypatch.setattr(to_llama.lora_file, "write", wrong)
    with pytest.raises(CheckError, match="is not the stack it was made from"):
        export(store, "s", tmp_path / "out", "gguf-lora", Silent())
    assert list(tmp_path.iterdir()) == []


def test_other_tokens_are_refused(store, tmp_path, monkeypatch):
    real = gguf_vocab.GGUFWriter.add_chat_template
    monkeypatch.setattr(
        gguf_vocab.GGUFWriter, "add_chat_template", lambda self, text: real(self, text + " ")
    )
    with pytest.raises(CheckError, match="other tokens"):
        export(store, "s", tmp_path / "out", "gguf", Silent())
    kept = export(store, "s", tmp_path / "out", "gguf", Silent(), accept_loss=True)
    assert kept["parity"]["ok"] is False
    assert kept["parity"]["tokens"] == "differ"


def test_a_loss_is_kept_when_told_and_stated(store, tmp_path, monkeypatch):
    unpermuted(monkeypatch)
    export(store, "s", tmp_path / "out", "gguf", Silent(), accept_loss=True)
    parity = json.loads((tmp_path / "out" / "lamina.json").read_text())["parity"]
    assert parity["ok"] is False
    assert parity["value"] > parity["limit"]


def test_without_llama_cpp_it_says_that_nothing_is_proved(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    heard = Heard()
    result = export(store, "s", tmp_path / "out", "gguf", heard)
    assert result["parity"]["ok"] is None
    assert "pip install 'lamina[gguf]'" in result["parity"]["unproved"]
    assert sum(line.startswith("NOT PROVED") for line in heard.said) == 1
    export(store, "s", tmp_path / "lora", "gguf-lora", heard)
    with pytest.raises(MissingPartError, match="quantiser"):
        export(store, "s", tmp_path / "small", "gguf", heard, precision="q4_k")
    assert not (tmp_path / "small").exists()


def test_what_cannot_be_written_is_refused(store, tmp_path):
    with pytest.raises(UsageError, match="known are f32, f16, q8_0, q4_k"):
        export(store, "s", tmp_path / "out", "gguf", Silent(), precision="q3")
    with pytest.raises(UsageError, match="--precision is for"):
        export(store, "s", tmp_path / "out", "peft", Silent(), precision="f16")
    with pytest.raises(UsageError, match="mamba models are not written"):
        gguf_family.family_of({"model_type": "mamba"})
    with pytest.raises(UsageError, match="'yarn' are not written"):
        gguf_family.family_of({"model_type": "llama", "rope_parameters": {"rope_type": "yarn"}})
    with pytest.raises(UsageError, match="has no name for this tokenizer's way"):
        gguf_vocab._pre({"type": "Whitespace"})
    assert list(tmp_path.iterdir()) == []


def test_a_weight_beyond_float16_is_refused():
    with pytest.raises(LayerError, match="too large for float16"):
        gguf_types.pack(torch.full((2, 32), 1e6), gguf.GGMLQuantizationType.F16)


def test_llama_cpps_quantiser_packs_what_the_gguf_library_reads():
    kind = gguf.GGMLQuantizationType
    rows = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))
    for which, limit in ((kind.Q4_K, 0.1), (kind.Q6_K, 0.03), (kind.Q5_0, 0.06)):
        packed = gguf_types.pack(rows, which)
        found = torch.from_numpy(gguf.quants.dequantize(packed, which).copy())
        assert 0 < (found - rows).square().mean().sqrt() < limit
    ours = gguf_types.pack(rows, kind.Q8_0)
    assert (ours == gguf_types._library()(rows.numpy(), kind.Q8_0)).all()


def test_the_mixture_is_llama_cpps():
    kind = gguf.GGMLQuantizationType
    large = (512, 512)
    found = [gguf_types.type_of("q4_k", f"blk.{i}.ffn_down.weight", large, 16) for i in range(16)]
    assert [i for i, each in enumerate(found) if each == kind.Q6_K] == [0, 1, 4, 7, 10, 13, 14, 15]
    assert gguf_types.type_of("q4_k", "blk.0.attn_q.weight", large, 16) == kind.Q4_K
    assert gguf_types.type_of("q4_k", "token_embd.weight", (9, 576), 16) == kind.Q8_0
    assert gguf_types.type_of("q8_0", "token_embd.weight", (9, 40), 16) == kind.F16


def test_a_damaged_update_of_a_missing_module_is_refused(store, tmp_path):
    factors = random_factors(store, only="layers.0.mlp.up_proj")
    (factor,) = factors.values()
    stray = Factors(factor.a_RI.clone(), factor.b_OR.clone(), factor.scale)
    factors["model.layers.7.mlp.up_proj"] = stray
    layer = put_layer(store, "stray", factors)
    stack = resolve(store, f"@{layer.digest}")
    job = to_llama.Job(store, stack, tmp_path, [], None)
    with pytest.raises(LayerError) as caught:
        to_llama.write_model(job, tmp_path / "m.gguf", "f16", merged=True)
    assert caught.value.faults == ("model.layers.7.mlp.up_proj",)
