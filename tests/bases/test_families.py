"""Families: which linears take layers, and that backbone + head are the model's own logits."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lamina.bases.families import (
    CHECKED,
    backbone,
    head,
    layer_of,
    linears,
    logits,
    lowest,
    module_ranks,
    select,
    target_modules,
)
from lamina.core.errors import BaseError, UsageError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
EXTRA = {
    "gemma2": {"final_logit_softcapping": 5.0, "query_pre_attn_scalar": 16},
    "gemma3_text": {"final_logit_softcapping": 5.0, "query_pre_attn_scalar": 16},
    "granite": {"logits_scaling": 8.0, "embedding_multiplier": 12.0},
    "cohere": {"logit_scale": 0.0625},
}


def tiny(family, **extra):
    config = AutoConfig.for_model(
        family,
        **{
            "vocab_size": 96,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }
        | EXTRA.get(family, {})
        | extra,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, parameter.shape[1] ** -0.5)
    return model


@pytest.mark.parametrize("family", sorted(CHECKED))
@torch.no_grad()
def test_logits_at_chosen_positions_are_the_models_own(family):
    model = tiny(family)
    ids_BT = torch.randint(0, 96, (2, 7), generator=torch.Generator().manual_seed(1))
    own_BTV = model(input_ids=ids_BT).logits
    hidden_BTH = backbone(model)(input_ids=ids_BT).last_hidden_state
    ours_NV = logits(hidden_BTH[:, [2, 6]], head(model))
    assert own_BTV.std() > 0.01
    torch.testing.assert_close(ours_NV, own_BTV[:, [2, 6]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", sorted(CHECKED))
def test_linears_are_those_of_the_layers_only(family):
    model = tiny(family)
    found = linears(model)
    modules = dict(model.named_modules())
    assert all(modules[name] is linear for name, linear in found.items())
    assert all(".layers." in name for name in found)
    assert model.get_output_embeddings() not in found.values()
    matrices = sum(
        parameter.ndim == 2 for name, parameter in model.named_parameters() if ".layers." in name
    )
    assert len(found) == matrices


def test_constants_that_matter_are_read():
    assert head(tiny("gemma3_text")).softcap == 5.0
    assert head(tiny("gemma3_text", final_logit_softcapping=None)).softcap is None
    assert head(tiny("granite")).scale == 0.125
    assert head(tiny("cohere")).scale == 0.0625
    llama = head(tiny("llama"))
    assert (llama.softcap, llama.scale) == (None, 1.0)


def test_an_unknown_family_is_compared_once_with_its_own_logits():
    assert "olmo" not in CHECKED
    assert head(tiny("olmo")).scale == 1.0
    model = tiny("olmo")
    own = model.forward
    model.forward = lambda **kwargs: _doubled(own(**kwargs))
    with pytest.raises(BaseError, match="olmo models are not supported"):
        head(model)


def _doubled(output):
    output.logits = output.logits * 2
    return output


def test_a_family_without_linears_in_its_layers_is_refused():
    config = AutoConfig.for_model("gpt2", n_embd=16, n_layer=1, n_head=2, vocab_size=50)
    with pytest.raises(BaseError, match="gpt2 models are not supported"):
        linears(AutoModelForCausalLM.from_config(config))


def test_select():
    found = linears(tiny("llama"))
    assert select(found, ("all-linear",)) == found
    assert {name.rpartition(".")[2] for name in found} == {*ATTENTION, *MLP}
    assert len(select(found, ("q_proj", "v_proj"))) == 4
    assert list(select(found, ("layers.1.mlp.up_proj",))) == ["model.layers.1.mlp.up_proj"]
    assert list(select(found, ("v_proj", "q_proj"))) == [
        name for name in found if name.endswith(("q_proj", "v_proj"))
    ]


@pytest.mark.parametrize(
    "targets", [("q_prj", "lm_head"), ("proj",), ("",), (), ("all-linear", "x")]
)
def test_unknown_targets_are_listed_with_the_known_ones(targets):
    with pytest.raises(UsageError) as caught:
        select(linears(tiny("llama")), targets)
    assert "down_proj, gate_proj, k_proj" in str(caught.value)
    for target in targets:
        assert (repr(target) in caught.value.faults) == (target != "all-linear")


def test_ranks_of_modules():
    found = linears(tiny("llama"))
    ranks = {"q_proj": 4, "mlp.down_proj": 9, "layers.1.self_attn.q_proj": 7}
    each = module_ranks(found, 16, ranks)
    assert list(each) == list(found)
    assert each["model.layers.0.self_attn.q_proj"] == 4
    assert each["model.layers.1.self_attn.q_proj"] == 7  # the longer name wins
    assert each["model.layers.1.mlp.down_proj"] == 9
    assert each["model.layers.0.mlp.up_proj"] == 16
    assert module_ranks(found, 3, {}) == dict.fromkeys(found, 3)
    with pytest.raises(UsageError) as caught:
        module_ranks(found, 3, {"proj": 2, "lm_head": 1, "v_proj": 1})
    assert len(caught.value.faults) == 2


def test_target_modules_are_the_shortest_exact_names():
    found = linears(tiny("llama"))
    assert target_modules(found, tuple(found)) == tuple(sorted((*ATTENTION, *MLP)))
    assert target_modules(found, tuple(select(found, ("v_proj", "q_proj")))) == ("q_proj", "v_proj")
    one = ("model.layers.1.mlp.up_proj",)
    assert target_modules(found, one) == one


def test_the_lowest_share_of_the_layers_there_are():
    names = [f"model.layers.{layer}.mlp.{which}" for layer in (2, 3, 5, 11) for which in ("a", "b")]

    def layers(share):
        return {layer_of(name) for name in lowest(names, share)}

    assert [layers(share) for share in (0.0, 0.24, 0.25, 0.5, 0.99)] == [
        set(), set(), {2}, {2, 3}, {2, 3, 5},
    ]  # fmt: skip
    assert len(lowest(names, 0.5)) == 4
