"""The fused decoder against transformers' own forward and autograd."""

import pytest
import torch

from lamina.bases import families
from lamina.kernels import build
from lamina.lowrank.attach import Attachment, attached
from lamina.lowrank.maths import Factors
from lamina.tokens.batch import collate
from lamina.train import fused
from lamina.train.fused import fuse
from lamina.train.objective import token_losses
from tests.tolerance import TOLERANCE
from tests.train.tiny import PAD, model, row, rows

BATCH = collate(rows(5), PAD)
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
SOME = {
    "all": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "queries": ("q_proj",),
    "one of a group": ("v_proj", "up_proj"),
    "down": ("down_proj",),
}


def plain(family, dtype, **config):
    if family == "mistral":
        config |= {"sliding_window": None}
    return model(family, dtype, **config)


def factors_for(linears, rank=3):
    generator = torch.Generator().manual_seed(5)
    return {
        name: Factors(
            torch.randn(rank, m.in_features, generator=generator) * m.in_features**-0.5,
            torch.randn(m.out_features, rank, generator=generator) * 0.2,
            0.7,
        )
        for name, m in linears.items()
    }


def losses_and_gradients(small, batch, targets, *, fuse_it):
    linears = families.select(families.linears(small), targets)
    with attached(small, factors_for(linears), linears) as attachment:
        subject = small
        if fuse_it:
            subject, why = fuse(small)
            assert subject is not None, why
        losses = token_losses(subject, batch)
        losses.mean().backward()
        return losses.detach(), attachment.flat.grad.clone()


@pytest.mark.parametrize("targets", SOME.values(), ids=SOME)
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_the_models_own_forward(family, targets):
    config = {"num_hidden_layers": 4}  # the last of four does not rotate in smollm3
    ours, grad = losses_and_gradients(
        plain(family, torch.float64, **config), BATCH, targets, fuse_it=True
    )
    theirs, expected = losses_and_gradients(
        plain(family, torch.float64, **config), BATCH, targets, fuse_it=False
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)  # losses are float32
    assert expected.abs().max() > 0
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-7)  # and so are gradients


def test_memory_of_one_step_serves_the_next():
    """Steps of other sizes, one that has no way back, two before either's: the same bits."""
    batches = [collate([row(n, seed=n) for n in some], PAD) for some in ((9, 30), (5,), (40, 40))]
    small = plain("llama", torch.float32, num_hidden_layers=3)
    linears = families.linears(small)

    def gradient(decoder, attachment, some):
        attachment.zero_grad()
        for loss in [token_losses(decoder, batch).mean() for batch in some]:
            loss.backward()
        return attachment.flat.grad.clone()

    with attached(small, factors_for(linears), linears) as attachment:
        used = fuse(small)[0]
        for some in (batches[:1], batches[1:2], batches[2:], batches, batches[::-1]):
            found = gradient(used, attachment, some)
            again = [piece.data_ptr() for free in used._pool._free.values() for piece in free]
            assert len(set(again)) == len(again) > 0
            token_losses(used, batches[0])
            assert torch.equal(found, gradient(fuse(small)[0], attachment, some))


def test_only_upper_layers_trained():
    targets = ("layers.2.mlp.down_proj", "layers.1.self_attn.k_proj")
    made = [plain("llama", torch.float64, num_hidden_layers=3) for _ in range(2)]
    ours, grad = losses_and_gradients(made[0], BATCH, targets, fuse_it=True)
    theirs, expected = losses_and_gradients(made[1], BATCH, targets, fuse_it=False)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-7)


def test_still_layers_take_part_and_the_way_back_ends_above_them():
    small = plain("llama", torch.float64, num_hidden_layers=3)
    linears = families.linears(small)
    whole, expected = losses_and_gradients(small, BATCH, ("all-linear",), fuse_it=True)
    still = families.lowest(linears, 0.5)
    assert {families.layer_of(name) for name in still} == {0}
    attachment = Attachment(small, factors_for(linears), linears, still)
    gradients = dict.fromkeys(linears)
    for fuse_it in (True, False):
        attachment.zero_grad()
        subject = fuse(small)[0] if fuse_it else small
        losses = token_losses(subject, BATCH)
        losses.mean().backward()
        torch.testing.assert_close(losses.detach(), whole, rtol=1e-6, atol=1e-7)
        gradients[fuse_it] = attachment.flat.grad.clone()
    below = sum(each.a.numel() + each.b.numel() for each in attachment.still.values())
    # names sort by layer here: the flat buffer of all begins with the still ones
    torch.testing.assert_close(gradients[True], expected[below:], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradients[False], expected[below:], rtol=1e-5, atol=1e-7)
    attachment.detach()


