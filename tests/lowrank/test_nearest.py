"""The nearest low-rank update: exact where it can be, its error the one that it states."""

import pytest
import torch

from lamina.core.errors import LayerError
from lamina.lowrank import nearest as room
from lamina.lowrank.nearest import MOST, dora, nearest, rounding


def low_rank(rows, columns, rank, seed=0):
    generator = torch.Generator().manual_seed(seed)
    b_OR = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    return b_OR @ torch.randn(rank, columns, generator=generator, dtype=torch.float64) / columns


def product(found):
    return found.factors.b_OR.double() @ found.factors.a_RI.double()


@pytest.mark.parametrize(("rows", "columns"), [(40, 24), (24, 40), (32, 32), (1, 9), (9, 1)])
def test_low_rank_comes_back(rows, columns):
    rank = min(3, rows, columns)
    delta = low_rank(rows, columns, rank)
    found = nearest(delta, tolerance=1e-6)
    assert found.rank == rank
    assert (product(found) - delta).norm() <= 1e-6 * delta.norm()
    assert found.norm == pytest.approx(float(delta.norm()))


@pytest.mark.parametrize(("rows", "columns"), [(30, 50), (50, 30)])
@pytest.mark.parametrize("rank", [1, 4, 29])
def test_it_is_the_nearest_of_its_rank(rows, columns, rank):
    """As Eckart and Young say: what is left out is the tail of the spectrum."""
    delta = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).double()
    found = nearest(delta, rank=rank)
    tail = torch.linalg.svdvals(delta)[rank:].norm()
    assert found.rank == rank
    assert found.discarded == pytest.approx(float(tail), rel=1e-5)
    assert float((delta - product(found)).norm()) == pytest.approx(float(tail), rel=1e-5)
    assert found.share == pytest.approx(float(tail / delta.norm()), rel=1e-5)


@pytest.mark.parametrize("tolerance", [0.5, 0.1, 1e-3])
def test_the_smallest_rank_within_a_tolerance(tolerance):
    delta = torch.randn(30, 40, generator=torch.Generator().manual_seed(2)).double()
    found = nearest(delta, tolerance=tolerance)
    sigma = torch.linalg.svdvals(delta)
    assert found.share <= tolerance
    assert sigma[found.rank - 1 :].norm() > tolerance * delta.norm()
    assert nearest(delta, tolerance=tolerance, rank=2).rank == 2


def test_large_ones_by_random_projections(monkeypatch):
    delta = low_rank(300, 260, 5) + 1e-5 * low_rank(300, 260, 200, seed=1)
    exact = nearest(delta, rank=5)
    monkeypatch.setattr(room, "EXACT", 16)
    state = torch.random.get_rng_state()
    found = nearest(delta, rank=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found.discarded == pytest.approx(exact.discarded, rel=1e-2)
    again = nearest(delta, rank=5)
    assert torch.equal(found.factors.a_RI, again.factors.a_RI)
    within = nearest(delta, tolerance=1e-5)
    assert within.share <= 1e-5
    assert within.rank > 100  # more than was looked at first


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_is_told_from_signal(dtype):
    """The rank of an update merged in a narrow dtype is the update's, not the noise's."""
    generator = torch.Generator().manual_seed(3)
    weight = (torch.randn(96, 64, generator=generator) * 0.05).to(dtype)
    size = 0.3 if dtype != torch.float32 else 1e-3
    update = size * low_rank(96, 64, 4)
    merged = (weight.double() + update).to(dtype)
    delta = merged.double() - weight.double()
    noise = rounding(merged)
    assert noise.norm == pytest.approx(float((delta - update).norm()), rel=0.15)
    assert torch.linalg.svdvals(delta - update)[0] < noise.edge < 1.5 * noise.norm
    found = nearest(delta, noise=noise)
    assert found.rank == 4
    assert found.noise == pytest.approx(found.discarded, rel=0.2)
    assert (product(found) - update).norm() < found.discarded  # nearer to the truth than the file
    assert nearest(delta - update, noise=noise).factors is None


def test_rows_and_columns_of_large_weights_raise_the_edge():
    """Trained weights have some, whose rounding is as much larger."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(96, 64, generator=generator) * 0.05
    weight[3] *= 40
    weight[:, 7] *= 40
    update = 1e-4 * low_rank(96, 64, 4)
    merged = (weight.double() + update).float()
    found = nearest(merged.double() - weight.double(), noise=rounding(merged))
    assert found.rank == 4


def test_no_more_numbers_than_the_matrix_has():
    delta = torch.randn(40, 40, generator=torch.Generator().manual_seed(4)).double()
    assert nearest(delta).rank == 20
    wide = torch.randn(400, 400, generator=torch.Generator().manual_seed(4)).double()
    assert nearest(wide).rank == MOST
    assert nearest(wide, rank=150).rank == 150


def test_nothing_and_nonsense():
    assert nearest(torch.zeros(4, 6)).factors is None
    assert nearest(torch.zeros(4, 6)).share == 0.0
    with pytest.raises(LayerError, match="not finite"):
        nearest(torch.full((3, 3), torch.inf))
    for limits in ({"rank": 0}, {"tolerance": 0.0}, {"tolerance": 1.0}, {"tolerance": -1.0}):
        with pytest.raises(LayerError, match=r"rank|tolerance"):
            nearest(torch.ones(3, 3), **limits)


def test_dora_without_rows():
    with pytest.raises(LayerError, match="no direction"):
        dora(torch.zeros(2, 2).double(), torch.zeros(2, 2).double(), torch.ones(2))


def test_changes_smaller_than_rounding_are_not_taken_for_noise():
    """Weights on the dtype's grid, moved by less than a step: few move at all, and those count."""
    generator = torch.Generator().manual_seed(6)
    weight = (torch.randn(96, 64, generator=generator) * 0.05).bfloat16()
    tuned = (weight.double() + 2e-5 * torch.randn(96, 64, generator=generator)).bfloat16()
    delta = tuned.double() - weight.double()
    noise = rounding(tuned)
    assert 0 < delta.norm() < 0.5 * noise.norm
    assert torch.linalg.svdvals(delta)[0] < noise.edge
    found = nearest(delta, noise=noise)
    assert found.rank == 38  # 96 x 64 / (96 + 64)
    assert not found.cut
