"""A denoiser's attention with joined projections, against diffusers' own."""

import pytest
import torch
from torch import nn

from lamina.lowrank.attach import Attachment
from lamina.lowrank.maths import Factors
from lamina.train.attending import Joining

diffusers = pytest.importorskip("diffusers")
B, STATES = 3, 5


def unet():
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def transformer():
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        caption_channels=24,
        sample_size=8,
        patch_size=2,
    )


def says(model, x, states):
    given = {}
    if isinstance(model, diffusers.PixArtTransformer2DModel):
        mask = torch.ones(B, STATES)
        mask[0, 3:] = 0
        given = {
            "encoder_attention_mask": mask,
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }
    times = torch.tensor([10, 400, 900])
    return model(x, timestep=times, encoder_hidden_states=states, return_dict=False, **given)[0]


def model_and_update(make, suffixes):
    torch.manual_seed(0)
    model = make().eval().requires_grad_(False)
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and "transformer_blocks" in name
        and any(name.endswith(each) for each in suffixes)
    }
    assert linears
    update = {
        name: Factors(torch.randn(2, m.in_features), torch.randn(m.out_features, 2) / 9, 0.5)
        for name, m in linears.items()
    }
    return model, Attachment(model, update, linears)


def gradients(model, attachment, x, states):
    """What the model says, and the gradients of the factors and of both inputs."""
    attachment.zero_grad()
    x, states = (each.clone().requires_grad_() for each in (x, states))
    said = says(model, x, states)
    said.square().mean().backward()
    return said.detach(), attachment.flat.grad.clone(), x.grad, states.grad


@pytest.mark.parametrize("make", [unet, transformer])
@pytest.mark.parametrize(
    "suffixes", [("to_q", "to_k", "to_v", "to_out.0", "ff.net.2"), ("to_q",), ("attn2.to_v",)]
)
def test_it_says_and_learns_what_diffusers_does(make, suffixes):
    model, attachment = model_and_update(make, suffixes)
    x, states = torch.randn(B, 4, 8, 8), torch.randn(B, STATES, 24)
    plain = gradients(model, attachment, x, states)
    joining = Joining(model)
    assert joining.count == sum(type(m).__name__ == "Attention" for m in model.modules())
    joined = gradients(model, attachment, x, states)
    for mine, theirs in zip(joined, plain, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-6)
        assert theirs.abs().max() > 0
    joining.undo()
    for mine, theirs in zip(gradients(model, attachment, x, states), plain, strict=True):
        assert torch.equal(mine, theirs)


def test_it_follows_the_factors_as_they_move():
    model, attachment = model_and_update(unet, ("to_k",))
    x, states = torch.randn(B, 4, 8, 8), torch.randn(B, STATES, 24)
    joining = Joining(model)
    with torch.no_grad():
        before = says(model, x, states)
        attachment.flat.data.mul_(3)
        joined = says(model, x, states)
        joining.undo()
        plain = says(model, x, states)
    assert torch.allclose(joined, plain, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(joined, before, rtol=1e-3, atol=1e-5)


def test_captions_that_need_no_gradient_cost_none_and_still_teach():
    model, attachment = model_and_update(unet, ("attn2.to_k", "attn2.to_v"))
    joining = Joining(model)
    attachment.zero_grad()
    says(model, torch.randn(B, 4, 8, 8), torch.randn(B, STATES, 24)).square().mean().backward()
    assert attachment.flat.grad.abs().max() > 0
    joining.undo()


def test_other_attention_is_left_alone():
    model = unet().eval()
    block = next(m for m in model.modules() if type(m).__name__ == "Attention")
    block.residual_connection = True
    others = sum(type(m).__name__ == "Attention" for m in model.modules()) - 1
    joining = Joining(model)
    assert joining.count == others
    joining.undo()
    model.train()
    assert Joining(model).count == others  # dropout of 0 is none
