"""Losses and gradients against float64 autograd of the full-logits cross-entropy."""

import pytest
import torch

from lamina.bases import families
from lamina.bases.families import Head
from lamina.lowrank.attach import attached
from lamina.lowrank.maths import Factors
from lamina.tokens.batch import collate
from lamina.train import objective
from lamina.train.objective import token_losses
from tests.tolerance import TOLERANCE
from tests.train.tiny import PAD, model, row, rows

MODELS = {
    "llama": ("llama", {}),
    "untied": ("llama", {"tied": False}),
    "qwen3": ("qwen3", {}),
    "gemma3": ("gemma3_text", {}),
    "softcap": ("gemma3_text", {"final_logit_softcapping": 1.5}),
}
BATCH = collate(rows(5), PAD)


def reference(model64, batch, weights=None):
    """Per-token losses from all logits, the weights of some linears replaced."""
    replaced = {f"{name}.weight": value for name, value in (weights or {}).items()}
    logits_BTV = torch.func.functional_call(
        model64, replaced, (), {"input_ids": batch.ids, "use_cache": False}
    ).logits
    chosen_NV = logits_BTV.flatten(0, 1)[batch.positions]
    return torch.nn.functional.cross_entropy(chosen_NV, batch.targets, reduction="none")


def random_factors(linears, rank=3):
    generator = torch.Generator().manual_seed(5)
    return {
        name: Factors(
            torch.randn(rank, m.in_features, generator=generator) * m.in_features**-0.5,
            torch.randn(m.out_features, rank, generator=generator) * 0.2,
            0.7,
        )
        for name, m in linears.items()
    }


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_factor_gradients_match_float64(name):
    family, config = MODELS[name]
    small, exact = model(family, **config), model(family, torch.float64, **config)
    linears = families.linears(small)
    factors = random_factors(linears)
    with attached(small, factors, linears) as attachment:
        losses = token_losses(small, BATCH)
        losses.mean().backward()
        gradients = {n: (m.a.grad, m.b.grad) for n, m in attachment.modules.items()}
    leaves = {
        n: (f.a_RI.double().requires_grad_(), f.b_OR.double().requires_grad_())
        for n, f in factors.items()
    }
    weights = {n: families.linears(exact)[n].weight + 0.7 * (b @ a) for n, (a, b) in leaves.items()}
    expected = reference(exact, BATCH, weights)
    expected.mean().backward()
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected, **TOLERANCE[torch.float32])
    for module, (a, b) in leaves.items():
        for ours, true in zip(gradients[module], (a.grad, b.grad), strict=True):
            scale = true.abs().max()
            assert scale > 0
            torch.testing.assert_close(
                ours.double() / scale, true / scale, **TOLERANCE[torch.float32]
            )


def test_bfloat16_losses():
    exact = model(dtype=torch.bfloat16).double()
    losses = token_losses(model(dtype=torch.bfloat16), BATCH)
    expected = reference(exact, BATCH)
    torch.testing.assert_close(losses.double().mean(), expected.mean(), **TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("at_once", [1, 3, 7, 1000])
@pytest.mark.parametrize("several", [False, True], ids=["one target", "a teacher's targets"])
def test_head_loss_in_chunks_of_any_size(monkeypatch, softcap, scale, at_once, several):
    torch.manual_seed(0)
    hidden = torch.randn(10, 16, requires_grad=True)
    weight, targets, upstream = torch.randn(37, 16), torch.randint(37, (10,)), torch.randn(10)
    monkeypatch.setattr(objective, "CHUNK_BYTES", 4 * 37 * at_once)
    ids, shares = targets[:, None], torch.ones(10, 1)
    if several:  # an id may come twice, and with weight 0
        ids, shares = torch.randint(37, (10, 5)), torch.rand(10, 5)
        shares[:, 4] = 0
        shares /= shares.sum(1, keepdim=True)
    losses = objective._HeadLoss.apply(hidden, Head(weight, softcap, scale), ids, shares)
    losses.backward(upstream)

    exact = hidden.detach().double().requires_grad_()
    z = scale * exact @ weight.double().T
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    wanted = torch.zeros(10, 37).double().scatter_add(1, ids, shares.double())
    expected = torch.nn.functional.cross_entropy(z, wanted, reduction="none")
    expected.backward(upstream.double())
    torch.testing.assert_close(losses.double(), expected, **TOLERANCE[torch.float32])
    torch.testing.assert_close(hidden.grad.double(), exact.grad, **TOLERANCE[torch.float32])


def test_padding_does_not_matter():
    small, some = model(), [row(5, 1), row(17, 2), row(9, 3)]
    together = token_losses(small, collate(some, PAD))
    alone = torch.cat([token_losses(small, collate([each], PAD)) for each in some])
    torch.testing.assert_close(together, alone, **TOLERANCE[torch.float32])
    assert torch.equal(together, token_losses(small, collate(some, 77)))


def test_unsupervised_targets_are_not_looked_at():
    """Changing a token that is neither a target nor before one changes no loss."""
    small, one = model(), row(12, 4)
    ids = one.ids.copy()
    before = token_losses(small, collate([one], PAD))
    ids[-1] = (ids[-1] - 7) % 100 + 8  # the last token is only a target
    after = token_losses(small, collate([type(one)(ids, one.mask, one.example)], PAD))
    assert torch.equal(before[:-1], after[:-1])
    assert before[-1] != after[-1]
    assert len(before) == one.mask.sum()
