"""GGUF LoRAs, kohya's and diffusers' files, mlx-lm's adapters."""

import json
import re

import gguf
import numpy as np
import pytest
import safetensors.torch
import torch

from lamina.bases import families
from lamina.core.errors import LayerError
from lamina.core.manifests import StackedLayer
from lamina.core.names import Name
from lamina.export import llama_cpp
from lamina.export.gguf_family import FAMILIES as GGUF_FAMILIES
from lamina.export.gguf_family import apart, interleave
from lamina.flows.adapters import export
from lamina.imports.kohya import Flat
from lamina.stack.resolve import resolve
from lamina.store.refs import ANYTHING
from tests.flows.world import Said
from tests.imports.others import contents, factors, logits, same, taken
from tests.stacks import base_model, new_store, put_layer, put_stack, random_factors

pytestmark = pytest.mark.slow  # many files of many kinds

FAMILIES = ("llama", "qwen3", "gemma3_text")


def stacked(store):
    """Two random layers, the second of a few linears, called `second`."""
    put_stack(store, "second", 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_our_gguf_lora_comes_back(stores, tmp_path, family):
    """What llama.cpp proved on the way out is the same stack on the way in."""
    store = stores(family)
    stacked(store)
    export(store, "second", tmp_path / "out", "gguf-lora", Said())
    certificate = json.loads((tmp_path / "out" / "lamina.json").read_text())
    assert certificate["parity"]["ok"] or llama_cpp.version() is None
    done = taken(store, tmp_path / "out" / "adapter.gguf")
    assert done["kind"] == "gguf-lora"
    same(logits(store), logits(store, "second"))
    taken(store, tmp_path / "out", name="folder") if not (
        tmp_path / "out" / "lamina.json"
    ).unlink() else None
    same(logits(store, "folder"), logits(store, "second"))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_converters_layout(tmp_path, family, kind):
    """As convert_lora_to_gguf.py writes it: one alpha, each tensor's rank its own, any type."""
    store = new_store(tmp_path / "s", hidden=64, family=family)
    generator = torch.Generator().manual_seed(0)
    config = json.loads((tmp_path / "s-pico" / "config.json").read_text())
    linears = families.linears(base_model(store))
    rank, alpha = 32, 24.0
    made = GGUF_FAMILIES[family]
    named = made.names(config["num_hidden_layers"])
    qtype = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", made.name)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    writer.add_string("general.author", "eve")
    writer.add_string("general.license", "mit")
    expected = {}
    for module in ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.k_proj",
                   "model.layers.1.mlp.down_proj"):  # fmt: skip
        linear = linears[module]
        a_RI = torch.randn(rank, linear.in_features, generator=generator) * 0.1
        b_OR = torch.randn(linear.out_features, rank, generator=generator) * 0.1
        tensors = {"lora_a": a_RI, "lora_b": made.convert(module, b_OR, config)}
        kept = []
        for side, tensor in tensors.items():
            packed = gguf.quants.quantize(tensor.numpy(), qtype)
            writer.add_tensor(f"{named(module + '.weight')}.{side}", packed, raw_dtype=qtype)
            kept.append(torch.from_numpy(gguf.quants.dequantize(packed, qtype).copy()))
        b_back = made.restore_rows(module, kept[1].reshape(b_OR.shape), config)
        assert (b_back - b_OR).abs().max() < 1e-2
        expected[module] = alpha / rank * b_back @ kept[0].reshape(a_RI.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    done = taken(store, tmp_path / "a.gguf")
    assert (done["licence"], done["author"]) == ("mit", "eve")
    found = factors(store)
    assert set(found) == set(expected)
    for module, delta in expected.items():
        parts = found[module]
        torch.testing.assert_close(parts.scale * parts.b_OR @ parts.a_RI, delta)


def test_permutation_and_back():
    rows = torch.randn(32, 5)
    assert torch.equal(apart(interleave(rows, 4), 4), rows)
    assert not torch.equal(interleave(rows, 4), rows)


AQ = "blk.0.attn_q.weight"


def gguf_lora(path, *, arch="llama", kind="adapter", adapter="lora", alpha=4.0, tensors=None):
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type(kind)
    writer.add_string("adapter.type", adapter)
    if alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    good = {"blk.0.attn_q.weight.lora_a": (2, 32), "blk.0.attn_q.weight.lora_b": (32, 2)}
    for name, shape in (good if tensors is None else tensors).items():
        writer.add_tensor(name, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"arch": "qwen2"}, "for llama.cpp's qwen2, the base is llama"),
        ({"adapter": "alora"}, "no LoRA adapter"),
        ({"tensors": {"token_embd.weight.lora_a": (2, 3), "token_embd.weight.lora_b": (3, 2)}},
         "token_embd.weight: the base has no such linear"),
        ({"tensors": {"blk.0.attn_norm.weight": (32,)}}, "neither lora_a nor lora_b"),
        ({"tensors": {"blk.0.attn_q.weight.lora_a": (2, 32)}}, "no lora_b"),
        ({"tensors": {f"{AQ}.lora_a": (2, 16), f"{AQ}.lora_b": (32, 2)}},
         r"the layer is for (32, 16), the base has (32, 32)"),
        ({"tensors": {f"{AQ}.lora_a": (3, 32), f"{AQ}.lora_b": (32, 2)}},
         "differ in rank"),
        ({"alpha": float("nan")}, "its scale is nan"),
    ],
)  # fmt: skip
def test_gguf_loras_that_are_refused(store, tmp_path, how, reason):
    before = contents(store)
    with pytest.raises(LayerError, match=re.escape(reason)):
        taken(store, gguf_lora(tmp_path / "a.gguf", **how))
    assert contents(store) == before


