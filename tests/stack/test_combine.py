"""Merge methods against dense implementations written out here, entry by entry."""

import math

import numpy as np
import pytest
import torch

from lamina.core.errors import LayerError, TrainError, UsageError
from lamina.core.seeds import derive
from lamina.lowrank.maths import Factors
from lamina.stack.combine import dare as dare_module
from lamina.stack.combine.dense import EXACT_SIDE, dense, nearest
from lamina.stack.combine.knots import joint_basis
from lamina.stack.combine.learned import descend, weight_gradients
from lamina.stack.combine.method import Options
from lamina.stack.combine.registry import METHODS, method_named
from lamina.stack.combine.ties import merge_entries
from tests.tolerance import TOLERANCE

FLOAT32 = TOLERANCE[torch.float32]
SHAPES = {"square": (10, 10), "tall": (17, 6), "wide": (5, 19), "alone": (8, 9)}
"""(out, in) of each linear; only the second layer touches `alone`."""
RANKS, SCALES, WEIGHTS = (3, 1, 4), (2.0, 0.5, -1.25), (0.7, 1.6, 1.0)


def random_layer(rank: int, scale: float, seed: int, modules=SHAPES) -> dict[str, Factors]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Factors(
            torch.randn(rank, i, generator=generator),
            torch.randn(o, rank, generator=generator),
            scale,
        )
        for name, (o, i) in SHAPES.items()
        if name in modules
    }


@pytest.fixture(scope="module")
def layers():
    """Three layers of other ranks and scales; one linear is touched by the second alone."""
    common = [name for name in SHAPES if name != "alone"]
    return [
        random_layer(rank, scale, seed, SHAPES if seed == 1 else common)
        for seed, (rank, scale) in enumerate(zip(RANKS, SCALES, strict=True))
    ]


def delta(layer, module) -> np.ndarray:
    """A layer's dense update of one linear, float64; None where it leaves it alone."""
    if module not in layer:
        return None
    part = layer[module]
    return part.scale * (part.b_OR.double() @ part.a_RI.double()).numpy()


def deltas(layers, weights, module):
    """(weight, dense update) of every layer that touches a linear."""
    found = [(w, delta(layer, module)) for w, layer in zip(weights, layers, strict=True)]
    return [(w, update) for w, update in found if update is not None]


def as_dense(merged, module) -> torch.Tensor:
    part = merged.factors[module]
    return part.scale * (part.b_OR.double() @ part.a_RI.double())


def close(found, wanted):
    torch.testing.assert_close(found.double(), torch.as_tensor(wanted).double(), **FLOAT32)


def run(name, layers, weights=WEIGHTS, **options):
    return METHODS[name].function(layers, weights, Options(**options))


def reference_ties(pairs, density):
    """TIES with loops: trim by a sort, elect by the larger mass, average who agrees."""
    trimmed = []
    for weight, update in pairs:
        flat = update.ravel()
        kept = np.argsort(-np.abs(flat), kind="stable")[: math.ceil(density * flat.size)]
        out = np.zeros_like(flat)
        out[kept] = flat[kept]
        trimmed.append((weight, out))
    merged = np.zeros_like(trimmed[0][1])
    for entry in range(merged.size):
        votes = [(w, values[entry] * w) for w, values in trimmed]
        positive = sum(vote for _, vote in votes if vote > 0)
        negative = -sum(vote for _, vote in votes if vote < 0)
        if positive == negative:
            continue
        agreeing = [(w, v) for w, v in votes if (v > 0 if positive > negative else v < 0)]
        merged[entry] = sum(v for _, v in agreeing) / sum(abs(w) for w, _ in agreeing)
    return merged.reshape(pairs[0][1].shape)


def best_of_rank(matrix, rank):
    u, sigma, vh = np.linalg.svd(np.asarray(matrix), full_matrices=False)
    return (u[:, :rank] * sigma[:rank]) @ vh[:rank]


def rank_sum(layers, module):
    return sum(layer[module].rank for layer in layers if module in layer)


# -- exact sums ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), WEIGHTS, (0.0, -2.0, 0.5)])
def test_concat_is_the_weighted_sum(layers, weights):
    merged = run("concat", layers, weights)
    assert set(merged.factors) == set(SHAPES)
    for module in SHAPES:
        close(as_dense(merged, module), sum(w * d for w, d in deltas(layers, weights, module)))
        assert merged.factors[module].rank == rank_sum(layers, module)
    assert (merged.lost, merged.weights) == (0.0, weights)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), WEIGHTS])
