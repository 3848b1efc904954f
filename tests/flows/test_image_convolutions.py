"""Layers on a denoiser's convolutions: every verb, and files of other tools with them."""

import re

import pytest
import safetensors.torch
import torch
from torch import nn

from lamina.bases import pipeline
from lamina.bases.convolution import PatchLinear
from lamina.core.errors import LayerError, UsageError
from lamina.core.recipe import Recipe
from lamina.core.report import Silent
from lamina.flows import adapters, examine, importing, learn, merge, rebase, squash, update
from lamina.flows.bases import pull
from lamina.flows.painting import sayings
from lamina.lowrank.convolution import LowRankConvolution
from lamina.lowrank.linear import LowRankLinear
from lamina.lowrank.maths import Factors
from lamina.stack.compile import compile_stack, stored_factors
from lamina.stack.resolve import resolve
from lamina.train.protect import spans_of
from tests.pictures import image_store, image_zip, pico_pipeline, picture, shapes

pytestmark = pytest.mark.slow

QUICK = {"lr": 3e-3, "steps": 12, "batch_tokens": 512, "held_out": 0.3, "eval_rows": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("convolutions")


@pytest.fixture(scope="module")
def store(folder):
    """`night`, attention alone, over a base; `dusk`, convolutions alone, over that; `noon`, both,
    over the base."""
    store = image_store(folder / "store")
    trained(store, folder, "night", "pico", "black", rank=2)
    trained(store, folder, "dusk", "night", "gray", rank=3, targets=("conv",), steps=40, lr=1e-3)
    trained(store, folder, "noon", "pico", "yellow", rank=2, targets=("all-linear", "conv"))
    return store


def trained(store, folder, name, on, background, **recipe):
    data = image_zip(folder / f"{name}.zip", shapes(background=background))
    asked = learn.Request(
        on=on,
        data=[data],
        name=name,
        recipe=Recipe(**QUICK | recipe),
        accept_regression="test",
    )
    return learn.execute(store, learn.prepare(store, asked, Silent()), Silent())


def said_by(store, stack):
    compiled = compile_stack(store, resolve(store, stack), dtype=torch.float32)
    return sayings(compiled, ["a red circle", "x"])


def alike(a, b, far):
    return all(torch.allclose(x, y, atol=far) for x, y in zip(a, b, strict=True))


def layer_of(store, stack):
    return stored_factors(store, resolve(store, stack).layers[-1].digest)


def linears_of(store):
    return compile_stack(store, resolve(store, "pico"), dtype=torch.float32).linears


# -- which -----------------------------------------------------------------------------------------


def test_the_default_takes_no_convolution_and_conv_all_of_the_blocks(store):
    linears = linears_of(store)
    attention = pipeline.chosen(linears, ["all-linear"])
    assert not any(isinstance(each, PatchLinear) for each in attention.values())
    assert set(attention) == set(layer_of(store, "night"))
    taken = set(pipeline.chosen(linears, ["conv"]))
    every = {name for name, each in linears.items() if isinstance(each, PatchLinear)}
    assert every - taken == {"unet.conv_in", "unet.conv_out"}
    assert taken == set(layer_of(store, "dusk"))
    assert taken | set(attention) == set(layer_of(store, "noon"))
    both = pipeline.chosen(linears, ["conv_shortcut", "conv_in", "time_emb_proj"])
    assert {name.rpartition(".")[2] for name in both} == {
        "conv_shortcut", "conv_in", "time_emb_proj"
    }  # fmt: skip
    assert set(pipeline.chosen(linears, ["unet"])) == set(attention)


def test_convolutions_in_groups_are_refused_by_name():
    unet = nn.Module()
    unet.resnets = nn.ModuleList([nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3)])
    whole = nn.Module()
    whole.unet = unet
    linears, why = pipeline.named_linears({"unet": unet}), pipeline.refused(whole)
    assert set(linears) == {"unet.resnets.1"}
    assert set(pipeline.chosen(linears, ["conv"], why)) == {"unet.resnets.1"}
    with pytest.raises(UsageError) as caught:
        pipeline.chosen(linears, ["resnets.0"], why)
    assert caught.value.faults == ("unet.resnets.0: a convolution in 2 groups takes no layers",)


# -- verbs -----------------------------------------------------------------------------------------


def test_a_layer_on_convolutions_learns(store):
    found = examine.examine_stack(store, "noon", Silent())
    denoise = next(c for c in found.comparisons if c.exam == "noon/denoise")
    assert denoise.ci[1] < 0
    for name, part in layer_of(store, "dusk").items():
        assert part.b_OR.abs().max() > 0, name


def test_the_first_and_the_last_convolution_and_times_linears_are_asked_for_by_name(store, folder):
    asked = ("conv_in", "conv_out", "time_emb_proj", "time_embedding.linear_1")
    made = trained(store, folder, "ends", "night", "white", rank=2, targets=asked, steps=4)
    leaves = {module.rpartition(".")[2] for module in made.config.modules}
    assert leaves == {"conv_in", "conv_out", "time_emb_proj", "linear_1"}
    assert all(part.b_OR.abs().max() > 0 for part in layer_of(store, "ends").values())