def test_no_alpha_is_scale_one(store, tmp_path):
    for name, alpha in (("none", None), ("zero", 0.0)):
        taken(store, gguf_lora(tmp_path / f"{name}.gguf", alpha=alpha), name=name)
        assert factors(store, name)["model.layers.0.self_attn.q_proj"].scale == 1.0


# -- kohya and diffusers ---------------------------------------------------------------------------


def kohya(layer, *, prefix="lora_te_text_model_encoder_", alpha=True):
    tensors = {}
    for module, parts in layer.items():
        name = prefix + module.removeprefix("model.").replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = parts.a_RI
        scale = 1.0 if alpha else parts.scale
        tensors[f"{name}.lora_up.weight"] = parts.b_OR * scale
        if alpha:
            tensors[f"{name}.alpha"] = torch.tensor(parts.scale * parts.rank)
    return tensors


def write(path, tensors, **metadata):
    plain = {key: tensor.contiguous() for key, tensor in tensors.items()}
    safetensors.torch.save_file(plain, path, metadata=metadata or None)
    return path


@pytest.fixture
def layer(store):
    """Random factors, also as the stack `known`."""
    made = random_factors(store, rank=3, scale=0.7)
    digest = put_layer(store, "known", made).digest
    stack = store.put_stack(resolve(store, "pico").config.base, [StackedLayer(layer=digest)])
    store.tag(Name("known"), stack, expected=ANYTHING)
    return made


@pytest.mark.parametrize(
    "prefix", ["lora_te_text_model_encoder_", "lora_te1_", "lora_unet_", "lora_transformer_", "",
               "lora_model_"],
)  # fmt: skip
@pytest.mark.parametrize("alpha", [True, False])
def test_kohya(store, layer, tmp_path, prefix, alpha):
    path = write(
        tmp_path / "a.safetensors", kohya(layer, prefix=prefix, alpha=alpha),
        **{"modelspec.author": "eve", "modelspec.license": "mit", "ss_sd_model_name": "pico"},
    )  # fmt: skip
    done = taken(store, path)
    assert (done["kind"], done["author"], done["licence"]) == ("kohya", "eve", "mit")
    same(logits(store), logits(store, "known"))


@pytest.mark.parametrize(
    "stem", ["lora_linear_layer.{}.weight", "lora.{}.weight", "lora_{}.weight"]
)
@pytest.mark.parametrize("prefix", ["", "text_model.", "base_model.model.model."])
def test_diffusers(store, layer, tmp_path, stem, prefix):
    tensors = {}
    for module, parts in layer.items():
        name = prefix + module.removeprefix("model.")
        tensors[f"{name}.{stem.format('down')}"] = parts.a_RI
        tensors[f"{name}.{stem.format('up')}"] = parts.b_OR * parts.scale
    assert taken(store, write(tmp_path / "a.safetensors", tensors))["kind"] == "kohya"
    same(logits(store), logits(store, "known"))