def test_average_is_the_mean_of_the_products(layers, weights):
    merged = run("average", layers, weights)
    for module in SHAPES:
        total = sum(w * d for w, d in deltas(layers, weights, module))
        close(as_dense(merged, module), total / sum(weights))
    assert merged.lost == 0.0
    assert sum(merged.weights) == pytest.approx(1.0)


def test_average_is_not_the_product_of_the_means():
    one, two = (random_layer(2, 1.0, seed, ["square"]) for seed in (5, 6))
    a, b = one["square"], two["square"]
    wrong = ((a.b_OR + b.b_OR) / 2) @ ((a.a_RI + b.a_RI) / 2)
    found = as_dense(run("average", [one, two], (1.0, 1.0)), "square")
    assert (found - wrong).norm() > 0.5 * found.norm()


@pytest.mark.parametrize("name", METHODS)
def test_every_factor_is_float32_of_scale_1(layers, name):
    before = [
        {m: (f.a_RI.clone(), f.b_OR.clone(), f.scale) for m, f in layer.items()} for layer in layers
    ]
    merged = run(name, layers, loss_and_gradients=lambda w: (sum(w), [1.0] * len(w)))
    for module, factors in merged.factors.items():
        assert factors.scale == 1.0
        assert factors.a_RI.dtype == factors.b_OR.dtype == torch.float32
        assert (factors.b_OR.shape[0], factors.a_RI.shape[1]) == SHAPES[module]
        assert 1 <= factors.rank <= rank_sum(layers, module)
    for layer, copies in zip(layers, before, strict=True):
        for module, (a, b, scale) in copies.items():
            assert torch.equal(layer[module].a_RI, a)
            assert torch.equal(layer[module].b_OR, b)
            assert layer[module].scale == scale


# -- dense methods ---------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.07, 0.2, 0.6, 1.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), WEIGHTS, (1.0, -0.5, 2.0)])
def test_ties_is_the_reference_cut_to_the_sum_of_ranks(layers, density, weights):
    exact = {}
    merged = run("ties", layers, weights, density=density, exact=exact.__setitem__)
    lost = norm = 0.0
    for module in SHAPES:
        wanted = reference_ties(deltas(layers, weights, module), density)
        close(exact[module], wanted)
        cut = best_of_rank(wanted, rank_sum(layers, module))
        close(as_dense(merged, module), cut)
        lost += np.square(wanted - cut).sum()
        norm += np.square(wanted).sum()
    assert merged.lost == pytest.approx(math.sqrt(lost / norm), abs=1e-4)


def test_ties_by_default_keeps_a_fifth(layers):
    exact = {}
    run("ties", layers[:1], (1.0,), exact=exact.__setitem__)
    shares = {m: float((x != 0).double().mean()) for m, x in exact.items()}
    wanted = {m: math.ceil(0.2 * o * i) / (o * i) for m, (o, i) in SHAPES.items() if m in exact}
    assert shares == pytest.approx(wanted)


def test_ties_entry_by_entry():
    updates = torch.tensor([[3.0, 1.0, -2.0, 5.0], [4.0, -6.0, -2.0, -5.0]])
    found = merge_entries(updates, (1.0, 1.0), 0.75)  # the 1 and one -2 are trimmed; 5 and -5 tie
    assert found.tolist() == [3.5, -6.0, -2.0, 0.0]
    assert merge_entries(updates, (3.0, 1.0), 1.0).tolist() == [3.25, -6.0, -2.0, 5.0]
    assert merge_entries(updates[:1], (-2.0,), 1.0).tolist() == [-3.0, -1.0, 2.0, -5.0]


def test_dare_drops_and_rescales(layers):
    exact = {}
    merged = run("dare", layers, seed=7, density=0.3, exact=exact.__setitem__)
    for module in SHAPES:
        terms = [(i, w) for i, w in enumerate(WEIGHTS) if module in layers[i]]
        wanted = np.zeros(SHAPES[module])
        for index, weight in terms:
            generator = torch.Generator().manual_seed(derive(7, "dare", module, index))
            mask = torch.empty(SHAPES[module]).bernoulli_(0.3, generator=generator).double().numpy()
            wanted += weight * mask * delta(layers[index], module) / 0.3
        close(exact[module], wanted)
        close(as_dense(merged, module), best_of_rank(wanted, rank_sum(layers, module)))


