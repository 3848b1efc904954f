"""PEFT adapters in the forms that tools leave them in, each written by PEFT itself."""

import json
import re
import sys
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from lamina.core.errors import LayerError
from lamina.core.report import Silent
from lamina.export.parity import logits_of
from lamina.flows.bases import pull
from lamina.flows.inventory import describe, render
from lamina.lowrank import codec
from lamina.stack.resolve import resolve
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
from tests.stacks import base_model

pytestmark = pytest.mark.slow  # many files of many kinds

peft = pytest.importorskip("peft")
FAMILIES = ("llama", "qwen3", "gemma3_text")


def saved(wrapped, folder, **more):
    wrapped.save_pretrained(str(folder), **more)
    return folder


def config_of(folder):
    return json.loads((folder / codec.CONFIG_FILE).read_text())


def rewrite(folder, *, keys=None, config=None, tensors=None):
    """Change an adapter's key names, config or tensors in place."""
    path = folder / codec.WEIGHTS_FILE
    found = safetensors.torch.load(path.read_bytes())
    if keys:
        found = {keys(key): tensor for key, tensor in found.items()}
    safetensors.torch.save_file({**found, **(tensors or {})}, path)
    if config:
        (folder / codec.CONFIG_FILE).write_text(json.dumps(config_of(folder) | config))
    return folder


def check(store, wrapped, folder, **how):
    """Import, and compare with PEFT's own model; what was said."""
    theirs = logits_of(wrapped, PROMPTS)
    done = taken(store, folder, **how)
    same(logits(store), theirs)
    assert difference(theirs, logits_of(base_model(store), PROMPTS)) > 1e-2
    assert done["parity"]["ok"]
    assert store.verify().clean
    return done


VARIANTS = {
    "all linears": {"target_modules": "all-linear"},
    "rslora": {"use_rslora": True},
    "rslora with patterns": {
        "use_rslora": True,
        "rank_pattern": {"v_proj": 2},
        "alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 9},
    },
    "expressions": {
        "target_modules": r".*\.layers\.(0|1)\.(self_attn\.[qv]_proj|mlp\.down_proj)",
        "rank_pattern": {r"layers\.[0-9]+\.self_attn\.(q|k)_proj": 2, "down_proj": 6},
        "alpha_pattern": {r"^model\.layers\.0\.self_attn\..*": 3, ".*mlp.*": 5},
    },
    "one layer": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["up_proj"]},
    "fan in, fan out": {"fan_in_fan_out": True},
    "orthogonal start": {"init_lora_weights": "orthogonal"},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_variants(stores, tmp_path, family, fields):
    store = stores(family)
    wrapped = trained(store, **fields)
    done = check(store, wrapped, saved(wrapped, tmp_path / "a"))
    assert done["kind"] == "peft"
    assert done["error"] is None


PREFIXES = {
    "multi-adapter file": lambda k: k.replace(".weight", ".default.weight"),
    "another adapter's name": lambda k: k.replace(".weight", ".tuned.weight"),
    "torch.compile": lambda k: k.replace("base_model.model.", "base_model.model._orig_mod."),
    "torch.compile, layer by layer": lambda k: re.sub(r"(layers\.\d+)\.", r"\1._orig_mod.", k),
    "FSDP": lambda k: k.replace("base_model.model.", "_fsdp_wrapped_module.base_model.model."),
    "DDP": lambda k: "module." + k,
    "checkpointing": lambda k: re.sub(r"(layers\.\d+)\.", r"\1._checkpoint_wrapped_module.", k),
    "a vision model's": lambda k: k.replace("model.layers", "model.language_model.layers"),
    "an older vision model's": lambda k: k.replace("model.layers", "language_model.model.layers"),
    "without the model": lambda k: k.replace("base_model.model.model.", "base_model.model."),
    "none at all": lambda k: k.replace("base_model.model.", ""),
}


