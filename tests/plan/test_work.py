"""Parameters, bytes and arithmetic from configurations alone."""

import math
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lamina.core.errors import UsageError
from lamina.plan.work import (
    ADAM_BYTES,
    EXAMPLES,
    HALF,
    architecture,
    families,
    full_flops,
    useful_flops,
)

SIZES = {
    "vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 160, "head_dim": 16,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {"vocab_size": 300, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def sizes_of(family: str) -> dict[str, Any]:
    return GPT2 | TOKENS if family == "gpt2" else SIZES


def empty(family: str, **given: Any) -> Any:
    config = AutoConfig.for_model(family, **sizes_of(family) | given)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("whole", [True, False], ids=["written", "given"])
@pytest.mark.parametrize("family", families())
def test_every_parameter_is_counted(family: str, whole: bool) -> None:
    model = empty(family)
    config = model.config.to_dict() if whole else {"model_type": family, **sizes_of(family)}
    found = architecture(config)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    heads = model.get_output_embeddings().weight.numel()
    assert found.embedding == heads


@pytest.mark.parametrize(
    ("family", "given"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
        ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
        ("gemma2", {"tie_word_embeddings": False}),
    ],
)
def test_switches_of_a_configuration_count(family: str, given: dict[str, Any]) -> None:
    model = empty(family, **given)
    found = architecture(model.config.to_dict())
    assert found.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "phi3"])
def test_linears_and_a_layer_are_those_of_the_model(family: str) -> None:
    from lamina.bases.families import linears

    model = empty(family)
    found = architecture(model.config.to_dict())
    real = linears(model)
    assert found.linears == sum(linear.weight.numel() for linear in real.values())
    assert found.trainable(5) == sum(
        5 * (linear.in_features + linear.out_features) for linear in real.values()
    )
    shapes = found.shapes(5)
    named = {name.removeprefix("model."): linear for name, linear in real.items()}
    for each in shapes.linears:
        layer, _, leaf = each.name.rpartition(".")
        linear = next(v for k, v in named.items() if k.startswith(layer) and k.endswith(leaf))
        assert (each.inputs, each.outputs) == (linear.in_features, linear.out_features)
    assert shapes.factors == found.trainable(5)


def test_loras_published_table_comes_out_of_the_configuration_alone() -> None:
    """Hu et al., arXiv:2106.09685: table 4, section 7.1, and what section 4.2 says."""
    gpt3 = architecture(EXAMPLES["gpt3-175b"])
    assert round(gpt3.parameters / 1e9) == 175
    qv = ("q_proj", "v_proj")
    assert round(gpt3.trainable(1, qv) / 1e6, 1) == 4.7  # table 4: LoRA, 4.7M
    assert round(gpt3.trainable(8, qv) / 1e6, 1) == 37.7  # table 4: LoRA, 37.7M
    # section 7.1: 18M (35 MB in float16): r = 8 on one kind, r = 4 on two
    for rank, targets in ((8, ("q_proj",)), (8, ("v_proj",)), (4, ("q_proj", "k_proj")), (4, qv)):
        assert int(gpt3.trainable(rank, targets) / 1e6) == 18
    # section 4.2: "by roughly 10,000x (from 350GB to 35MB)", r = 4 on q and v. Exactly: 9,251
    # times fewer, 349 GB to 36.0 MiB
    four = gpt3.trainable(4, qv)
    assert four == 96 * 2 * 4 * (12288 + 12288)
    assert math.isclose(gpt3.parameters / four, 10_000, rel_tol=0.08)
    assert math.isclose(four * HALF / 2**20, 35, rel_tol=0.03)
    assert round(gpt3.parameters * HALF / 1e9) in range(348, 351)


def test_arithmetic_counts_what_is_useful() -> None:
    found = architecture(EXAMPLES["llama2-7b"])
    assert found.parameters == 6_738_415_616  # as the model's own card counts
    assert useful_flops(10, 3, 7, 2) == 4 * (10 * 7 + 3 * 2)
    assert full_flops(10, 3, 7) == 6 * 13 * 7
    # a layer needs two thirds of full training where every token is supervised, less where not
    full = full_flops(found.linears, found.embedding, 1000)
    layer = useful_flops(found.linears, found.embedding, 1000, 1000)
    assert 3 * layer == 2 * full
    assert useful_flops(found.linears, found.embedding, 1000, 100) < layer
    assert ADAM_BYTES == 2 + 2 + 4 + 4 + 4


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "whisper"}, "whisper"),
        ({}, "'?'"),
        ({"model_type": "llama", **SIZES, "hidden_size": "64"}, "hidden_size"),
        ({"model_type": "llama", **SIZES, "num_hidden_layers": 0}, "num_hidden_layers"),
        ({"model_type": "llama", **SIZES, "vocab_size": 1 << 40}, "vocab_size"),
        ({"model_type": "llama", **SIZES, "head_dim": -1}, "head_dim"),
        ({"model_type": "llama", **SIZES, "num_experts": 8}, "experts"),
    ],
)
def test_what_describes_no_model_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        architecture(config)
    assert said in str(caught.value) + " ".join(caught.value.faults)


def test_targets_that_name_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="no linear"):
        architecture(EXAMPLES["llama2-7b"]).trainable(4, ("q_proj", "c_attn"))


def test_a_decoder_inside_a_larger_configuration_is_found() -> None:
    inside = {"model_type": "gemma3_text", **SIZES}
    outer = {"model_type": "gemma3", "text_config": inside, "vision_config": {"hidden_size": 9}}
    assert architecture(outer) == architecture(inside)