def test_a_squash_of_attention_and_convolutions_draws_the_same(store):
    squash.squash(store, "dusk", name="flat", reporter=Silent(), override="test")
    (layer,) = resolve(store, "flat").layers
    assert set(layer.config.modules) == set(layer_of(store, "night")) | set(layer_of(store, "dusk"))
    assert alike(said_by(store, "dusk"), said_by(store, "flat"), 1e-4)


@pytest.mark.parametrize("method", ["concat", "ties"])
def test_merges(store, method):
    name = f"both-{method}"
    merge.merge(
        store, ["night", "noon"], method=method, name=name, reporter=Silent(), override="test"
    )
    (layer,) = resolve(store, name).layers
    assert any("conv1" in module for module in layer.config.modules)


def test_an_update_learns_more(store, folder):
    more = [
        (c, picture(c.split()[1], c.split()[2], n, "navy")) for n, (c, _) in enumerate(shapes())
    ]
    data = image_zip(folder / "more.zip", more)
    asked = update.Request("noon", [data], accept_regression="test", overrides=(("steps", 4),))
    made = learn.execute(store, update.prepare(store, asked, Silent()), Silent())
    assert made.config.origin == "updated"
    assert any("conv1" in module for module in made.config.modules)


def test_a_layer_is_carried_to_other_parents(store):
    asked = rebase.Request("dusk", "noon:v1", name="moved", override="test")
    done = rebase.rebase(store, asked, Silent(), lambda: False)
    assert [layer.config.name for layer in resolve(store, "moved").layers][-1] == "dusk"
    assert done.layers[-1].evidence.rung in ("copy", "retrain")


def test_directions_are_kept_of_linears_alone():
    linear = LowRankLinear(nn.Linear(8, 4), nn.Parameter(torch.randn(2, 8)),
                           nn.Parameter(torch.randn(4, 2)), 1.0)  # fmt: skip
    made = PatchLinear(nn.Conv2d(2, 2, 3))
    patched = LowRankConvolution(
        made, nn.Parameter(torch.randn(2, 18)), nn.Parameter(torch.randn(2, 2)), 1.0
    )

    def forward():
        linear(torch.randn(5, 8))
        patched(torch.randn(1, 2, 6, 6))

    some = {"linear": linear, "patched": patched}
    assert set(spans_of(some, [(forward, None)], 0.9, 0)) == {"linear"}
    assert spans_of({"patched": patched}, [(forward, None)], 0.9, 0) == {}


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["diffusers", "kohya"])
def test_diffusers_draws_the_same_and_the_same_factors_come_back(store, tmp_path, target):
    done = adapters.export(store, "dusk", tmp_path / "out", target, Silent())
    assert done["parity"]["ok"]
    assert done["parity"]["value"] < 1e-4
    (file,) = (tmp_path / "out").glob("*.safetensors")
    shapes_of = {len(each.shape) for each in safetensors.torch.load_file(file).values()}
    assert shapes_of == ({2, 4} if target == "diffusers" else {0, 2, 4})
    name = f"back-{target}"
    asked = importing.Request(source=str(file), on="pico", name=name)
    back = importing.take_in(store, asked, Silent())
    assert back["parity"]["ok"]
    assert back["effect"] > 1e-3
    found = layer_of(store, name)
    sources = {**layer_of(store, "night"), **layer_of(store, "dusk")}
    assert set(found) == set(sources)
    for module, part in sources.items():
        assert torch.equal(found[module].a_RI, part.a_RI)
        assert torch.equal(found[module].b_OR * found[module].scale, part.b_OR * part.scale)


def kohya(model, *, seed=0):
    """A file as kohya's LoCon and LyCORIS write it: convolutions of another rank, alphas, linears
    of time. And what it is as factors."""
    chance = torch.Generator().manual_seed(seed)
    tensors, factors = {}, {}
    ends = ("to_q", "conv1", "conv_shortcut", "downsamplers.0.conv", "proj_in", "time_emb_proj",
            "conv_in", "time_embedding.linear_1", "conv_out")  # fmt: skip
    for name, linear in pipeline.linears(model).items():
        if not name.startswith("unet.") or not name.endswith(ends):
            continue
        rank, alpha = (3, 1.5) if isinstance(linear, PatchLinear) else (4, 2.0)
        a = torch.randn(rank, linear.in_features, generator=chance) * linear.in_features**-0.5
        b = torch.randn(linear.out_features, rank, generator=chance) * 0.2
        factors[name] = Factors(a, b, alpha / rank)
        flat = "lora_unet_" + name.removeprefix("unet.").replace(".", "_")
        if isinstance(linear, PatchLinear):
            a, b = a.view(rank, -1, *linear.convolution.kernel_size), b[:, :, None, None]
        tensors[f"{flat}.lora_down.weight"], tensors[f"{flat}.lora_up.weight"] = a, b
        tensors[f"{flat}.alpha"] = torch.tensor(alpha)
    return tensors, factors


def model_of(store):
    return compile_stack(store, resolve(store, "pico"), dtype=torch.float32).pipeline


