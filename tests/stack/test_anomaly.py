"""What is strange about weights: found where it was put, and not in what training makes."""

import math

import pytest
import torch
from torch import nn

from lamina.core.manifests import LayerConfig
from lamina.core.recipe import Recipe
from lamina.lowrank.maths import Factors, inner_product, squared_norm
from lamina.stack.anomaly import facts_of, most_of_b, oddities

BASE = "sha256:" + "0" * 64
RECIPE = Recipe(rank=4, lr=1e-3, steps=10)


def dense(factors):
    return factors.scale * factors.b_OR.double() @ factors.a_RI.double()


def made(seed=0, rank=4, size=12, b=0.005, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    a_RI = torch.randn(rank, size, generator=generator) * 0.1
    return Factors(a_RI, (torch.rand(size, rank, generator=generator) * 2 - 1) * b, scale)


def layer(count=30, **options):
    return {f"layers.{i}.q_proj": made(i, **options) for i in range(count)}


def linears(names, size=12):
    torch.manual_seed(0)
    return {name: nn.Linear(size, size, bias=False) for name in names}


def config(parts, recipe=RECIPE, origin="trained"):
    return LayerConfig(
        name="a", base=BASE, parents=(), rank=4, alpha=8.0, scaling="lora",
        modules=tuple(sorted(parts)), parameters=sum(f.parameters for f in parts.values()),
        recipe=recipe, origin=origin,
    )  # fmt: skip


def texts(parts, sisters=(), **options):
    facts = facts_of(parts, linears(parts))
    return [
        (odd.refused, odd.text) for odd in oddities(facts, config(parts, **options), parts, sisters)
    ]


def test_sizes_without_forming_the_update():
    a, b = made(1), made(2, rank=3)
    assert squared_norm(a) == pytest.approx(float(dense(a).square().sum()), rel=1e-12)
    assert inner_product(a, b) == pytest.approx(float((dense(a) * dense(b)).sum()), rel=1e-12)


def test_facts():
    parts = layer(3)
    found = facts_of(parts, (weights := linears(parts)))
    for each in found.modules:
        delta = dense(parts[each.module])
        assert each.norm == pytest.approx(float(delta.norm()), rel=1e-6)
        weight = weights[each.module].weight.detach().double().norm()
        assert each.relative == pytest.approx(float(delta.norm() / weight), rel=1e-5)
        sigma = torch.linalg.svdvals(delta)
        assert each.first == pytest.approx(float(sigma[0] ** 2 / sigma.square().sum()), rel=1e-5)
        assert 1 <= each.effective_rank <= each.rank == 4
    assert sum(each.share for each in found.modules) == pytest.approx(1)


def test_training_cannot_pass_the_bound_whatever_the_gradients():
    recipe = Recipe(lr=1e-2, steps=60, betas=(0.9, 0.99))
    worst = 0.0
    for pattern in range(40):
        generator = torch.Generator().manual_seed(pattern)
        weight = torch.zeros(50, requires_grad=True)
        adam = torch.optim.AdamW([weight], lr=recipe.lr, betas=recipe.betas, weight_decay=0.0)
        for step in range(60):
            spikes = torch.rand(50, generator=generator) < 1 / (1 + pattern % 12)
            weight.grad = spikes * (1.0 if pattern % 2 else float(10 ** (step % 5)))
            adam.step()
        worst = max(worst, float(weight.detach().abs().max()))
    bound = most_of_b(recipe)
    assert 0.5 * recipe.lr * 60 < worst <= bound
    assert bound == pytest.approx(1e-2 * 60 * 0.1 / math.sqrt(0.01 * (1 - 0.81 / 0.99)))


def test_what_training_makes_is_not_strange():
    assert texts(layer()) == []
    assert texts(layer(), sisters=[0.1, 0.05]) == []


def test_scaled_weights():
    parts = layer(b=0.2)
    refused = [text for no, text in texts(parts) if no]
    assert any("the weights were changed after training" in text for text in refused)
    assert texts(parts, origin="imported", recipe=None) == []  # nothing to hold them against
    large = facts_of(parts, linears(parts)).norm
    looks = texts(parts, origin="imported", recipe=None, sisters=[large / 9])
    assert looks == [(False, "it is 9 times as large as any other layer over this base")]


def test_another_scale_than_the_recipes():
    found = texts(layer(scale=6.0))
    assert found == [(True, "its recipe says scale 2, its payload says 6 (30 linears)")]


def test_an_update_larger_than_the_weights():
    parts = layer(b=30.0)
    found = texts(parts, origin="imported", recipe=None)
    assert any(no and "times as large as the weights" in text for no, text in found)


def test_one_linear_with_nearly_all_of_it_in_one_direction():
    parts = layer(40)
    name = "layers.7.q_proj"
    one = parts[name]
    b_OR = one.b_OR * torch.tensor([0.01, 0.01, 0.01, 1.8])
    parts[name] = Factors(one.a_RI * 30, b_OR, one.scale)
    found = texts(parts)
    assert all(not no for no, _ in found)
    assert any(f"{name} has" in text for _, text in found)
    assert any(text.startswith(f"the update of {name} is large and nearly") for _, text in found)


def test_a_payload_that_is_not_what_its_config_says():
    parts = layer(4)
    facts = facts_of(parts, linears(parts))
    other = config({**parts, "layers.9.q_proj": made(9)})
    found = [odd.text for odd in oddities(facts, other, parts, ()) if odd.refused]
    assert found == [
        "its payload touches other linears than its config says",
        "its payload has another number of parameters than its config says",
    ]


def test_a_layer_that_changes_nothing():
    parts = layer(b=0.0)
    assert texts(parts) == [(False, "its weights change nothing")]