@pytest.mark.parametrize("keys", PREFIXES.values(), ids=PREFIXES)
def test_prefixes(store, tmp_path, keys):
    wrapped = trained(store, alpha_pattern={r"layers\.0\.self_attn\.q_proj": 3})
    folder = rewrite(saved(wrapped, tmp_path / "a"), keys=keys)
    assert any(keys(key) != key for key in ("base_model.model.model.layers.0.x.lora_A.weight",))
    check(store, wrapped, folder)


def test_a_towers_layers_never_pass_for_the_decoders(store, tmp_path):
    wrapped = trained(store)
    folder = saved(wrapped, tmp_path / "a")
    rewrite(folder, keys=lambda k: k.replace("model.layers", "vision_tower.encoder.layers"))
    with pytest.raises(LayerError, match=r"vision_tower\S+: the base has no such linear"):
        taken(store, folder)


def test_several_adapters_in_one_file(store, tmp_path):
    folder = saved(trained(store), tmp_path / "a")
    more = {
        key.replace(".weight", ".other.weight"): tensor
        for key, tensor in safetensors.torch.load(
            (folder / codec.WEIGHTS_FILE).read_bytes()
        ).items()
    }
    rewrite(folder, keys=lambda k: k.replace(".weight", ".default.weight"), tensors=more)
    with pytest.raises(LayerError, match="several adapters: default, other"):
        taken(store, folder)


def test_folders_of_adapters(store, tmp_path):
    """PEFT saves every adapter but `default` into a folder of its own."""
    wrapped = trained(store)
    saved(wrapped, tmp_path / "a" / "tuned")
    check(store, wrapped, tmp_path / "a")
    saved(wrapped, tmp_path / "a" / "other")
    with pytest.raises(LayerError, match="holds nothing") as caught:
        taken(store, tmp_path / "a")
    assert caught.value.faults == ("other is an adapter's folder", "tuned is an adapter's folder")


