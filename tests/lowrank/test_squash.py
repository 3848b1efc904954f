"""Squash against dense float64 arithmetic: exact at full rank, the best at any lower one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.core.errors import LayerError
from lamina.lowrank.maths import Factors, concat
from lamina.lowrank.squash import (
    NOISE,
    discarded_share,
    relative_error,
    spectrum,
    squash,
    squash_layers,
)
from tests.tolerance import TOLERANCE

WANTED = 1e-5
"""Relative Frobenius error that an exact squash may have."""


def random_factors(i: int, o: int, r: int, scale: float, seed: int) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    return Factors(
        torch.randn(r, i, generator=generator), torch.randn(o, r, generator=generator), scale
    )


def dense(*terms: Factors) -> torch.Tensor:
    return sum(t.scale * (t.b_OR.double() @ t.a_RI.double()) for t in terms)


def dense_error(terms, squashed) -> float:
    whole = dense(*terms)
    return float((whole - dense(squashed.factors)).norm() / whole.norm())


def stack_of(shape, ranks, seed):
    return [
        random_factors(*shape, r, 0.5 * (k + 1) * (-1) ** k, seed + k) for k, r in enumerate(ranks)
    ]


shapes = st.tuples(st.integers(1, 33), st.integers(1, 33))
ranks = st.lists(st.integers(1, 9), min_size=1, max_size=4)  # sums beyond both sides, too
seeds = st.integers(0, 99)


@settings(max_examples=60, deadline=None)
@given(shapes, ranks, seeds)
def test_full_rank_is_exact(shape, ranks, seed):
    terms = stack_of(shape, ranks, seed)
    for rank in (None, sum(ranks), 4096):
        found = squash(terms, rank=rank, tolerance=None)
        assert dense_error(terms, found) < WANTED
        assert found.rank == found.factors.rank <= min(*shape, sum(ranks))
        assert found.factors.scale == 1.0
        assert found.factors.a_RI.dtype == found.factors.b_OR.dtype == torch.float32
        assert found.share <= NOISE
    torch.testing.assert_close(
        dense(found.factors), dense(concat(terms)), **TOLERANCE[torch.float32]
    )


@settings(max_examples=60, deadline=None)
@given(shapes, ranks, seeds, st.integers(1, 12))
def test_a_lower_rank_is_the_nearest_of_that_rank(shape, ranks, seed, rank):
    terms = stack_of(shape, ranks, seed)
    found = squash(terms, rank=rank, tolerance=None)
    values = torch.linalg.svdvals(dense(*terms))
    best = float(values[rank:].norm() / values.norm())  # Eckart and Young
    assert found.rank <= rank
    assert dense_error(terms, found) == pytest.approx(best, abs=WANTED)
    assert found.share == pytest.approx(best, abs=NOISE)
    assert found.norm == pytest.approx(float(values.norm()))


@settings(max_examples=60, deadline=None)
@given(shapes, ranks, seeds, st.floats(0.0, 0.99))
def test_a_tolerance_keeps_the_smallest_rank_that_meets_it(shape, ranks, seed, tolerance):
    terms = stack_of(shape, ranks, seed)
    found = squash(terms, rank=None, tolerance=tolerance)
    assert dense_error(terms, found) <= tolerance + WANTED
    values = torch.linalg.svdvals(dense(*terms))
    one_less = float(values[found.rank - 1 :].norm() / values.norm())
    assert one_less > max(tolerance, NOISE) * (1 - 1e-9)


@settings(max_examples=30, deadline=None)
@given(shapes, ranks, seeds)
def test_both_sides_carry_the_roots_of_the_singular_values(shape, ranks, seed):
    terms = stack_of(shape, ranks, seed)
    found = squash(terms, rank=None, tolerance=None)
    sigma = torch.diag(spectrum(terms).sigma_R).float()
    a, b = found.factors.a_RI, found.factors.b_OR
    for gram in (a @ a.T, b.T @ b):
        torch.testing.assert_close(
            gram / sigma.max(), sigma / sigma.max(), **TOLERANCE[torch.float32]
        )


@settings(max_examples=30, deadline=None)
@given(shapes, ranks, ranks, seeds)
def test_relative_error_is_the_dense_one(shape, one, two, seed):
    a, b = stack_of(shape, one, seed), stack_of(shape, two, seed + 50)
    whole, other = dense(*a), dense(*b)
    expected = float((whole - other).norm() / whole.norm())
    assert relative_error(a, b) == pytest.approx(expected, rel=1e-9)
    assert relative_error(a, a) < 1e-12
    found = squash(a, rank=None, tolerance=None)
    assert relative_error(a, [found.factors]) < WANTED


def test_rank_deficient_terms_lose_what_is_double():
    one = random_factors(40, 30, 5, 1.0, 0)
    twice = [one, one.weighted(0.3), one.weighted(-0.1)]
    found = squash(twice, rank=None, tolerance=None)
    assert (found.rank, found.rank_before) == (5, 15)
    assert relative_error(twice, [found.factors]) < WANTED
    assert spectrum(twice).rank == 5


def test_terms_that_cancel_to_a_thousandth_stay_exact():
    """What float32 factorisations miss by 2e-4."""
    one, small = random_factors(256, 320, 16, 1.0, 0), random_factors(256, 320, 4, 1e-3, 1)
    terms = [one, one.weighted(-1.0), small]
    found = squash(terms, rank=None, tolerance=None)
    assert found.rank == 4
    assert relative_error(terms, [found.factors]) < WANTED


def test_zero_updates_are_kept_as_zero():
    zero = Factors(torch.randn(3, 8), torch.zeros(6, 3), 2.0)
    one = random_factors(8, 6, 2, 1.0, 0)
    for terms in ([zero], [zero, zero], [one.weighted(0.0)]):
        found = squash(terms, rank=None, tolerance=None)
        assert (found.rank, found.norm, found.discarded, found.share) == (0, 0.0, 0.0, 0.0)
        assert found.factors.rank == 1  # no empty tensors
        assert not dense(found.factors).any()
        assert spectrum(terms).rank == 0
    both = squash([zero, one], rank=None, tolerance=None)
    assert both.rank == 2
    assert relative_error([one], [both.factors]) < WANTED
    assert relative_error([zero], [zero]) == 0.0
    assert relative_error([zero], [one]) == math.inf


def test_layers_may_touch_different_modules():
    one = {"a": random_factors(8, 6, 2, 1.0, 1), "b": random_factors(6, 6, 1, 1.0, 2)}
    two = {"a": random_factors(8, 6, 3, -2.0, 3), "c": random_factors(4, 9, 4, 1.0, 4)}
    told = []
    found = squash_layers(
        [one, two], rank=2, tolerance=None, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert {name: part.rank for name, part in found.items()} == {"a": 2, "b": 1, "c": 2}
    terms = {"a": [one["a"], two["a"]], "b": [one["b"]], "c": [two["c"]]}
    lost = [(dense(*terms[n]) - dense(p.factors)).norm() for n, p in found.items()]
    all_of_it = [dense(*each).norm() for each in terms.values()]
    expected = float(torch.stack(lost).norm() / torch.stack(all_of_it).norm())
    assert discarded_share(found) == pytest.approx(expected, abs=WANTED)


def test_arguments_are_not_written():
    terms = stack_of((9, 7), [3, 4], 0)
    before = [(t.a_RI.clone(), t.b_OR.clone()) for t in terms]
    squash(terms, rank=2, tolerance=None)
    relative_error(terms, terms[:1])
    for (a, b), term in zip(before, terms, strict=True):
        assert torch.equal(a, term.a_RI)
        assert torch.equal(b, term.b_OR)


def test_refusals():
    with pytest.raises(LayerError, match="nothing"):
        squash([], rank=None, tolerance=None)
    with pytest.raises(LayerError, match="different linears"):
        squash(
            [random_factors(4, 4, 1, 1.0, 0), random_factors(4, 5, 1, 1.0, 0)],
            rank=None,
            tolerance=None,
        )
    with pytest.raises(LayerError, match="rank 0"):
        squash([random_factors(4, 4, 1, 1.0, 0)], rank=0, tolerance=None)
    with pytest.raises(LayerError, match=r"tolerance 1\.5"):
        squash([random_factors(4, 4, 1, 1.0, 0)], rank=None, tolerance=1.5)
