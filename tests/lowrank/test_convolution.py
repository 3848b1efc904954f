"""Convolutions as linears of patches: against float64 autograd, dense updates, and their bytes."""

import pytest
import torch
from torch import nn

from lamina.bases.convolution import PatchLinear
from lamina.lowrank.attach import Attachment, attached, fold_into
from lamina.lowrank.convolution import LowRankConvolution
from lamina.lowrank.maths import Factors
from tests.tolerance import TOLERANCE

FORMS = {  # every kernel, stride and padding of a UNet, and one that is neither square nor even
    "resnet": (6, 10, (3, 3), (1, 1), (1, 1)),
    "downsampler": (6, 6, (3, 3), (2, 2), (1, 1)),
    "downsampler that pads itself": (6, 6, (3, 3), (2, 2), (0, 0)),
    "shortcut": (7, 5, (1, 1), (1, 1), (0, 0)),
    "patches": (4, 8, (2, 2), (2, 2), (0, 0)),
    "uneven": (3, 4, (3, 2), (2, 1), (0, 1)),
}


def convolution(form: str, *, bias: bool = True) -> nn.Conv2d:
    inputs, outputs, kernel, stride, padding = FORMS[form]
    torch.manual_seed(0)
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=bias).requires_grad_(False)


def update(linear: nn.Linear, rank: int = 3, seed: int = 1) -> Factors:
    chance = torch.Generator().manual_seed(seed)
    return Factors(
        torch.randn(rank, linear.in_features, generator=chance) * linear.in_features**-0.5,
        torch.randn(linear.out_features, rank, generator=chance) * rank**-0.5,
        0.7,
    )


def dense(made: nn.Conv2d, a, b, scale, x):
    """The convolution with W + s B A, in float64."""
    weight = made.weight.double() + scale * (b @ a).view(made.weight.shape)
    bias = None if made.bias is None else made.bias.double()
    return nn.functional.conv2d(x, weight, bias, made.stride, made.padding)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_and_gradients_match_float64_through_the_folded_weight(dtype, form, bias):
    made = convolution(form, bias=bias).to(dtype)
    part = update(PatchLinear(made))
    module = LowRankConvolution(
        PatchLinear(made), nn.Parameter(part.a_RI), nn.Parameter(part.b_OR), part.scale
    )
    x = torch.randn(2, made.in_channels, 9, 8).to(dtype).requires_grad_()
    y = module(x)
    upstream = torch.randn(y.shape).to(dtype)
    y.backward(upstream)

    x64 = x.detach().double().requires_grad_()
    a64, b64 = (each.double().requires_grad_() for each in (part.a_RI, part.b_OR))
    y64 = dense(made, a64, b64, part.scale, x64)
    y64.backward(upstream.double())
    assert made.weight.grad is None
    assert module.a.grad.dtype == torch.float32
    for ours, exact in [
        (y, y64),
        (x.grad, x64.grad),
        (module.a.grad, a64.grad),
        (module.b.grad, b64.grad),
    ]:
        size = exact.abs().max().clamp(min=1e-6)
        torch.testing.assert_close(ours.double() / size, exact / size, **TOLERANCE[dtype])


@pytest.mark.parametrize("form", FORMS)
def test_a_convolution_is_the_linear_of_its_patches(form):
    made = convolution(form).double()
    x = torch.randn(2, made.in_channels, 9, 8, dtype=torch.float64)
    patches = nn.functional.unfold(
        x, made.kernel_size, padding=made.padding, stride=made.stride
    )  # (N, I kh kw, P)
    said = PatchLinear(made)(patches.movedim(1, -1)).movedim(-1, 1)
    y = made(x)
    torch.testing.assert_close(said.view(y.shape), y, **TOLERANCE[torch.float64])


