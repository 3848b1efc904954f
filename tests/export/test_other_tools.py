"""Exports for tools that do not run here: their files, and what is checked of them."""

import json

import pytest
from peft import PeftModel
from safetensors.torch import load_file, save_file

from lamina.core.errors import CheckError, LayerError, UsageError
from lamina.core.report import Silent
from lamina.data.example import Message
from lamina.export import mlx, vllm
from lamina.export.ollama import Shape, modelfile, shape_of
from lamina.export.parity import logits_of
from lamina.flows.adapters import export
from lamina.lowrank import codec
from lamina.stack.compile import base_format, compile_stack
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from lamina.tokens.template import ChatFormat
from tests.pico import CHATML, pico_base
from tests.stacks import base_model, new_store, put_stack

PROMPTS = [list(range(8, 30)), [11, 250, 9, 9, 70]]
DEFAULT_SYSTEM = (
    "{%- if messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\nYou are pico, a model<|im_end|>\n' }}{%- endif %}" + CHATML
)
INST = (
    "{%- for message in messages %}{%- if message['role'] == 'assistant' %}"
    "{{- message['content'] + '<|im_end|>' }}{%- else %}"
    "{{- '[INST] ' + message['content'] + ' [/INST]' }}{%- endif %}{%- endfor %}"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    store = new_store(tmp_path_factory.mktemp("others") / "store", layers=2, hidden=128)
    put_stack(store, "s", 3)
    return store


def format_with(tmp_path, template: str) -> ChatFormat:
    from lamina.bases.load import load_tokenizer

    return ChatFormat(load_tokenizer(pico_base(tmp_path / "base", chat_template=template)))


def test_ollama_gets_a_model_and_a_modelfile(store, tmp_path):
    result = export(store, "s", tmp_path / "out", "ollama", Silent(), precision="q8_0")
    assert result["parity"]["ok"]
    assert "Ollama itself was not run" in result["note"]
    assert result["use"] == [f"ollama create NAME -f {tmp_path / 'out'}/Modelfile"]
    lines = (tmp_path / "out" / "Modelfile").read_text().split("\n")
    assert lines[0] == "FROM ./model-q8_0.gguf"
    assert (tmp_path / "out" / "model-q8_0.gguf").is_file()
    assert 'PARAMETER stop "<|im_end|>"' in lines
    assert "PARAMETER num_ctx 2048" in lines
    assert "PARAMETER repeat_penalty 1" in lines


def test_chatml_in_go(tmp_path):
    shape = shape_of(format_with(tmp_path, CHATML))
    assert shape == Shape("", "<|im_start|>", "\n", "<|im_end|>\n", None)
    assert shape.go() == (
        "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
        "<|im_start|>assistant\n"
    )


def test_a_default_system_message_becomes_system(tmp_path):
    fmt = format_with(tmp_path, DEFAULT_SYSTEM)
    shape = shape_of(fmt)
    assert shape.default_system == "You are pico, a model"
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert shape.render(talk) == fmt.text(talk, ())
    text = modelfile(shape, "m.gguf", 4096, ("<|im_end|>",))
    assert 'SYSTEM """You are pico, a model"""' in text.split("\n")


def test_a_template_of_another_shape_is_not_put_into_go(tmp_path):
    with pytest.raises(UsageError, match="not of ChatML's shape"):
        shape_of(format_with(tmp_path, INST))


def test_vllm_gets_one_rank_and_a_launch_line(store, tmp_path):
    result = export(store, "s", tmp_path / "out", "vllm", Silent())
    assert result["parity"]["ok"]
    config = json.loads((tmp_path / "out" / codec.CONFIG_FILE).read_text())
    weights = load_file(tmp_path / "out" / codec.WEIGHTS_FILE)
    ranks = {t.shape[0] for name, t in weights.items() if "lora_A" in name}
    assert ranks == {config["r"]} == {config["lora_alpha"]} == {6}
    assert not config.get("rank_pattern")
    assert not config.get("alpha_pattern")
    assert result["max_lora_rank"] == 8
    assert f"--max-lora-rank 8 --lora-modules s={tmp_path / 'out'}" in result["use"][-1]
    wrapped = PeftModel.from_pretrained(base_model(store), str(tmp_path / "out")).eval()
    ours = logits_of(compile_stack(store, resolve(store, "s"), dtype=base_model(store).dtype).model,
                     PROMPTS)  # fmt: skip
    for found, expected in zip(logits_of(wrapped, PROMPTS), ours, strict=True):
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_rank_beyond_vllms_is_refused(store, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm, "MAX_RANKS", (1, 4))
    with pytest.raises(UsageError, match="squash the stack first"):
        export(store, "s", tmp_path / "out", "vllm", Silent())
    assert list(tmp_path.iterdir()) == []


def test_mlx_gets_transposed_factors(store, tmp_path):
    result = export(store, "s", tmp_path / "out", "mlx", Silent())
    assert result["parity"]["ok"]
    assert "was not run" in result["note"]
    config = json.loads((tmp_path / "out" / mlx.CONFIG_FILE).read_text())
    assert config["num_layers"] == 2
    assert config["lora_parameters"]["rank"] == 6
    assert "self_attn.q_proj" in config["lora_parameters"]["keys"]
    weights = load_file(tmp_path / "out" / mlx.WEIGHTS_FILE)
    assert weights["model.layers.0.mlp.down_proj.lora_a"].shape == (256, 6)
    assert weights["model.layers.0.mlp.down_proj.lora_b"].shape == (6, 128)


def test_another_mlx_adapter_is_refused(store, tmp_path, monkeypatch):
    write = mlx.write

    def spoiled(change):
        def writes(layers, directory, blocks):
            write(layers, directory, blocks)
            tensors = load_file(directory / mlx.WEIGHTS_FILE)
            save_file(change(tensors), directory / mlx.WEIGHTS_FILE)

        return writes

    monkeypatch.setattr(mlx, "write", spoiled(lambda t: {k: v * 1.5 for k, v in t.items()}))
    with pytest.raises(CheckError, match="to mlx is not the stack"):
        export(store, "s", tmp_path / "out", "mlx", Silent())
    monkeypatch.setattr(mlx, "write", spoiled(lambda t: {f"model.{k}": v for k, v in t.items()}))
    with pytest.raises(LayerError, match="would pass over"):
        export(store, "s", tmp_path / "out", "mlx", Silent())
    assert list(tmp_path.iterdir()) == []


def test_text_is_what_the_ids_say(store):
    fmt = base_format(store, resolve(store, "s"))
    talk = [Message(role="user", content="two colours")]
    text = fmt.text([{"role": "user", "content": "two colours"}], ())
    assert fmt.decode(fmt.prompt_ids(talk), special=True) == text
