"""Pipelines of diffusers as bases: every part counts, every kind that is named works."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lamina.bases import pipeline
from lamina.bases.convert import pull
from lamina.bases.draw import Style, draw
from lamina.bases.pipeline_files import describe, nested, write_folder
from lamina.bases.sources import parse_source
from lamina.core.errors import BaseError, UsageError
from lamina.train.noising import Noising
from tests.bases.stand_in import serve
from tests.pictures import pico_pipeline

pytestmark = pytest.mark.slow


@pytest.fixture
def source(tmp_path):
    shutil.copytree(pico_pipeline(), tmp_path / "source")
    return tmp_path / "source"


def pulled(source, out):
    out.mkdir()
    write_folder(source, out, link=False)
    return describe(out, licence=None)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_base_is_flat_and_comes_back_nested_to_the_byte(source, tmp_path):
    pulled(source, tmp_path / "out")
    assert all(path.is_file() for path in (tmp_path / "out").iterdir())
    with nested(tmp_path / "out") as folder:
        name = "unet/diffusion_pytorch_model.safetensors"
        assert (folder / name).read_bytes() == (source / name).read_bytes()
        assert json.loads((folder / "model_index.json").read_text())["vae"][1] == "AutoencoderKL"


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_number_in_any_part_makes_another_base(source, tmp_path, part):
    before = pulled(source, tmp_path / "one")
    (file,) = (source / part).glob("*.safetensors")
    tensors = load_file(file)
    first = sorted(tensors)[0]
    tensors[first] = tensors[first] + 1
    save_file(tensors, file, {"format": "pt"})
    assert pulled(source, tmp_path / "two").identity != before.identity


def test_what_builds_the_parts_counts_and_names_and_versions_do_not(source, tmp_path):
    before = pulled(source, tmp_path / "one")
    edit(source / "unet" / "config.json", _name_or_path="elsewhere", _diffusers_version="9")
    assert pulled(source, tmp_path / "two").identity == before.identity
    edit(source / "scheduler" / "scheduler_config.json", beta_end=0.02)
    noisier = pulled(source, tmp_path / "three")
    assert noisier.identity != before.identity
    edit(source / "tokenizer" / "tokenizer_config.json", model_max_length=5)
    assert pulled(source, tmp_path / "four").identity != noisier.identity
    assert (before.modality, before.family) == ("image", "StableDiffusionPipeline")


def test_every_part_that_cannot_be_used_is_named(source, tmp_path):
    (file,) = (source / "vae").glob("*.safetensors")
    file.rename(file.with_suffix(".bin"))
    edit(
        source / "model_index.json",
        text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
        unet=["diffusers", "UNetMotionModel"],
    )
    with pytest.raises(BaseError) as caught:
        pulled(source, tmp_path / "out")
    faults = "\n".join(caught.value.faults)
    assert "UNetMotionModel is not known" in faults
    assert "text_encoder_2: a part that is not known" in faults
    edit(source / "model_index.json", unet=["diffusers", "UNet2DConditionModel"])
    index = json.loads((source / "model_index.json").read_text())
    del index["text_encoder_2"]
    (source / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BaseError) as caught:
        pulled(source, tmp_path / "other")
    assert "no vae/*.safetensors (pickles are never opened)" in "\n".join(caught.value.faults)


def test_a_safety_checker_is_left_out_aloud(source, tmp_path):
    edit(source / "model_index.json", safety_checker=["x", "SafetyChecker"])
    (tmp_path / "out").mkdir()
    assert write_folder(source, tmp_path / "out", link=False) == (
        "safety_checker is left out: it is not needed to draw",
    )


def with_transformer(source):
    """The same base with a PixArt transformer and a flow in place of the UNet."""
    from diffusers import FlowMatchEulerDiscreteScheduler, PixArtTransformer2DModel

    shutil.rmtree(source / "unet")
    torch.manual_seed(0)
    PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
        patch_size=2,
    ).save_pretrained(source / "transformer")
    FlowMatchEulerDiscreteScheduler().save_pretrained(source / "scheduler")
    index = json.loads((source / "model_index.json").read_text())
    del index["unet"]
    index |= {
        "_class_name": "PixArtAlphaPipeline",
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }
    (source / "model_index.json").write_text(json.dumps(index))


def test_a_transformer_over_latents_draws_and_takes_layers(source, tmp_path):
    with_transformer(source)
    pulled(source, tmp_path / "out")
    model = pipeline.load(tmp_path / "out", dtype=torch.float32).model
    images = draw(model, ["a red circle", "x"], [1, 2], Style(steps=3))
    assert images.shape == (2, 3, 16, 16)
    assert torch.isfinite(images).all()
    found = pipeline.linears(model)
    assert {name.partition(".")[0] for name in found} == {"transformer", "text_encoder"}
    assert Noising.of(model.schedule).says == "flow"


def test_targets(source, tmp_path):
    pulled(source, tmp_path / "out")
    found = pipeline.linears(pipeline.load(tmp_path / "out", dtype=torch.float32).model)
    whole = pipeline.chosen(found, ["all-linear"])
    assert all(name.startswith("unet.") for name in whole)
    both = pipeline.chosen(found, ["all-linear", "text_encoder"])
    assert {name for name in both if name not in whole} == {
        name for name in found if name.startswith("text_encoder.")
    }
    assert all(".attentions." in name for name in whole)
    assert set(pipeline.chosen(found, ["attn1.to_q"])) < set(whole)
    with pytest.raises(UsageError, match="no linear"):
        pipeline.chosen(found, ["to_q", "q_prj"])


# -- noise -----------------------------------------------------------------------------------------

PLAIN = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("says", ["epsilon", "v_prediction", "sample"])
def test_noise_is_that_of_diffusers(says):
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(**PLAIN, prediction_type=says)
    ours = Noising.of(dict(theirs.config))
    x, noise = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    times = torch.tensor([0, 500, 999])
    assert torch.allclose(ours.noisy(x, noise, times), theirs.add_noise(x, noise, times), atol=1e-6)
    if says == "v_prediction":
        wanted = theirs.get_velocity(x, noise, times)
    else:
        wanted = noise if says == "epsilon" else x
    assert torch.allclose(ours.target(x, noise, times), wanted, atol=1e-6)


@pytest.mark.parametrize("says", ["epsilon", "v_prediction", "sample"])
def test_weights_make_all_targets_errors_of_the_image(says):
    """min-SNR weighs errors of x by min(SNR, gamma), whatever is predicted (arXiv:2303.09556)."""
    ours = Noising.of(PLAIN | {"prediction_type": says})
    times = torch.tensor([10, 300, 700, 990])
    kept = ours.kept_T[times]
    snr = kept / (1 - kept)
    of_image = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones(4)}[says]
    assert torch.allclose(ours.weight(times, 5.0) * of_image, snr.clamp(max=5.0), rtol=1e-4)
    assert torch.equal(ours.weight(times, None), torch.ones(4))


def test_a_flow_goes_straight():
    ours = Noising.of({"_class_name": "FlowMatchEulerDiscreteScheduler"})
    x, noise, times = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2), torch.tensor([250, 800])
    step = ours.noisy(x, noise, times) + 0.1 * ours.target(x, noise, times)
    assert torch.allclose(step, ours.noisy(x, noise, times + 100), atol=1e-4)


def test_a_schedule_of_another_kind_is_refused():
    with pytest.raises(BaseError, match="is not known"):
        Noising.of(PLAIN | {"prediction_type": "score"})


def test_a_pipeline_of_the_hub_is_pulled_without_what_is_not_needed(source, tmp_path):
    (source / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (source / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"variant")
    (source / "safety_checker").mkdir()
    (source / "safety_checker" / "model.safetensors").write_bytes(b"other")
    with serve(source) as server:
        found = pull(
            parse_source("hf:org/name@v1"),
            tmp_path / "work",
            progress=lambda _: None,
            hub_endpoint=server.endpoint,
        )
        asked = [path for _, path, _ in server.requests]
    unwanted = (".bin", "fp16.safetensors", "safety_checker/model.safetensors")
    assert not [path for path in asked if path.endswith(unwanted)]
    assert found.config.identity == pulled(pico_pipeline(), tmp_path / "local").identity