@pytest.mark.filterwarnings("ignore:(PiSSA|OLoRA) changes the base weights")
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_converted_principal_starts(store, tmp_path, start):
    """PiSSA and OLoRA, saved as plain LoRA of twice the rank by PEFT's own conversion."""
    model = base_model(store)
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=start)
    wrapped = peft.get_peft_model(model, config)
    wrapped.peft_config["default"].init_lora_weights = True
    wrapped.save_pretrained(str(tmp_path / "start"))
    wrapped.peft_config["default"].init_lora_weights = start
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.mul_(1.5)
    wrapped.eval()
    theirs = logits_of(wrapped, PROMPTS)
    bad = saved(wrapped, tmp_path / "raw")
    with pytest.raises(LayerError, match="path_initial_model_for_weight_conversion"):
        taken(store, bad)
    good = saved(
        wrapped, tmp_path / "a", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    taken(store, good)
    same(logits(store), theirs)
    assert next(iter(factors(store).values())).rank == 8


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.filterwarnings("ignore:Adapter 'default'. 4 LoRA tensor.s. have invalid shape")
def test_a_trained_bias(store, tmp_path):
    wrapped = trained(store, lora_bias=True)
    folder = saved(wrapped, tmp_path / "a")
    theirs = logits_of(wrapped, PROMPTS)
    with pytest.raises(LayerError, match=r"q_proj\.lora_B\.bias: a trained bias"):
        taken(store, folder)
    done = taken(store, folder, ignore_rest=True)
    assert len(done["left_out"]) == 4
    assert done["logits_difference"] > 1e-3
    assert 0.3 < difference(logits(store), theirs) / done["logits_difference"] < 3
    zero = {
        key: torch.zeros_like(tensor)
        for key, tensor in safetensors.torch.load(
            (folder / codec.WEIGHTS_FILE).read_bytes()
        ).items()
        if key.endswith("lora_B.bias")
    }
    done = taken(store, rewrite(folder, tensors=zero), name="zero")
    assert done["parity"]["ok"]
    assert done["left_out"] == []


def test_saved_copies_that_nobody_trained(store, tmp_path):
    """Embeddings and head are saved beside an adapter although they are the base's own."""
    wrapped = trained(store)
    folder = saved(wrapped, tmp_path / "a", save_embedding_layers=True)
    keys = safetensors.torch.load((folder / codec.WEIGHTS_FILE).read_bytes())
    assert any("embed_tokens" in key for key in keys)
    done = check(store, wrapped, folder)
    assert "the base's own, left out without loss: " in done["said"]
    assert done["left_out"] == []


def test_saved_copies_in_a_narrower_dtype(stores, tmp_path):
    store = stores("qwen3")
    wrapped = trained(store)
    folder = saved(wrapped, tmp_path / "a", save_embedding_layers=True)
    path = folder / codec.WEIGHTS_FILE
    found = safetensors.torch.load(path.read_bytes())
    narrow = {k: t.bfloat16() if "lora" not in k else t for k, t in found.items()}
    assert sum(t.dtype == torch.bfloat16 for t in narrow.values()) == 2  # embeddings and the head
    safetensors.torch.save_file(narrow, path)
    assert taken(store, folder)["parity"]["ok"]
    same(logits(store), logits_of(wrapped, PROMPTS))
    with pytest.raises(LayerError) as caught:  # another head…
        taken(
            store, rewrite(folder, tensors={"base_model.model.lm_head.weight": torch.ones(384, 32)})
        )
    assert len(caught.value.faults) == 1  # …but the embeddings are the base's, rounded
    assert "lm_head.weight: differs from the base's" in caught.value.faults[0]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("module", ["embed_tokens", "lm_head", "input_layernorm"])
def test_trained_copies(stores, tmp_path, module):
    store = stores("qwen3")
    wrapped = trained(store, modules_to_save=[module])
    folder = saved(wrapped, tmp_path / "a")
    theirs = logits_of(wrapped, PROMPTS)
    with pytest.raises(LayerError, match=f"{module}.weight: differs from the base's") as caught:
        taken(store, folder)
    assert "--ignore-rest" in caught.value.hint
    assert "taken" not in store.names()
    done = taken(store, folder, ignore_rest=True)
    assert f"{module}.weight" in " ".join(done["left_out"])
    assert "left out, with loss" in done["said"]
    assert done["logits_difference"] > 1e-4
    assert 0.2 < difference(logits(store), theirs) / done["logits_difference"] < 5
    record = resolve(store, "taken").layers[-1].config.imported
    assert record.left_out == tuple(done["left_out"])


def test_a_linear_saved_whole(store, tmp_path):
    """modules_to_save of a decoder's linear: its difference becomes low-rank, here exactly so."""
    wrapped = trained(store, modules_to_save=["down_proj"])
    folder = saved(wrapped, tmp_path / "a")
    done = taken(store, folder, tolerance=1e-6)
    same(logits(store), logits_of(wrapped, PROMPTS))
    assert done["error"] <= 1e-6
    assert {name.rpartition(".")[2] for name in factors(store)} == {"q_proj", "v_proj", "down_proj"}


def test_biases_of_linears(stores, tmp_path):
    from tests.stacks import new_store

    store = new_store(tmp_path / "qwen2", family="qwen2")
    wrapped = trained(store, bias="lora_only", strength=0.5)
    folder = saved(wrapped, tmp_path / "a")
    with pytest.raises(LayerError, match=r"q_proj\.bias: differs from the base's"):
        taken(store, folder)
    done = taken(store, folder, ignore_rest=True)
    assert done["logits_difference"] > 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_dora(stores, tmp_path, family):
    """Refused, or folded into the nearest low-rank update, whose error is what is measured."""
    store = stores(family)
    wrapped = trained(store, use_dora=True, strength=0.5)
    folder = saved(wrapped, tmp_path / "a")
    theirs = logits_of(wrapped, PROMPTS)
    with pytest.raises(LayerError, match="DoRA rescales") as caught:
        taken(store, folder)
    assert len(caught.value.faults) == 4
    assert "--dora fold" in caught.value.hint
    whole = taken(store, folder, dora="fold", tolerance=1e-6)
    same(logits(store), theirs)
    assert whole["error"] <= 1e-6
    errors = []
    for rank in (2, 6, 12):
        done = taken(store, folder, dora="fold", rank=rank, name=f"r{rank}")
        assert done["rank"] == rank
        off = difference(logits(store, f"r{rank}"), theirs)
        assert off == pytest.approx(done["logits_difference"], rel=2)
        assert f"{done['error']:.1e} of the difference is lost" in done["said"]
        errors.append(done["error"])
    assert errors == sorted(errors, reverse=True)
    merged = wrapped.merge_and_unload()
    base = base_model(store)
    squares = [0.0, 0.0]
    for name, parts in factors(store, "r6").items():
        delta = (merged.get_submodule(name).weight - base.get_submodule(name).weight).double()
        left = delta - parts.scale * parts.b_OR.double() @ parts.a_RI.double()
        squares[0] += float(left.square().sum())
        squares[1] += float(delta.square().sum())
    assert (squares[0] / squares[1]) ** 0.5 == pytest.approx(errors[1], rel=1e-3)


def test_over_a_stack(store, tmp_path):
    """An adapter trained over merged layers is proved over them."""
    taken(store, saved(trained(store, target_modules=["v_proj"]), tmp_path / "a"), name="below")
    from lamina.stack.compile import compile_stack

    beneath = compile_stack(store, resolve(store, "below"), dtype=torch.float32).model
    wrapped = trained(store, model=beneath, use_dora=True, target_modules=["v_proj", "o_proj"])
    folder = saved(wrapped, tmp_path / "b")
    done = taken(store, folder, on="below", dora="fold", tolerance=1e-6)
    assert len(resolve(store, "taken").layers) == 2
    same(logits(store), logits_of(wrapped, PROMPTS))
    assert done["logits_difference"] < 1e-4


def test_what_the_manifest_says(store, tmp_path):
    from lamina.core.digest import digest_file

    folder = saved(trained(store), tmp_path / "a")
    rewrite(folder, config={"base_model_name_or_path": "unsloth/pico-bnb-4bit"})
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Mine\n")
    done = taken(store, folder)
    config = resolve(store, "taken").layers[-1].config
    assert (config.origin, config.licence, config.author) == ("imported", "cc-by-4.0", None)
    assert config.imported.kind == "peft"
    assert config.imported.made_on == "unsloth/pico-bnb-4bit"
    assert {f.name: f.sha256 for f in config.imported.files} == {
        name: digest_file(folder / name) for name in (codec.CONFIG_FILE, codec.WEIGHTS_FILE)
    }
    assert config.imported.error is None
    assert "trained over packed weights" in done["said"]
    assert "same model as its source: logits differ by" in done["said"]
    assert taken(store, folder, name="again", licence="mit")["licence"] == "mit"
    assert "imported from peft: rank 4, was 4" in render(describe(store, "taken"))


def test_a_layer_that_does_nothing_is_said(store, tmp_path):
    done = taken(store, saved(trained(store, steps=0), tmp_path / "a"))
    assert done["effect"] == 0.0
    assert "changes nothing at all" in done["said"]


REFUSED = {
    "another method": ({"peft_type": "LOHA"}, "only LORA is a low-rank sum"),
    "loftq": ({"init_lora_weights": "loftq"}, "changed base weights"),
    "repeated layers": ({"layer_replication": [[0, 2]]}, "repeats decoder layers"),
    "activated": ({"alora_invocation_tokens": [1]}, "only after certain tokens"),
    "a hostile rank expression": ({"rank_pattern": {"(a+)+$": 2}}, "is not evaluated"),
    "a hostile alpha expression": ({"alpha_pattern": {"(?P<x>.*)(?P=x)": 2}}, "is not evaluated"),
    "rank by a pattern": (
        {"rank_pattern": {"q_proj": 3}},
        "config says rank 3, the tensors have 4",
    ),
    "no alpha": ({"lora_alpha": "lots"}, "lora_alpha is 'lots'"),
    "a table that is none": ({"alpha_pattern": [1]}, "alpha_pattern is no table"),
    "left out by targets": ({"target_modules": ["q_proj"]}, "target_modules does not name it"),
    "left out by layers": ({"layers_to_transform": [0]}, "leaves its layer out"),
    "excluded": ({"exclude_modules": ["v_proj"]}, "exclude_modules names it"),
    "dora without magnitudes": ({"use_dora": True}, "use_dora without lora_magnitude_vector"),
}


@pytest.mark.parametrize(("config", "reason"), REFUSED.values(), ids=REFUSED)
def test_refusals(store, tmp_path, config, reason):
    folder = rewrite(saved(trained(store), tmp_path / "a"), config=config)
    before = contents(store)
    with pytest.raises(LayerError, match=re.escape(reason)):
        taken(store, folder)
    assert contents(store) == before


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_a_head_update_is_refused_or_left_out(stores, tmp_path):
    store = stores("qwen3")
    wrapped = trained(store, target_modules=["q_proj", "lm_head"])
    folder = saved(wrapped, tmp_path / "a")
    with pytest.raises(LayerError, match="lm_head: a layer touches the decoder's linears only"):
        taken(store, folder)
    done = taken(store, folder, ignore_rest=True)
    assert set(factors(store)) == {f"model.layers.{n}.self_attn.q_proj" for n in (0, 1)}
    assert (
        0.2 < difference(logits(store), logits_of(wrapped, PROMPTS)) / done["logits_difference"] < 5
    )


def test_added_tokens_are_refused_whatever_is_asked(store, tmp_path):
    folder = saved(trained(store), tmp_path / "a")
    rewrite(folder, tensors={"base_model.model.model.embed_tokens.weight": torch.ones(390, 32)})
    with pytest.raises(LayerError, match="were tokens added"):
        taken(store, folder, ignore_rest=True)


def test_the_same_import_is_the_same_layer(store, tmp_path):
    folder = saved(trained(store), tmp_path / "a")
    first, again = taken(store, folder), taken(store, folder)
    assert (first["layer"], first["name"]) == (again["layer"], again["name"])


def test_targets_by_full_names_of_a_file_without_the_model(store, tmp_path):
    names = [f"model.layers.{n}.self_attn.q_proj" for n in (0, 1)]
    wrapped = trained(store, target_modules=names)
    folder = saved(wrapped, tmp_path / "a")
    rewrite(folder, keys=lambda k: k.replace("base_model.model.model.", "base_model.model."))
    check(store, wrapped, folder)


def test_without_peft_it_says_that_nothing_is_proved(store, tmp_path, monkeypatch):
    wrapped = trained(store)
    folder = saved(wrapped, tmp_path / "a")
    theirs = logits_of(wrapped, PROMPTS)
    monkeypatch.setitem(sys.modules, "peft", None)
    done = taken(store, folder)
    assert (done["parity"], done["logits_difference"]) == (None, None)
    assert "NOT PROVED" in done["said"]
    same(logits(store), theirs)


def test_another_reading_is_not_stored(store, tmp_path, monkeypatch):
    """Were our reading not PEFT's, nothing would land."""
    from lamina.core.errors import CheckError
    from lamina.imports import peft as reader

    folder = saved(trained(store, use_rslora=True, strength=0.5), tmp_path / "a")
    pairs = reader._pairs

    def wrong(*given):
        return {name: replace(pair, scale=pair.scale / 2) for name, pair in pairs(*given).items()}

    monkeypatch.setattr(reader, "_pairs", wrong)
    before = contents(store)
    with pytest.raises(CheckError, match="not what its source computes"):
        taken(store, folder)
    assert contents(store) == before


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_over_a_packed_base(store, tmp_path, kind):
    pytest.importorskip({"nf4": "bitsandbytes", "int8": "compressed_tensors"}[kind])
    pull(store, "pico", None, Silent(), quantise=kind)
    wrapped = trained(store, use_dora=True, target_modules=["q_proj"])
    folder = saved(wrapped, tmp_path / "dora")
    with pytest.raises(LayerError, match="differences of weights are taken from plain ones"):
        taken(store, folder, on=f"pico-{kind}", dora="fold")
    done = taken(store, saved(trained(store), tmp_path / "a"), on=f"pico-{kind}")
    assert f"NOT PROVED: the base is in {kind}" in done["said"]
    found, plain = logits(store), logits(store, f"pico-{kind}")
    assert difference(found, plain) > 1e-2