def test_rows_packed_together_do_not_see_each_other():
    decoder, _ = fuse(plain("llama", torch.float32))
    some = [row(n, seed=n) for n in (4, 9, 17)]
    with torch.no_grad():
        together = token_losses(decoder, collate(some, PAD))
        alone = torch.cat([token_losses(decoder, collate([each], PAD)) for each in some])
    torch.testing.assert_close(together, alone, **TOLERANCE[torch.float32])


def test_gradients_add_up_over_batches():
    small = plain("llama", torch.float32)
    linears = families.linears(small)
    with attached(small, factors_for(linears), linears) as attachment:
        decoder, _ = fuse(small)
        token_losses(decoder, BATCH).mean().backward()
        once = attachment.flat.grad.clone()
        token_losses(decoder, BATCH).mean().backward()
        torch.testing.assert_close(attachment.flat.grad, 2 * once)


def test_weights_are_the_models_own_still():
    small = plain("llama", torch.float32)
    before = {name: p.clone() for name, p in small.named_parameters()}
    decoder, _ = fuse(small)
    assert decoder is not None
    for name, parameter in small.named_parameters():
        assert torch.equal(parameter, before[name]), name
    group = decoder._layers[0].qkv
    q = small.model.layers[0].self_attn.q_proj.weight
    assert q.data_ptr() == group.weight_OI.data_ptr()  # no second copy


def test_native_kernels_are_as_exact_as_the_models_own_forward():
    """In bfloat16, beside float32: gradients are no further away than transformers' are."""
    try:
        build.library()
    except build.Unavailable as error:
        pytest.skip(str(error))
    config = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}
    batch = collate([row(n, seed=n) for n in (5, 30, 70)], PAD)
    targets = SOME["all"]
    wide = {
        name: value.float().to(torch.bfloat16).float()
        for name, value in plain("llama", torch.float32, **config).state_dict().items()
    }
    exact = plain("llama", torch.float32, **config)
    exact.load_state_dict(wide)
    loss, grad = losses_and_gradients(exact, batch, targets, fuse_it=False)
    distances = []
    for fuse_it in (True, False):
        small = plain("llama", torch.bfloat16, **config)
        ours, found = losses_and_gradients(small, batch, targets, fuse_it=fuse_it)
        distances.append(
            [float((a - b).norm() / b.norm()) for a, b in ((ours, loss), (found, grad))]
        )
    (loss_ours, grad_ours), (loss_theirs, grad_theirs) = distances
    assert loss_ours < 1.2 * loss_theirs + 1e-3
    assert grad_ours < 1.2 * grad_theirs + 1e-3
    assert grad_ours < 0.1


@pytest.mark.parametrize(
    ("family", "config", "why"),
    [
        ("gemma3_text", {}, "not fused yet"),
        ("mistral", {"sliding_window": 4}, "window"),
        ("llama", {"hidden_act": "gelu"}, "gelu"),
    ],
)
def test_other_decoders_are_left_alone(family, config, why):
    decoder, said = fuse(model(family, torch.float32, **config))
    assert decoder is None
    assert why in said


def test_a_decoder_that_answers_otherwise_is_not_used(monkeypatch):
    monkeypatch.setattr(fused, "FAMILIES", fused.FAMILIES | {"granite"})  # it scales residuals
    decoder, why = fuse(model("granite", torch.float32, residual_multiplier=0.2))
    assert decoder is None
    assert "differ" in why


def test_a_trained_stack_may_turn_rounding_into_anything():
    """Deep with large factors: two right forwards end far apart, each layer's do not."""
    small = plain("llama", torch.bfloat16, num_hidden_layers=24)
    linears = families.linears(small)
    large = {n: Factors(f.a_RI, f.b_OR * 3, f.scale) for n, f in factors_for(linears).items()}
    with attached(small, large, linears):
        decoder, why = fuse(small)
        assert decoder is not None, why
        ids = torch.arange(8, 25)
        with torch.no_grad():
            own = small.model(input_ids=ids[None]).last_hidden_state[0].double()
            places = decoder.places(ids, torch.tensor([0, 17]))
            ours = decoder.hidden(ids, places, torch.arange(17)).double()
        assert (ours - own).norm() / own.norm() > fused.TOLERANCE[torch.bfloat16]


def test_what_stands_behind_the_layers_counts_too():
    small = plain("llama", torch.float32)
    small.model.register_forward_hook(lambda module, args, y: _scaled(y))
    decoder, why = fuse(small)
    assert decoder is None
    assert "differ" in why


def _scaled(output):
    output.last_hidden_state = output.last_hidden_state * 1.01
    return output


def test_what_stands_before_the_layers_counts_too(monkeypatch):
    monkeypatch.setattr(fused, "FAMILIES", fused.FAMILIES | {"granite"})
    assert fuse(model("granite", torch.float32))[0] is not None
    decoder, why = fuse(model("granite", torch.float32, embedding_multiplier=1.1))
    assert decoder is None
    assert "differ" in why
