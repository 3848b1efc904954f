"""The payload is a PEFT adapter: round trips, PEFT itself, and every refusal."""

import gc
import json
import tracemalloc
from itertools import pairwise

import pytest
import safetensors.torch
import torch

from lamina.bases import families
from lamina.bases.load import load
from lamina.core.errors import LayerError
from lamina.export.peft import concatenated
from lamina.lowrank import codec
from lamina.lowrank.attach import fold_into
from lamina.lowrank.maths import Factors
from tests.pico import pico_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pico_base(tmp_path_factory.mktemp("pico") / "llama")


def layer_over(linears, rank=3, scale=2.0, seed=0, only=""):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Factors(
            torch.randn(rank, m.in_features, generator=generator) * 0.05,
            torch.randn(m.out_features, rank, generator=generator) * 0.05,
            scale,
        )
        for name, m in linears.items()
        if only in name
    }


def encode(layer, linears, **kw):
    how = {"rank": 3, "alpha": 6.0, "scaling": "lora", "base": "x"} | kw
    return codec.encode(layer, target_modules=families.target_modules(linears, tuple(layer)), **how)


def test_round_trip_is_exact_and_deterministic(base):
    linears = families.linears(load(base, dtype=torch.float32).model)
    layer = layer_over(linears)
    config, weights = encode(layer, linears)
    assert (config, weights) == encode(dict(reversed(layer.items())), linears)
    back = codec.decode(config, weights)
    assert set(back) == set(layer)
    for name in layer:
        assert torch.equal(back[name].a_RI, layer[name].a_RI)
        assert torch.equal(back[name].b_OR, layer[name].b_OR)
        assert back[name].scale == layer[name].scale


@pytest.mark.parametrize("scaling", ["lora", "rslora"])
@pytest.mark.parametrize("only", ["", "q_proj", "layers.1.mlp"])
def test_peft_reads_it_and_agrees(base, tmp_path, scaling, only):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    loaded = load(base, dtype=torch.float32)
    linears = families.linears(loaded.model)
    scale = 2.0 if scaling == "lora" else 6.0 / 3**0.5
    layer = layer_over(linears, scale=scale, only=only)
    config, weights = encode(layer, linears, scaling=scaling)
    (tmp_path / codec.CONFIG_FILE).write_bytes(config)
    (tmp_path / codec.WEIGHTS_FILE).write_bytes(weights)
    ids = torch.arange(5, 25)[None]
    plain = loaded.model(input_ids=ids).logits
    fold_into(linears, layer)
    ours = loaded.model(input_ids=ids).logits
    theirs_model = peft.PeftModel.from_pretrained(load(base, dtype=torch.float32).model, tmp_path)
    theirs = theirs_model(input_ids=ids).logits
    assert (ours - plain).abs().max() > 1e-2
    assert (ours - theirs).abs().max() / ours.abs().max() < 1e-5