QP = "lora_te_layers_0_self_attn_q_proj"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({f"{QP}.hada_w1_a": (4, 2)}, "a Hadamard product (LoHa)"),
        ({f"{QP}.lokr_w1": (4, 4)}, "a Kronecker product (LoKr)"),
        ({f"{QP}.lora_mid.weight": (4, 4, 3, 3)}, "a convolution in three factors (CP"),
        ({f"{QP}.dora_scale": (32, 1)}, "DoRA"),
        ({f"{QP}.diff": (32, 32)}, "a whole difference"),
        ({f"{QP}.lora_down.weight": (2, 32, 1, 1)}, "4 axes, as of a convolution"),
        ({f"{QP}.alpha": (2,)}, "alpha is no number"),
        ({"lora_unet_mid_block_x.lora_down.weight": (2, 3),
          "lora_unet_mid_block_x.lora_up.weight": (3, 2)}, "the base has no such linear"),
        ({"lora_te1_layers_0_self_attn_q_proj.lora_down.weight": (2, 32),
          "lora_te1_layers_0_self_attn_q_proj.lora_up.weight": (32, 2)}, "is model.layers.0"),
        ({f"{QP.replace('_q_', '_v_')}.lora_up.weight": (16, 2)}, "no lora_down"),
    ],
)  # fmt: skip
def test_kohya_refusals(store, tmp_path, more, reason):
    good = {f"{QP}.lora_down.weight": (2, 32), f"{QP}.lora_up.weight": (32, 2), f"{QP}.alpha": ()}
    tensors = {key: torch.ones(shape) for key, shape in (good | more).items()}
    with pytest.raises(LayerError, match=re.escape(reason)):
        taken(store, write(tmp_path / "a.safetensors", tensors))


def test_underscores_that_may_mean_two_modules():
    flat = Flat(["model.layers.0.a.b_c", "model.layers.0.a_b.c", "model.layers.0.a.d"])
    assert flat.find("lora_te_layers_0_a_b_c") == ["model.layers.0.a.b_c", "model.layers.0.a_b.c"]
    assert flat.find("lora_te_layers_0_a_d") == ["model.layers.0.a.d"]


# -- mlx -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_our_mlx_export_comes_back(stores, tmp_path, family):
    store = stores(family)
    stacked(store)
    export(store, "second", tmp_path / "out", "mlx", Said())
    done = taken(store, tmp_path / "out")
    assert done["kind"] == "mlx"
    same(logits(store), logits(store, "second"))
    file = taken(store, tmp_path / "out" / "adapters.safetensors", name="file")
    assert file["kind"] == "mlx"


def mlx(folder, layer, scale=0.7, **config):
    folder.mkdir()
    tensors = {}
    for module, parts in layer.items():
        tensors[f"{module}.lora_a"], tensors[f"{module}.lora_b"] = parts.a_RI.T, parts.b_OR.T
    write(folder / "adapters.safetensors", tensors)
    settings = {"rank": 3, "scale": scale, "dropout": 0.0}
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": settings} | config
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_mlx_scales(store, layer, tmp_path):
    taken(store, mlx(tmp_path / "now", layer), name="now")
    same(logits(store, "now"), logits(store, "known"))
    old = {"rank": 3, "alpha": 2.1, "scale": 1.0, "dropout": 0.0}
    taken(store, mlx(tmp_path / "old", layer, lora_parameters=old), name="old")
    same(logits(store, "old"), logits(store, "known"))
    with pytest.raises(LayerError, match="states no scale"):
        taken(store, mlx(tmp_path / "bad", layer, lora_parameters={"rank": 3}))
    with pytest.raises(LayerError, match="'full', no low-rank sum"):
        taken(store, mlx(tmp_path / "full", layer, fine_tune_type="full"))


def test_mlx_dora(store, layer, tmp_path):
    """mlx-lm's m (W + s (A B)^T) / |…|, by its own formula."""
    folder = mlx(tmp_path / "a", layer, fine_tune_type="dora")
    path = folder / "adapters.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())
    model = base_model(store)
    for module, parts in layer.items():
        linear = model.get_submodule(module)
        magnitude = linear.weight.norm(dim=1) * 1.2
        tensors[f"{module}.m"] = magnitude
        moved = linear.weight + 0.7 * (parts.a_RI.T @ parts.b_OR.T).T
        linear.weight.data = magnitude[:, None] * moved / moved.norm(dim=1, keepdim=True)
    write(path, tensors)
    with pytest.raises(LayerError, match="DoRA"):
        taken(store, folder)
    taken(store, folder, dora="fold", tolerance=1e-6)
    from lamina.export.parity import logits_of
    from tests.imports.others import PROMPTS

    same(logits(store), logits_of(model, PROMPTS))
