"""Laws of the pure functions, against dense float64 arithmetic."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.core.errors import LayerError
from lamina.lowrank.maths import Factors, compose, concat, fold, lowrank_delta
from tests.tolerance import TOLERANCE


def random_factors(i: int, o: int, r: int, scale: float, seed: int) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    return Factors(
        torch.randn(r, i, generator=generator), torch.randn(o, r, generator=generator), scale
    )


def dense(terms: list[Factors]) -> torch.Tensor:
    return sum(t.scale * (t.b_OR.double() @ t.a_RI.double()) for t in terms)


shapes = st.tuples(st.integers(1, 33), st.integers(1, 33))
ranks = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(shapes, ranks, st.integers(0, 99))
def test_concatenation_is_the_sum_of_its_parts(shape, ranks, seed):
    terms = [random_factors(*shape, r, 0.5 * (k + 1), seed + k) for k, r in enumerate(ranks)]
    joined = concat(terms)
    assert joined.rank == sum(ranks)
    torch.testing.assert_close(dense([joined]), dense(terms), **TOLERANCE[torch.float32])


@settings(max_examples=40, deadline=None)
@given(shapes, ranks, st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 99))
def test_fold_rounds_once(shape, ranks, dtype, seed):
    terms = [random_factors(*shape, r, 0.3, seed + k) for k, r in enumerate(ranks)]
    weight = torch.randn(shape[1], shape[0], generator=torch.Generator().manual_seed(seed)).to(
        dtype
    )
    before = weight.clone()
    folded = fold(weight, terms)
    assert folded.dtype == dtype
    assert torch.equal(weight, before)
    exact = weight.double() + dense(terms)
    if (
        dtype == torch.bfloat16
    ):  # one rounding: within half a unit in the last place, plus f32 noise
        assert ((folded.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-4).all()
    else:
        torch.testing.assert_close(folded.double(), exact, **TOLERANCE[torch.float32])


def test_delta_equals_dense_product():
    factors = random_factors(24, 40, 5, 1.5, 0)
    x = torch.randn(2, 7, 24)
    expected = x.double() @ dense([factors]).T
    torch.testing.assert_close(
        lowrank_delta(x, factors).double(), expected, **TOLERANCE[torch.float32]
    )
    with pytest.raises(LayerError, match="23 features"):
        lowrank_delta(torch.randn(3, 23), factors)


def test_compose_keeps_modules_that_only_one_layer_touches():
    one = {"a": random_factors(4, 4, 2, 1.0, 1), "b": random_factors(4, 6, 1, 1.0, 2)}
    two = {"a": random_factors(4, 4, 3, 2.0, 3), "c": random_factors(8, 4, 1, 1.0, 4)}
    both = compose([one, two])
    assert {name: f.rank for name, f in both.items()} == {"a": 5, "b": 1, "c": 1}
    torch.testing.assert_close(
        dense([both["a"]]), dense([one["a"], two["a"]]), **TOLERANCE[torch.float32]
    )


def test_concat_refuses_nothing_and_mixed_shapes():
    with pytest.raises(LayerError, match="nothing"):
        concat([])
    with pytest.raises(LayerError, match="different linears"):
        concat([random_factors(4, 4, 1, 1.0, 0), random_factors(4, 5, 1, 1.0, 0)])