def test_dare_is_the_sum_on_average(layers):
    module, found = "tall", []
    total = sum(w * d for w, d in deltas(layers, WEIGHTS, module))
    for seed in range(400):
        exact = {}
        run("dare", layers, seed=seed, exact=exact.__setitem__)
        found.append(exact[module].double().numpy())
    spread = np.std(found, axis=0) / math.sqrt(len(found))
    assert (np.abs(np.mean(found, axis=0) - total) < 5 * spread).all()
    kept = dare_module.dropped_out(torch.ones(200, 200), 0.25, 3)
    assert set(kept.unique().tolist()) == {0.0, 4.0}
    assert float((kept != 0).double().mean()) == pytest.approx(0.25, abs=0.02)


def test_dare_that_keeps_everything_is_the_sum(layers):
    merged, exact = run("dare", layers, density=1.0), run("concat", layers)
    for module in SHAPES:
        close(as_dense(merged, module), as_dense(exact, module))
    assert merged.lost < 1e-5


@pytest.mark.parametrize("name", ["dare", "ties", "knots"])
def test_the_same_seed_gives_the_same_bytes(layers, name):
    before = torch.random.get_rng_state()
    one, two, other = (run(name, layers, seed=seed) for seed in (3, 3, 4))
    same = [torch.equal(one.factors[m].a_RI, two.factors[m].a_RI) for m in SHAPES]
    changed = [torch.equal(one.factors[m].a_RI, other.factors[m].a_RI) for m in SHAPES]
    assert all(same)
    assert all(changed) is not METHODS[name].seeded
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_large_update_is_cut_nearly_as_well_as_the_best():
    side, rank = EXACT_SIDE + 30, 12
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(side, rank, generator=generator) @ torch.randn(
        rank, side + 5, generator=generator
    )
    close(dense(nearest(low, rank, 1)) / side, low / side)
    noisy = low + 0.3 * torch.randn(low.shape, generator=generator)
    error = float((dense(nearest(noisy, rank, 1)) - noisy).norm())
    least = math.sqrt(float(torch.linalg.svdvals(noisy)[rank:].square().sum()))
    assert least <= error * (1 + 1e-4) <= 1.001 * least
    assert torch.equal(nearest(noisy, rank, 1).a_RI, nearest(noisy, rank, 1).a_RI)


# -- knots -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), WEIGHTS])
def test_knots_is_the_dense_joint_decomposition(layers, density, weights):
    merged = run("knots", layers, weights, density=density)
    for module in SHAPES:
        pairs = deltas(layers, weights, module)
        u, sigma, _ = np.linalg.svd(np.concatenate([d for _, d in pairs], 1), full_matrices=False)
        u = u[:, sigma > 1e-8 * sigma[0]]
        parts = [(w, u.T @ d) for w, d in pairs]
        close(as_dense(merged, module), u @ reference_ties(parts, density))
    assert merged.lost == 0.0


def test_knots_of_one_layer_kept_whole_is_that_layer(layers):
    merged = run("knots", layers[1:2], (1.0,), density=1.0)
    for module in SHAPES:
        close(as_dense(merged, module), delta(layers[1], module))


def test_the_joint_basis_is_orthonormal_and_holds_every_update(layers):
    terms = [layer["tall"] for layer in layers]
    basis = joint_basis([*terms, terms[0].weighted(-3.0)])
    assert basis.shape == (17, sum(RANKS))  # the repeated update adds no direction
    close(basis.T @ basis, torch.eye(basis.shape[1]))
    for layer in layers:
        update = torch.as_tensor(delta(layer, "tall"))
        close(basis @ (basis.T @ update), update)


def test_updates_that_are_zero_stay_zero():
    nothing = {"square": Factors(torch.randn(2, 10), torch.zeros(10, 2), 1.0)}
    for name in ("concat", "average", "ties", "dare", "knots"):
        merged = run(name, [nothing, nothing], (1.0, 1.0))
        assert float(as_dense(merged, "square").abs().max()) == 0.0
        assert merged.lost == 0.0
        assert merged.factors["square"].rank >= 1


