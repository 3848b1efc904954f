"""Adapters that PEFT made become layers."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model

from lamina.core.errors import GateError, LayerError, UsageError
from lamina.export.parity import logits_of
from lamina.flows.adapters import export
from lamina.flows.importing import Request
from lamina.flows.importing import take_in as run
from lamina.flows.inventory import history
from lamina.flows.to_python import load_peft
from lamina.lowrank import codec
from lamina.stack.compile import compile_stack
from lamina.stack.resolve import resolve
from tests.flows.world import Said
from tests.stacks import base_model
from tests.tolerance import TOLERANCE

PROMPTS = [list(range(8, 30)), [11, 250, 9, 9, 70]]


def peft_adapter(store, folder, *, strength=0.2, **fields):
    """An adapter made and trained a little by PEFT; its folder and its logits."""
    torch.manual_seed(0)
    config = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]} | fields
    wrapped = get_peft_model(base_model(store), LoraConfig(task_type="CAUSAL_LM", **config))
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=strength)
    for _ in range(3):
        ids = torch.tensor([PROMPTS[0]])
        optimiser.zero_grad()
        wrapped(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
    wrapped.save_pretrained(str(folder))
    return folder, logits_of(wrapped.eval(), PROMPTS)


def take_in(store, folder, name="taken", on="pico", **how):
    said = Said()
    request = Request(str(folder), on, name, licence="mit", author="eve", **how)
    return run(store, request, said) | {"said": "\n".join(said.sentences)}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 9}},
        {"target_modules": "all-linear"},
    ],
    ids=["plain", "rslora", "patterns", "all-linear"],
)
def test_agrees_with_peft(store, tmp_path, fields):
    folder, theirs = peft_adapter(store, tmp_path / "adapter", **fields)
    done = take_in(store, folder)
    assert done["name"] == "taken:v1"
    stack = resolve(store, "taken")
    assert stack.digest == done["stack"]
    config = stack.layers[0].config
    assert (config.origin, config.licence, config.author) == ("imported", "mit", "eve")
    assert config.recipe is config.data is None
    ours = logits_of(compile_stack(store, stack, dtype=torch.float32).model, PROMPTS)
    plain = logits_of(base_model(store), PROMPTS)
    for a, b, c in zip(ours, theirs, plain, strict=True):
        scale = b.abs().max()
        torch.testing.assert_close(a / scale, b / scale, **TOLERANCE[torch.float32])
        assert (b - c).abs().max() > 1e-2 * scale
    assert store.verify().clean


def test_there_and_back(store, tmp_path):
    """A stack out as an adapter and in again over the base is the same model."""
    export(store, "second", tmp_path / "out", "peft", Said())
    take_in(store, tmp_path / "out")
    found, expected = (
        logits_of(compile_stack(store, resolve(store, n), dtype=torch.float32).model, PROMPTS)
        for n in ("taken", "second")
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a / b.abs().max(), b / b.abs().max(), **TOLERANCE[torch.float32])


def test_over_a_stack_it_goes_through_the_gate(store, tmp_path):
    folder, _ = peft_adapter(store, tmp_path / "adapter", strength=5.0)
    with pytest.raises(GateError, match="first/loss") as caught:
        take_in(store, folder, on="first")
    assert "taken" not in store.names()
    kept = caught.value.hint.partition("kept as ")[2].partition(";")[0]
    assert resolve(store, kept).layers[-1].config.name == "taken"
    take_in(store, folder, on="first", override="a trial")
    assert history(store, "taken")[0]["override"] == "a trial"


def test_pickles_are_never_opened(store, tmp_path):
    folder, _ = peft_adapter(store, tmp_path / "adapter")
    (folder / codec.WEIGHTS_FILE).unlink()
    torch.save({}, folder / "adapter_model.bin")
    with pytest.raises(LayerError, match=r"adapter_model.bin is a pickle, which is never opened"):
        take_in(store, folder)
    shutil.copyfile(folder / "adapter_model.bin", folder / codec.WEIGHTS_FILE)
    with pytest.raises(LayerError, match="not a safetensors file"):
        take_in(store, folder)
    (folder / codec.CONFIG_FILE).unlink()
    with pytest.raises(LayerError, match=r"no adapter_config\.json"):
        take_in(store, folder)
    with pytest.raises(LayerError, match=r"there is no .*nowhere"):
        take_in(store, tmp_path / "nowhere")


def test_what_is_no_low_rank_sum(store, tmp_path):
    folder, _ = peft_adapter(store, tmp_path / "adapter")
    path = folder / codec.CONFIG_FILE
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"use_dora": True, "bias": "all"}))
    with pytest.raises(LayerError) as caught:
        take_in(store, folder)
    assert len(caught.value.faults) == 2
    path.write_text(json.dumps(config))
    with pytest.raises(UsageError, match="no base"):
        take_in(store, folder, name="pico")
    assert "taken" not in store.names()


def test_an_adapter_of_another_model(store, tmp_path):
    from tests.stacks import new_store

    other = new_store(tmp_path / "other", hidden=64, layers=2)
    folder, _ = peft_adapter(other, tmp_path / "adapter")
    with pytest.raises(LayerError) as caught:
        take_in(store, folder)
    text = "\n".join(caught.value.faults)
    assert "model.layers.0.self_attn.q_proj: the layer is for (64, 64)" in text
    assert "model.layers.1.self_attn.v_proj: the base has no such linear" in text


def test_load_peft_freezes_nothing_of_ours(store, tmp_path):
    folder, theirs = peft_adapter(store, tmp_path / "adapter")
    found = logits_of(load_peft(base_model(store), folder), PROMPTS)
    for a, b in zip(found, theirs, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE[torch.float32])
