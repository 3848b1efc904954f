"""Merged and tuned models: the difference to the stack becomes a layer."""

import json

import pytest
import safetensors.torch
import torch

from lamina.core.errors import LayerError
from lamina.export.parity import logits_of
from lamina.flows.adapters import export
from lamina.stack.compile import base_directory
from tests.flows.world import Said
from tests.imports.others import (
    PROMPTS,
    contents,
    difference,
    factors,
    logits,
    same,
    taken,
    trained,
)
from tests.stacks import base_model, new_store

pytest.importorskip("peft")


def merged(store, folder, *, dtype=torch.float32, **fields):
    """A LoRA trained and merged by PEFT, saved by transformers; its float32 difference."""
    wrapped = trained(store, target_modules="all-linear", strength=0.5, **fields)
    update = {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
        for name, module in wrapped.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    model = wrapped.merge_and_unload().to(dtype)
    model.save_pretrained(str(folder))
    return model, update


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_a_merge_in_float32_comes_back_to_rounding(stores, tmp_path, family):
    store = stores(family)
    model, update = merged(store, tmp_path / "m")
    done = taken(store, tmp_path / "m")
    assert done["kind"] == "checkpoint"
    assert done["rank"] == 4
    assert done["error"] < 1e-4
    found = factors(store)
    assert set(found) == set(update)
    for name, parts in found.items():
        assert parts.rank == 4
        off = parts.b_OR.double() @ parts.a_RI.double() - update[name].double()
        assert off.norm() < 1e-4 * update[name].norm()
    same(logits(store), logits_of(model, PROMPTS))
    assert done["logits_difference"] < 1e-5
    assert "the base's own, left out without loss" in done["said"]


def test_a_merge_in_bfloat16_keeps_the_rank_and_says_the_noise(store, tmp_path):
    """Rounding noise is of full rank; what lies above it is the update."""
    _, update = merged(store, tmp_path / "m", dtype=torch.bfloat16, lora_alpha=30)
    done = taken(store, tmp_path / "m")
    ranks = {name: parts.rank for name, parts in factors(store).items()}
    assert max(ranks.values()) <= 4
    assert 0 < done["error"] < 0.9
    assert "rounding of the stored weights is about" in done["said"]
    assert "singular values at its level were not kept" in done["said"]
    squares = [0.0, 0.0]
    for name, delta in update.items():
        parts = factors(store).get(name)
        kept = parts.b_OR.double() @ parts.a_RI.double() if parts else 0.0
        squares[0] += float((kept - delta.double()).square().sum())
        squares[1] += float(delta.double().square().sum())
    # nearer to the merged update than the merged file is
    assert (squares[0] / squares[1]) ** 0.5 < done["error"]
    whole = taken(store, tmp_path / "m", name="whole", rank=32)
    assert whole["error"] < 1e-4  # all of the noise too
    assert max(parts.rank for parts in factors(store, "whole").values()) > 4


def test_full_tuning_at_ranks_and_tolerances(store, tmp_path):
    model = base_model(store)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith("proj.weight"):
            parameter.data += 0.01 * torch.randn_like(parameter)
    model.save_pretrained(str(tmp_path / "m"))
    errors = []
    for rank in (2, 8, 24):
        done = taken(store, tmp_path / "m", rank=rank, name=f"r{rank}")
        errors.append(done["error"])
        off = difference(logits(store, f"r{rank}"), logits_of(model, PROMPTS))
        assert off == pytest.approx(done["logits_difference"], rel=2)
    assert errors == sorted(errors, reverse=True)
    done = taken(store, tmp_path / "m", tolerance=0.2, name="near")
    assert 0.1 < done["error"] <= 0.2


def test_over_a_stack_the_difference_is_to_the_stack(store, tmp_path):
    wrapped = trained(store)
    wrapped.save_pretrained(str(tmp_path / "a"))
    taken(store, tmp_path / "a", name="below")
    both, _ = merged(store, tmp_path / "m", model=wrapped.merge_and_unload())
    done = taken(store, tmp_path / "m", on="below")
    assert done["rank"] == 4
    same(logits(store), logits_of(both, PROMPTS))
    # and a checkpoint that is the stack itself is no layer
    export(store, "below", tmp_path / "same", "hf", Said())
    with pytest.raises(LayerError, match="nothing of the whole model differs"):
        taken(store, tmp_path / "same", on="below", name="none")


def test_one_file_and_many(store, tmp_path):
    model, _ = merged(store, tmp_path / "m")
    taken(store, tmp_path / "m" / "model.safetensors", name="file")
    same(logits(store, "file"), logits_of(model, PROMPTS))
    model.save_pretrained(str(tmp_path / "shards"), max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    taken(store, tmp_path / "shards", name="shards")
    same(logits(store, "shards"), logits_of(model, PROMPTS))
    lost = sorted((tmp_path / "shards").glob("*.safetensors"))[0]
    lost.unlink()
    with pytest.raises(LayerError, match="not there"):
        taken(store, tmp_path / "shards", name="lost")


def test_what_is_no_linear(stores, tmp_path):
    store = stores("qwen3")
    model, _ = merged(store, tmp_path / "m")
    with torch.no_grad():
        model.model.norm.weight.add_(0.1)
        model.lm_head.weight.mul_(1.01)
    model.save_pretrained(str(tmp_path / "m"))
    before = contents(store)
    with pytest.raises(LayerError) as caught:
        taken(store, tmp_path / "m")
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "lm_head.weight",
        "model.norm.weight",
    ]
    assert contents(store) == before
    done = taken(store, tmp_path / "m", ignore_rest=True)
    assert len(done["left_out"]) == 2
    assert done["logits_difference"] > 5e-3
    assert difference(logits(store), logits_of(model, PROMPTS)) == pytest.approx(
        done["logits_difference"], rel=2
    )


def test_other_architectures_are_refused(store, tmp_path):
    merged(store, tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    for change, reason in (
        ({"rms_norm_eps": 0.5}, "rms_norm_eps is 0.5, the base's"),
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "weights are packed"),
    ):
        path.write_text(json.dumps(config | change))
        with pytest.raises(LayerError, match=reason):
            taken(store, tmp_path / "m")
    other = new_store(tmp_path / "other", hidden=64)
    with pytest.raises(LayerError, match=r"\(64, 64\), the base has \(32, 32\)"):
        taken(store, base_directory(other, other.bases()["pico"]) / "model.safetensors")
    half = safetensors.torch.load((tmp_path / "m" / "model.safetensors").read_bytes())
    half = {name: t for name, t in half.items() if "layers.1" not in name}
    safetensors.torch.save_file(half, tmp_path / "half.safetensors")
    with pytest.raises(LayerError, match=r"layers.1.self_attn.q_proj.weight: is not there"):
        taken(store, tmp_path / "half.safetensors")


def test_another_tokenizer_or_template_is_said(store, tmp_path):
    merged(store, tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "m" / "README.md").write_text("---\nlicense: mit\n---\n")
    done = taken(store, tmp_path / "m")
    assert "its chat_template.jinja differs" in done["said"]
    assert done["licence"] == "mit"


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_gguf_model(stores, tmp_path, family):
    """Exported merged as GGUF, dequantised by transformers, and a layer again.

    (transformers has no head size of a pico qwen3 in GGUF.)
    """
    store = stores(family)
    trained(store, strength=1.0).save_pretrained(str(tmp_path / "a"))
    taken(store, tmp_path / "a", name="below")
    export(store, "below", tmp_path / "out", "gguf", Said())
    done = taken(store, tmp_path / "out" / "model-f16.gguf", rank=4)
    assert done["kind"] == "checkpoint"
    assert "what its quantisation rounded away" in done["said"]
    near, far = (
        difference(logits(store, name), logits(store, "below")) for name in ("taken", "pico")
    )
    assert near < 0.1 * far
