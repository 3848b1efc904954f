"""Exports against the tools they are for: PEFT's and transformers' own loading."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lamina.core.errors import CheckError, LayerError, UsageError
from lamina.core.report import Silent
from lamina.data.example import Message
from lamina.export import merged, peft
from lamina.export.parity import compare, logits_of
from lamina.flows.adapters import export
from lamina.lowrank import codec
from lamina.stack.compile import base_directory, base_format, compile_stack, layer_factors
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from tests.stacks import BASE, base_model, new_store, put_stack
from tests.tolerance import TOLERANCE

PROMPTS = [list(range(8, 30)), [11, 250, 9, 9, 70]]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    store = new_store(tmp_path_factory.mktemp("export") / "store", layers=2)
    for count in (1, 2, 4):
        put_stack(store, f"s{count}", count)
    return store


def ours(store, name, dtype=torch.float32):
    return logits_of(compile_stack(store, resolve(store, name), dtype=dtype).model, PROMPTS)


def close(found, expected, dtype=torch.float32):
    for a, b in zip(found, expected, strict=True):
        scale = b.abs().max()
        torch.testing.assert_close(a / scale, b / scale, **TOLERANCE[dtype])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_peft_loads_the_same_model(store, tmp_path, count):
    result = export(store, f"s{count}", tmp_path / "out", "peft", Silent())
    assert result["parity"]["value"] < result["parity"]["limit"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md",
        codec.CONFIG_FILE,
        codec.WEIGHTS_FILE,
        "lamina.json",
    ]
    wrapped = PeftModel.from_pretrained(base_model(store), str(tmp_path / "out")).eval()
    found = logits_of(wrapped, PROMPTS)
    close(found, ours(store, f"s{count}"))
    plain = logits_of(base_model(store), PROMPTS)
    assert (found[0] - plain[0]).abs().max() > 0.05 * plain[0].abs().max()  # PEFT did apply it
    config = json.loads((tmp_path / "out" / codec.CONFIG_FILE).read_text())
    assert config["lora_alpha"] == config["r"]


@pytest.mark.parametrize("count", [0, 4])
def test_merged_loads_in_transformers(store, tmp_path, count):
    name = f"s{count}" if count else BASE
    result = export(store, name, tmp_path / "out", "hf", Silent())
    assert result["parity"]["value"] < result["parity"]["limit"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    close(logits_of(loaded, PROMPTS), ours(store, name))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    asked = [{"role": "user", "content": "two colours"}]
    found = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    assert found == base_format(store, resolve(store, name)).prompt_ids(
        [Message(role="user", content="two colours")]
    )


def test_merging_writes_nothing_into_the_base(store, tmp_path):
    directory = base_directory(store, store.bases()[BASE])
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    export(store, "s2", tmp_path / "out", "hf", Silent())
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_merging_needs_every_weight(store, tmp_path):
    stack = resolve(store, "s1")
    factors = layer_factors(store, stack.layers[0])
    factors["model.layers.7.mlp.up_proj"] = next(iter(factors.values()))
    with pytest.raises(LayerError) as caught:
        merged.write(base_directory(store, stack.base), [factors], tmp_path)
    assert caught.value.faults == ("model.layers.7.mlp.up_proj",)


def perturbed(write, change):
    """A writer whose adapter is not what it should be."""

    def spoiled(*args):
        write(*args)
        path = args[2] / codec.WEIGHTS_FILE if write is PEFT else args[2] / "model.safetensors"
        tensors = load_file(path)
        key = next(k for k in sorted(tensors) if "down_proj" in k)
        tensors[key] = change(tensors[key])
        save_file(tensors, path, metadata={"format": "pt"})

    return spoiled


PEFT, MERGED = peft.write, merged.write


@pytest.mark.parametrize("change", [lambda t: t * 3, lambda t: t * torch.nan], ids=["x3", "nan"])
@pytest.mark.parametrize(("target", "module"), [("peft", peft), ("hf", merged)])
def test_an_export_that_is_another_model_is_not_kept(store, tmp_path, monkeypatch, target, module,
                                                     change):  # fmt: skip
    monkeypatch.setattr(module, "write", perturbed(module.write, change))
    with pytest.raises(CheckError, match=f"to {target} is not the stack"):
        export(store, "s1", tmp_path / "out", target, Silent())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [lambda t: t * 3, lambda t: t * torch.nan], ids=["x3", "nan"])
def test_a_loss_is_kept_when_told_if_it_is_a_number(store, tmp_path, monkeypatch, change):
    monkeypatch.setattr(peft, "write", perturbed(peft.write, change))
    if torch.isnan(change(torch.ones(()))):
        with pytest.raises(CheckError, match="to peft is not the stack"):
            export(store, "s1", tmp_path / "out", "peft", Silent(), accept_loss=True)
        assert list(tmp_path.iterdir()) == []
    else:
        kept = export(store, "s1", tmp_path / "out", "peft", Silent(), accept_loss=True)["parity"]
        assert kept["ok"] is False
        assert kept["value"] > kept["limit"]


def test_nan_on_either_side_is_a_difference():
    good, nan = torch.randn(3, 5), torch.full((3, 5), torch.nan)
    inf = good.clone()
    inf[1, 2] = torch.inf
    assert compare([good], [good], torch.float32).check("it").max_rel == 0
    for left, right in ((good, nan), (nan, good), (nan, nan), (good, inf), (inf, inf)):
        with pytest.raises(CheckError):
            compare([good, left], [good, right], torch.float32).check("it")


def test_refusals(store, tmp_path):
    with pytest.raises(UsageError, match="exists already"):
        export(store, "s1", tmp_path, "peft", Silent())
    with pytest.raises(UsageError, match="known targets are diffusers, diffusers-base, gguf"):
        export(store, "s1", tmp_path / "out", "onnx", Silent())
    with pytest.raises(UsageError, match="--to hf"):
        export(store, BASE, tmp_path / "out", "peft", Silent())
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_layer_is_not_exported(store, tmp_path):
    shutil.copytree(store.root, tmp_path / "store", symlinks=True)
    own = Store.open(tmp_path / "store", create=False)
    stack = resolve(own, "s1")
    blob = own.path(stack.layers[0].manifest.blob(codec.WEIGHTS_FILE).digest)
    blob.write_bytes(blob.read_bytes()[:-1] + b"\1")
    for target in ("peft", "hf"):
        with pytest.raises(OSError, match="don't match"):
            export(own, "s1", tmp_path / "out", target, Silent())
    assert not (tmp_path / "out").exists()