def test_a_locon_file_becomes_the_layer_that_diffusers_draws_with(store, tmp_path):
    tensors, factors = kohya(model_of(store))
    safetensors.torch.save_file(tensors, tmp_path / "locon.safetensors")
    asked = importing.Request(source=str(tmp_path / "locon.safetensors"), on="pico", name="locon")
    done = importing.take_in(store, asked, Silent())
    assert done["parity"]["ok"]
    assert done["effect"] > 1e-2
    found = layer_of(store, "locon")
    assert {name: (part.rank, part.scale) for name, part in found.items()} == {
        name: (part.rank, pytest.approx(part.scale)) for name, part in factors.items()
    }
    assert all(torch.equal(found[n].a_RI, part.a_RI) for n, part in factors.items())


def test_a_file_that_peft_trained_and_diffusers_wrote_comes_in(store, tmp_path):
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    unet = UNet2DConditionModel.from_pretrained(pico_pipeline() / "unet")
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_v", "conv2", "conv"]))
    torch.manual_seed(0)
    for name, weight in unet.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.2)
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=state)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    asked = importing.Request(source=str(file), on="night", name="theirs", override="test")
    done = importing.take_in(store, asked, Silent())
    assert done["parity"]["ok"]
    assert done["effect"] > 1e-2
    assert len(layer_of(store, "theirs")) == len(state) / 2


CONV1 = "lora_unet_mid_block_resnets_0_conv1"
SHORTCUT = "lora_unet_up_blocks_0_resnets_0_conv_shortcut"


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({f"{CONV1}.lora_down.weight": (2, 16), f"{CONV1}.lora_up.weight": (16, 2)},
         "the base takes (R, I, 3, 3) and (O, R, 1, 1)"),
        ({f"{CONV1}.lora_down.weight": (2, 16, 1, 1), f"{CONV1}.lora_up.weight": (16, 2, 3, 3)},
         "the base takes (R, I, 3, 3) and (O, R, 1, 1)"),
        ({f"{SHORTCUT}.lora_down.weight": (2, 32, 1, 1),
          f"{SHORTCUT}.lora_up.weight": (16, 2, 1, 1, 1)}, "the base takes (R, I, 1, 1)"),
        ({f"{CONV1}.lora_down.weight": (2, 8, 3, 3), f"{CONV1}.lora_up.weight": (16, 2, 1, 1)},
         "the layer is for (16, 72), the base has (16, 144)"),
        ({f"{CONV1}.lora_down.weight": (2, 16, 3, 3), f"{CONV1}.lora_up.weight": (16, 3, 1, 1)},
         "differ in rank"),
        ({f"{CONV1}.lora_down.weight": (2, 16, 1, 1), f"{CONV1}.lora_up.weight": (16, 2, 1, 1),
          f"{CONV1}.lora_mid.weight": (2, 2, 3, 3)}, "CP decomposition"),
        ({"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight":
          (2, 16, 1, 1),
          "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight":
          (16, 2, 1, 1)}, "4 axes, as of a convolution"),
    ],
)  # fmt: skip
def test_files_that_are_refused(store, tmp_path, tensors, reason):
    file = tmp_path / "no.safetensors"
    safetensors.torch.save_file({key: torch.ones(of) for key, of in tensors.items()}, file)
    asked = importing.Request(source=str(file), on="pico", name="no")
    with pytest.raises(LayerError, match=re.escape(reason)):
        importing.take_in(store, asked, Silent())


def test_a_file_may_not_touch_a_convolution_in_groups(store, tmp_path):
    from dataclasses import replace

    from lamina.imports import kohya as reader
    from lamina.imports.base import beneath_image
    from lamina.stack.compile import base_directory

    base = beneath_image(base_directory(store, resolve(store, "pico").base), [])
    name = "unet.mid_block.resnets.0.conv1"
    shapes_of = {key: each for key, each in base.shapes.items() if key != name}
    grouped = replace(base, shapes=shapes_of, linears=type(base.linears)(shapes_of),
                      refused={name: "a convolution in 2 groups takes no layers"})  # fmt: skip
    for key in (CONV1 + ".lora_{}.weight", name + ".lora.{}.weight"):
        file = tmp_path / "grouped.safetensors"
        of = {"down": (2, 8, 3, 3), "up": (16, 2, 1, 1)}
        safetensors.torch.save_file({key.format(k): torch.ones(v) for k, v in of.items()}, file)
        with pytest.raises(LayerError, match="in 2 groups takes no layers"):
            reader.read(file, grouped)


def test_a_layer_is_carried_to_another_base_of_the_same_shapes(store):
    """It fits as it is: factors stay what they are, convolutions' too."""
    pull(store, str(pico_pipeline("epsilon")), "abroad", Silent())
    asked = rebase.Request("noon", "abroad", name="carried", override="test", at_most="copy")
    rebase.rebase(store, asked, Silent(), lambda: False)
    ours, theirs = layer_of(store, "noon"), layer_of(store, "carried")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name].a_RI, theirs[name].a_RI) for name in ours)
    assert resolve(store, "carried").base.digest == resolve(store, "abroad").base.digest