def test_scales_that_differ_at_one_rank(base, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    loaded = load(base, dtype=torch.float32)
    linears = families.linears(loaded.model)
    layer = layer_over(linears, scale=2.0) | layer_over(linears, scale=0.5, only="q_proj")
    config, weights = encode(layer, linears)
    assert json.loads(config)["rank_pattern"] == {}
    assert set(json.loads(config)["alpha_pattern"].values()) == {1.5}  # 0.5 x rank 3
    back = codec.decode(config, weights)
    assert {name: part.scale for name, part in back.items()} == {
        name: part.scale for name, part in layer.items()
    }
    (tmp_path / codec.CONFIG_FILE).write_bytes(config)
    (tmp_path / codec.WEIGHTS_FILE).write_bytes(weights)
    fold_into(linears, layer)
    ids = torch.arange(5, 25)[None]
    ours = loaded.model(input_ids=ids).logits
    theirs = peft.PeftModel.from_pretrained(load(base, dtype=torch.float32).model, tmp_path)(
        input_ids=ids
    ).logits
    assert (ours - theirs).abs().max() / ours.abs().max() < 1e-5


def test_layers_of_different_ranks_concatenate_into_one_peft_adapter(base, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    loaded = load(base, dtype=torch.float32)
    linears = families.linears(loaded.model)
    layers = [
        layer_over(linears, rank=3, seed=1),
        layer_over(linears, rank=5, scale=0.5, seed=2, only="q_proj"),
    ]
    joined = concatenated(layers)
    config, weights = encode(joined, linears, rank=8, alpha=8.0)
    assert json.loads(config)["rank_pattern"]
    (tmp_path / codec.CONFIG_FILE).write_bytes(config)
    (tmp_path / codec.WEIGHTS_FILE).write_bytes(weights)
    back = codec.decode(config, weights)
    assert {name: f.scale for name, f in back.items()} == dict.fromkeys(joined, 1.0)
    for layer in layers:
        fold_into(linears, layer)
    ids = torch.arange(5, 25)[None]
    ours = loaded.model(input_ids=ids).logits
    theirs = peft.PeftModel.from_pretrained(load(base, dtype=torch.float32).model, tmp_path)(
        input_ids=ids
    ).logits
    assert (ours - theirs).abs().max() / ours.abs().max() < 1e-5


def tensors(**change):
    good = {
        "base_model.model.m.q_proj.lora_A.weight": torch.ones(2, 4),
        "base_model.model.m.q_proj.lora_B.weight": torch.ones(6, 2),
    }
    return good | change


def config_of(**change):
    return json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"} | change)


def attempt(config=None, weights=None):
    data = weights if isinstance(weights, bytes) else safetensors.torch.save(weights or tensors())
    return codec.decode((config or config_of()).encode(), data)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "full copies"),
        ({"trainable_token_indices": [1]}, "embeddings of single tokens"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"r": 3}, "the config says rank 3, the tensors have 2"),
        ({"r": "two"}, "not a number"),
        ({"rank_pattern": {"(a+)+$": 2}}, "more than a module name"),
        ({"fan_in_fan_out": True}, "transposed"),
    ],
)
def test_configs_that_are_no_low_rank_sum_are_refused(change, reason):
    with pytest.raises(LayerError, match=reason.replace("(", r"\(")):
        attempt(config_of(**change))


def test_every_tensor_fault_is_listed_at_once():
    bad = tensors(
        **{
            "base_model.model.m.k_proj.lora_A.weight": torch.ones(2, 4),
            "base_model.model.m.v_proj.lora_A.weight": torch.full((2, 4), torch.inf),
            "base_model.model.m.v_proj.lora_B.weight": torch.ones(6, 3),
            "base_model.model.m.o_proj.lora_A.weight": torch.ones(2, 4, 1),
            "base_model.model.m.o_proj.lora_B.weight": torch.ones(6, 2),
            "base_model.model.lm_head.weight": torch.ones(3, 3),
        }
    )
    with pytest.raises(LayerError) as caught:
        attempt(weights=bad)
    text = "\n".join(caught.value.faults)
    for piece in (
        "k_proj: only lora_A",
        "v_proj.lora_A.weight: numbers that are not finite",
        "differ in rank",
        "3 axes instead of 2",
        "lm_head.weight: not a lora_A or lora_B weight",
    ):
        assert piece in text


@pytest.mark.parametrize("data", [b"", b"\x80\x04not safetensors", b"\xff" * 64])
def test_pickles_and_noise_are_no_safetensors(data):
    with pytest.raises(LayerError, match="not a safetensors file"):
        attempt(weights=data)


@pytest.mark.parametrize("config", ["", "[]", "{", "[" * 100_000])
def test_configs_that_are_no_json_object(config):
    with pytest.raises(LayerError, match="JSON"):
        codec.decode(config.encode(), safetensors.torch.save(tensors()))


def test_reading_a_file_again_and_again_keeps_nothing(base, tmp_path):
    """A server loads layers for as long as it runs."""
    linears = families.linears(load(base, dtype=torch.float32).model)
    config, weights = encode(layer_over(linears), linears)
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(weights)

    def kept():
        for _ in range(20):
            codec.decode(config, str(path), "it")
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        seen = [kept() for _ in range(4)]
        # not a byte a module and reading: a leak grows each time, somebody else's cache once
        assert min(b - a for a, b in pairwise(seen)) < 20 * len(linears)
    finally:
        tracemalloc.stop()


def test_no_module_at_all():
    with pytest.raises(LayerError, match="touches no module"):
        attempt(weights={"x": torch.ones(1)})