def test_the_order_in_memory_does_not_matter():
    made = convolution("resnet")
    part = update(PatchLinear(made))
    a, b = nn.Parameter(part.a_RI), nn.Parameter(part.b_OR)
    module = LowRankConvolution(PatchLinear(made), a, b, part.scale)
    x, upstream = torch.randn(2, 6, 9, 8), torch.randn(2, 10, 9, 8)
    found = []
    for order in (torch.contiguous_format, torch.channels_last):
        given = x.clone(memory_format=order).requires_grad_()
        y = module(given)
        y.backward(upstream.clone(memory_format=order))
        found.append([y, *(each.grad for each in (given, a, b))])
        a.grad = b.grad = None
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE[torch.float32])


@pytest.mark.parametrize("wanted", range(8))
def test_gradients_that_nobody_asks_for_are_not_made(wanted):
    made = convolution("resnet")
    part = update(PatchLinear(made))
    a, b = nn.Parameter(part.a_RI), nn.Parameter(part.b_OR)
    x = torch.randn(2, 6, 9, 8, requires_grad=True)
    module = LowRankConvolution(PatchLinear(made), a, b, part.scale)
    module(x).square().sum().backward()
    whole = [each.grad for each in (x, a, b)]
    for place, each in enumerate((x, a, b)):
        each.grad = None
        each.requires_grad_(bool(wanted >> place & 1))
    y = module(x).square().sum()
    assert y.requires_grad == bool(wanted)
    if wanted:
        y.backward()
    for place, each in enumerate((x, a, b)):
        if wanted >> place & 1:
            torch.testing.assert_close(each.grad, whole[place])
        else:
            assert each.grad is None


def several() -> nn.Sequential:
    return nn.Sequential(
        convolution("resnet"), nn.SiLU(), nn.Conv2d(10, 6, 1), convolution("downsampler")
    ).requires_grad_(False)


def table(model: nn.Module) -> dict[str, nn.Linear]:
    return {n: PatchLinear(m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}


def test_attached_equals_folded_and_the_old_weights_stay():
    model, x = several(), torch.randn(2, 6, 9, 8)
    linears = table(model)
    layer = {name: update(each) for name, each in linears.items()}
    with attached(model, layer, linears):
        through_factors = model(x)
    held = [model[i].weight for i in (0, 2, 3)]
    before = [each.clone() for each in held]
    fold_into(linears, layer)
    torch.testing.assert_close(model(x), through_factors, **TOLERANCE[torch.float32])
    for weight, kept, name in zip(held, before, linears, strict=True):
        assert torch.equal(weight, kept)  # whoever holds the old weight sees no change
        part = layer[name]
        exact = kept.double().flatten(1) + part.scale * part.b_OR.double() @ part.a_RI.double()
        found = linears[name].weight
        assert found.data_ptr() == model.get_submodule(name).weight.data_ptr()
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)


def test_detaching_restores_every_byte_and_module():
    model, x = several(), torch.randn(2, 6, 9, 8)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modules, plain = dict(model.named_modules()), model(x)
    linears = table(model)
    layer = {name: update(each) for name, each in linears.items()}
    attachment = Attachment(model, layer, linears, still={"2"})
    assert not torch.allclose(model(x), plain)
    model(x).sum().backward()
    assert attachment.flat.grad.abs().sum() > 0
    assert attachment.still["2"].a.grad is None
    for name, part in attachment.factors().items():
        assert torch.equal(part.a_RI, layer[name].a_RI)
        assert torch.equal(part.b_OR, layer[name].b_OR)
    attachment.detach()
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(model(x), plain)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"groups": 2}, "in 2 groups"),
        ({"dilation": 2}, r"dilated by \(2, 2\)"),
        ({"padding_mode": "reflect"}, "by rule"),
        ({"padding": "same"}, "by rule"),
    ],
)
def test_what_is_no_such_linear_is_refused(how, why):
    with pytest.raises(ValueError, match=why):
        PatchLinear(nn.Conv2d(4, 4, 3, **how))