# -- learned ---------------------------------------------------------------------------------------


def quadratic(best):
    """A loss with its minimum at `best`, curved differently in every direction."""
    curves = torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=torch.float64)

    def loss_and_gradients(weights):
        off = torch.tensor(weights, dtype=torch.float64) - torch.tensor(best, dtype=torch.float64)
        return float(off @ curves @ off / 2), (curves @ off).tolist()

    return loss_and_gradients


@pytest.mark.parametrize("best", [(0.4, 0.8), (1.0, 1.0), (1.6, 0.3), (-0.2, 1.3)])
def test_the_right_weights_are_found(layers, best):
    merged = run("learned", layers[:2], (1.0, 1.0), loss_and_gradients=quadratic(best))
    assert merged.weights == pytest.approx(best, abs=0.02)
    exact = run("concat", layers[:2], merged.weights)
    for module in SHAPES:
        assert torch.equal(merged.factors[module].b_OR, exact.factors[module].b_OR)


def test_the_best_weights_seen_are_kept():
    seen = []

    def rising(weights):  # whatever is tried makes it worse
        seen.append(weights)
        return float(len(seen)), [1.0, -1.0]

    assert descend((0.3, 0.9), rising, tries=6) == (0.3, 0.9)
    assert len(set(seen)) == 6


def test_the_gradient_is_autograds(layers):
    generator = torch.Generator().manual_seed(1)
    inputs = {m: torch.randn(7, i, generator=generator).double() for m, (_, i) in SHAPES.items()}
    weights = torch.tensor(WEIGHTS, dtype=torch.float64, requires_grad=True)
    whole = 0.0
    for module, x in inputs.items():
        update = sum(
            weights[i] * torch.as_tensor(delta(layer, module))
            for i, layer in enumerate(layers)
            if module in layer
        )
        whole = whole + (x @ update.T).tanh().sum()
    whole.backward()

    gradients = {}
    for module, factors in run("concat", layers).factors.items():
        b = factors.b_OR.double().requires_grad_()
        ((inputs[module] @ factors.a_RI.double().T) @ b.T).tanh().sum().backward()
        gradients[module] = b.grad
    close(torch.tensor(weight_gradients(layers, gradients)), weights.grad)


def test_a_loss_that_is_not_finite_stops_it(layers):
    with pytest.raises(TrainError, match="not finite"):
        run("learned", layers[:2], (1.0, 1.0), loss_and_gradients=lambda w: (math.nan, [0.0, 0.0]))


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_names_what_does_not_fit(layers, name):
    other = {
        "square": Factors(torch.zeros(1, 9), torch.zeros(10, 1), 1.0),
        "tall": Factors(torch.zeros(1, 6), torch.zeros(16, 1), 1.0),
    }
    with pytest.raises(LayerError) as caught:
        run(name, [layers[0], other], (1.0, math.inf, 2.0))
    assert len(caught.value.faults) == 4
    assert any("square" in fault for fault in caught.value.faults)
    assert any("tall" in fault for fault in caught.value.faults)
    with pytest.raises(LayerError, match="no layer"):
        run(name, [], ())


@pytest.mark.parametrize("name", ["ties", "dare", "knots"])
@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, math.nan])
def test_a_density_is_a_share(layers, name, density):
    with pytest.raises(UsageError, match="density"):
        run(name, layers, density=density)


def test_other_refusals(layers):
    with pytest.raises(UsageError, match="sum to 0"):
        run("average", layers[:2], (1.0, -1.0))
    with pytest.raises(UsageError, match="examples"):
        run("learned", layers)
    with pytest.raises(UsageError, match="unknown merge method") as caught:
        method_named("tise")
    assert "'ties'" in caught.value.hint
    assert all(name in caught.value.hint for name in METHODS)


def test_the_registry_says_what_each_is():
    for name, method in METHODS.items():
        assert method.name == name
        assert method.reference.startswith("arXiv:")
        assert (method.density is not None) == (name in ("ties", "dare", "knots"))
    assert [m.name for m in METHODS.values() if m.needs_examples] == ["learned"]
    assert [m.name for m in METHODS.values() if m.seeded] == ["dare"]
