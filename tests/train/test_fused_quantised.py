"""The fused decoder over packed weights: losses and gradients are those of the plain weights."""

import copy

import pytest
import torch

from lamina.bases import families
from lamina.bases.convert import pull
from lamina.bases.load import load
from lamina.bases.quantise import quantise
from lamina.bases.quantised import QuantisedLinear
from lamina.bases.sources import parse_source
from lamina.lowrank.attach import attached, fold_into
from lamina.lowrank.maths import Factors
from lamina.lowrank.supplied import SuppliedGroup
from lamina.tokens.batch import collate
from lamina.train.fused import fuse
from lamina.train.objective import token_losses
from tests.pico import SMALLEST_VOCAB, pico_base
from tests.train.tiny import PAD, rows

BATCH = collate(rows(5), PAD)
TARGETS = {
    "all": ("all-linear",),
    "one of a group": ("v_proj", "up_proj"),
    "the upper layer": ("layers.1.self_attn.q_proj", "layers.1.mlp.down_proj"),
}
BENEATH = {
    "nothing": (),
    "a layer on all": ("all-linear",),
    "a layer on some": ("k_proj", "up_proj", "layers.1.self_attn.o_proj"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("quantised")
    made = {}
    for family in ("llama", "qwen2"):
        source = pico_base(root / family, family=family, vocab=SMALLEST_VOCAB, hidden=32)
        plain = pull(parse_source(str(source)), root / f"{family}-work", progress=lambda text: None)
        for kind in ("nf4", "int8"):
            made[family, kind] = quantise(
                plain.directory, plain.config, "it", kind, root / f"{family}-{kind}",
                progress=lambda text: None,
            ).directory  # fmt: skip
    return made


def factors_for(linears, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Factors(
            torch.randn(3, m.in_features, generator=generator) * m.in_features**-0.5,
            torch.randn(m.out_features, 3, generator=generator) * 0.2,
            0.7,
        )
        for name, m in linears.items()
    }


def dense(model):
    """The same model with plain weights."""
    made = copy.deepcopy(model)
    for name, linear in families.linears(made).items():
        plain = torch.nn.Linear(linear.in_features, linear.out_features, bias=False)
        plain.weight = torch.nn.Parameter(linear.weight, requires_grad=False)
        plain.bias = linear.bias
        owner, _, leaf = name.rpartition(".")
        setattr(made.get_submodule(owner), leaf, plain)
    return made


def losses_and_gradients(model, targets, *, fuse_it):
    linears = families.select(families.linears(model), targets)
    with attached(model, factors_for(linears, 5), linears) as attachment:
        subject = model
        if fuse_it:
            subject, why = fuse(model)
            assert subject is not None, why
        losses = token_losses(subject, BATCH)
        losses.mean().backward()
        return losses.detach(), attachment.flat.grad.clone()


@pytest.mark.parametrize("fuse_it", [True, False], ids=["fused", "modules"])
@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("beneath", BENEATH.values(), ids=BENEATH)
@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_losses_and_gradients_are_those_of_plain_weights(
    folders, family, kind, beneath, targets, fuse_it
):
    model = load(folders[family, kind], dtype=torch.float32).model
    if beneath:
        under = families.select(families.linears(model), beneath)
        fold_into(families.linears(model), factors_for(under, 6))
    expected_losses, expected = losses_and_gradients(dense(model), targets, fuse_it=False)
    losses, grad = losses_and_gradients(model, targets, fuse_it=fuse_it)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-4, atol=1e-4)
    assert expected.abs().max() > 0
    torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-5)


def test_no_plain_weight_stays_in_memory(folders):
    model = load(folders["llama", "nf4"], dtype=torch.float32).model
    stored = {n: b.clone() for n, b in model.named_buffers()}
    decoder, _ = fuse(model)
    assert all(isinstance(g, SuppliedGroup) for each in decoder._layers for g in each.groups)
    with torch.no_grad():
        token_losses(decoder, BATCH)
    assert all(g.weight_OI.numel() == 0 for each in decoder._layers for g in each.groups)
    assert all(isinstance(m, QuantisedLinear) for m in families.linears(model).values())
    assert all(torch.equal(b, stored[n]) for n, b in model.named_buffers())


def test_layers_beneath_are_never_folded(folders):
    model = load(folders["llama", "nf4"], dtype=torch.float32).model
    linears = families.linears(model)
    before = {n: m.supplied() for n, m in linears.items()}
    first, second = factors_for(linears, 1), factors_for(linears, 2)
    fold_into(linears, first)
    fold_into(linears, second)
    for name, linear in linears.items():
        assert torch.equal(linear.supplied(), before[name])
        assert linear.term[0].shape[0] == 6
        whole = before[name] + sum(f.scale * f.b_OR @ f.a_RI for f in (first[name], second[name]))
        torch.testing.assert_close(linear.weight, whole, rtol=1e-4, atol=1e-4)
