"""The fused linear against float64 autograd, and attach against the base's bytes."""

import itertools

import pytest
import torch
from torch import nn

from lamina.core.errors import LayerError
from lamina.lowrank.attach import Attachment, attached, fold_into
from lamina.lowrank.linear import LowRankLinear
from lamina.lowrank.maths import Factors
from tests.tolerance import TOLERANCE


def reference(x, weight, bias, a, b, scale):
    """Plain float64 autograd of the same formula."""
    y = x @ weight.T + scale * (x @ a.T) @ b.T
    return y if bias is None else y + bias


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (3, 5, 17, 33, 4), (2, 64, 64, 32, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_and_gradients_match_float64(dtype, shape, bias):
    batch, time, inputs, outputs, rank = shape
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs, bias=bias).to(dtype).requires_grad_(False)
    a, b = torch.randn(rank, inputs) * inputs**-0.5, torch.randn(outputs, rank) * rank**-0.5
    module = LowRankLinear(linear, nn.Parameter(a), nn.Parameter(b), 0.7)
    x = torch.randn(batch, time, inputs).to(dtype).requires_grad_()
    upstream = torch.randn(batch, time, outputs).to(dtype)
    y = module(x)
    y.backward(upstream)

    x64 = x.detach().double().requires_grad_()
    a64, b64 = a.double().requires_grad_(), b.double().requires_grad_()
    bias64 = linear.bias.double() if bias else None
    y64 = reference(x64, linear.weight.double(), bias64, a64, b64, 0.7)
    y64.backward(upstream.double())
    assert linear.weight.grad is None
    assert module.a.grad.dtype == torch.float32
    for ours, exact in [
        (y, y64),
        (x.grad, x64.grad),
        (module.a.grad, a64.grad),
        (module.b.grad, b64.grad),
    ]:
        scale = exact.abs().max().clamp(min=1e-6)  # relative to the tensor, as products are summed
        torch.testing.assert_close(ours.double() / scale, exact / scale, **TOLERANCE[dtype])


def tiny() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6)).requires_grad_(False)


def linears_of(model: nn.Module) -> dict[str, nn.Linear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}


def factors_for(model: nn.Module, rank: int = 2) -> dict[str, Factors]:
    return {
        name: Factors(torch.randn(rank, m.in_features), torch.randn(m.out_features, rank), 0.5)
        for name, m in linears_of(model).items()
    }


def test_detaching_restores_every_byte_and_module():
    model = tiny()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modules = dict(model.named_modules())
    x = torch.randn(4, 6)
    plain = model(x)
    with attached(model, factors_for(model), linears_of(model)) as attachment:
        assert not torch.allclose(model(x), plain)
        model(x).sum().backward()
        assert attachment.flat.grad.abs().sum() > 0
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(model(x), plain)


def test_flat_buffer_is_the_factors():
    model = tiny()
    layer = factors_for(model)
    with attached(model, layer, linears_of(model)) as attachment:
        for name, factors in attachment.factors().items():
            assert torch.equal(factors.a_RI, layer[name].a_RI)
            assert torch.equal(factors.b_OR, layer[name].b_OR)
        attachment.flat.data.zero_()
        x = torch.randn(3, 6)
        out = model(x)
    assert torch.equal(out, model(x))


def test_attached_equals_folded():
    model, x = tiny(), torch.randn(5, 6)
    layer = factors_for(model)
    with attached(model, layer, linears_of(model)):
        through_factors = model(x)
    held = [m.weight for m in linears_of(model).values()]
    bytes_before = [w.clone() for w in held]
    fold_into(linears_of(model), layer)
    torch.testing.assert_close(model(x), through_factors, **TOLERANCE[torch.float32])
    for weight, before in itertools.zip_longest(held, bytes_before):
        assert torch.equal(weight, before)  # whoever holds the old weight sees no change


def test_every_misfit_is_named_at_once():
    model = tiny()
    layer = factors_for(model)
    layer["2"] = layer["0"]
    layer["1"] = Factors(torch.randn(2, 7), torch.randn(6, 2), 1.0)
    layer["0"] = Factors(torch.full((2, 6), torch.nan), torch.randn(8, 2), 1.0)
    with pytest.raises(LayerError) as caught:
        Attachment(model, layer, linears_of(model))
    text = "\n".join(caught.value.faults)
    assert "2: the base has no such linear" in text
    assert "1: the layer is for (6, 7), the base has (6, 8)" in text
    assert "0: numbers that are not finite" in text
    with pytest.raises(LayerError, match="touches no module"):
        Attachment(model, {}, linears_of(model))


def test_still_factors_take_part_and_are_not_trained():
    model, x = tiny(), torch.randn(5, 6)
    layer = factors_for(model)
    with attached(model, layer, linears_of(model)):
        whole = model(x)
    attachment = Attachment(model, layer, linears_of(model), still={"0"})
    assert (set(attachment.still), "0" in attachment.modules) == ({"0"}, False)
    assert attachment.flat.numel() == sum(f.parameters for n, f in layer.items() if n != "0")
    out = model(x)
    assert torch.equal(out, whole)
    out.square().sum().backward()
    assert attachment.flat.grad.abs().max() > 0
    assert attachment.still["0"].a.grad is None
    attachment.flat.data.zero_()
    found = attachment.factors()
    assert set(found) == set(layer)
    for name, factors in found.items():
        kept = name == "0"
        assert torch.equal(factors.a_RI, layer[name].a_RI) == kept
        assert torch.equal(factors.b_OR, layer[name].b_OR) == kept
    attachment.detach()
    assert not isinstance(dict(model.named_modules())["0"], LowRankLinear)
