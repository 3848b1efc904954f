"""LoRA files of image tools, both ways, with diffusers itself on the other side."""

import json

import pytest
import safetensors.torch
import torch

from lamina.bases.pipeline import linears
from lamina.core.errors import LayerError, UsageError
from lamina.core.manifests import StackedLayer
from lamina.core.names import Name
from lamina.core.report import Silent
from lamina.flows import adapters, importing
from lamina.flows.painting import sayings
from lamina.lowrank.maths import Factors
from lamina.stack.compile import compile_stack
from lamina.stack.resolve import over_base, resolve
from lamina.store.refs import ANYTHING
from tests.pictures import image_store
from tests.stacks import put_layer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A base and `two`, a stack of two layers of random factors, the text encoder's too."""
    store = image_store(tmp_path_factory.mktemp("exchange") / "store")
    model = compile_stack(store, resolve(store, "pico"), dtype=torch.float32).pipeline
    parents: list[StackedLayer] = []
    for seed in range(2):
        layer = put_layer(store, f"layer{seed}", factors(model, seed), parents)
        parents.append(StackedLayer(layer=layer.digest, weight=1 - 0.3 * seed))
    base = over_base(store, store.bases()["pico"], label="pico").config.base
    store.tag(Name("two"), store.put_stack(base, parents), expected=ANYTHING)
    return store


def factors(model, seed):
    chance = torch.Generator().manual_seed(seed)
    return {
        name: Factors(
            torch.randn(2, m.in_features, generator=chance) * m.in_features**-0.5,
            torch.randn(m.out_features, 2, generator=chance) * 0.2,
            0.7,
        )
        for name, m in linears(model).items()
        if name.endswith(("to_q", "to_out.0", "q_proj", "out_proj"))
    }


def said_by(store, stack):
    return sayings(compile_stack(store, resolve(store, stack), dtype=torch.float32), ["a red line"])


@pytest.mark.parametrize("target", ["diffusers", "kohya"])
def test_diffusers_draws_the_same_and_the_file_comes_back(store, tmp_path, target):
    done = adapters.export(store, "two", tmp_path / "out", target, Silent())
    assert done["parity"]["ok"]
    assert done["parity"]["value"] < 1e-4
    assert "pixel" in done["parity"]["measure"]
    (file,) = (tmp_path / "out").glob("*.safetensors")
    asked = importing.Request(source=str(file), on="pico", name=f"back-{target}")
    back = importing.take_in(store, asked, Silent())
    assert back["parity"]["ok"]
    assert back["effect"] > 1e-3
    (ours,), (theirs,) = said_by(store, "two"), said_by(store, f"back-{target}")
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert not torch.allclose(ours, said_by(store, "pico")[0], atol=1e-3)


def test_a_file_goes_over_a_stack_too(store, tmp_path):
    adapters.export(store, "two", tmp_path / "out", "diffusers", Silent())
    file = tmp_path / "out" / "pytorch_lora_weights.safetensors"
    asked = importing.Request(source=str(file), on="two", name="twice", override="test")
    back = importing.take_in(store, asked, Silent())
    assert back["parity"]["ok"]
    assert len(resolve(store, "twice").layers) == 3


def test_alpha_in_the_metadata_scales(store, tmp_path):
    adapters.export(store, "two", tmp_path / "out", "diffusers", Silent())
    file = tmp_path / "out" / "pytorch_lora_weights.safetensors"
    tensors = {k: v for k, v in safetensors.torch.load_file(file).items() if k[:5] == "unet."}
    rank = min(v.shape[0] for k, v in tensors.items() if "lora_A" in k)
    noted = {"unet.r": rank, "unet.lora_alpha": 3 * rank}
    names = sorted({k.rpartition(".lora_")[0].removeprefix("unet.") for k in tensors})
    noted["unet.target_modules"] = names
    scaled = tmp_path / "scaled.safetensors"
    said = {"lora_adapter_metadata": json.dumps(noted), "format": "pt"}
    safetensors.torch.save_file(tensors, scaled, said)
    asked = importing.Request(source=str(scaled), on="pico", name="scaled")
    assert importing.take_in(store, asked, Silent())["parity"]["ok"]


def test_the_base_comes_out_as_diffusers_reads_it(store, tmp_path):
    done = adapters.export(store, "pico", tmp_path / "base", "diffusers-base", Silent())
    assert done["parity"]["ok"]
    assert (tmp_path / "base" / "unet" / "config.json").is_file()


def test_targets_for_words_are_refused(store, tmp_path):
    with pytest.raises(UsageError, match="draws"):
        adapters.export(store, "two", tmp_path / "out", "gguf", Silent())
    assert not (tmp_path / "out").exists()


def test_a_file_of_another_base_is_refused_whole(store, tmp_path):
    file = tmp_path / "other.safetensors"
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    wide = {
        f"{name}.lora_A.weight": torch.ones(2, 320),
        f"{name}.lora_B.weight": torch.ones(320, 2),
    }
    safetensors.torch.save_file(wide, file)
    asked = importing.Request(source=str(file), on="pico", name="no")
    with pytest.raises(LayerError) as caught:
        importing.take_in(store, asked, Silent())
    assert "320" in "".join(caught.value.faults)
