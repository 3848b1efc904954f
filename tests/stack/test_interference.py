"""Interference against dense float64 formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.core.errors import LayerError
from lamina.lowrank.maths import Factors
from lamina.stack.interference import compare, interference, principal_angles

I, O = 12, 10  # noqa: E741


def factors(r: int, seed: int, scale: float = 1.0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    return Factors(
        torch.randn(r, I, generator=generator), torch.randn(O, r, generator=generator), scale
    )


def dense(f: Factors) -> torch.Tensor:
    return f.scale * (f.b_OR.double() @ f.a_RI.double())


def projector(m: torch.Tensor) -> torch.Tensor:
    """Onto the column space of a matrix."""
    return m @ torch.linalg.pinv(m)


def share_within(own: torch.Tensor, other: torch.Tensor) -> float:
    part = projector(other) @ own @ projector(other.T)
    return float(part.square().sum() / own.square().sum())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.sampled_from([1.0, -0.5]))
def test_agrees_with_the_dense_formulas(r1, r2, seed, scale):
    a, b = factors(r1, seed, scale), factors(r2, seed + 100)
    found = compare("m", a, b)
    one, two = dense(a), dense(b)
    inner = float((one * two).sum())
    assert found.norm_a == pytest.approx(float(one.norm()))
    assert found.norm_b == pytest.approx(float(two.norm()))
    assert found.inner == pytest.approx(inner, abs=1e-9)
    assert found.cosine == pytest.approx(inner / float(one.norm() * two.norm()), abs=1e-9)
    assert found.overlap_a == pytest.approx(share_within(one, two), abs=1e-9)
    assert found.overlap_b == pytest.approx(share_within(two, one), abs=1e-9)
    # the cosines of principal angles are the singular values of the product of projectors
    count = min(r1, r2)
    for angles, left, right in ((found.columns, one, two), (found.rows, one.T, two.T)):
        cosines = torch.linalg.svdvals(projector(left) @ projector(right))[:count]
        expected = torch.rad2deg(cosines.clamp(max=1.0).acos())
        assert angles.smallest == pytest.approx(float(expected[0]), abs=1e-5)
        assert angles.mean == pytest.approx(float(expected.mean()), abs=1e-5)


def test_the_same_update_and_its_opposite():
    a = factors(3, 0)
    for other, cosine in ((a, 1.0), (a.weighted(-2.0), -1.0)):
        found = compare("m", a, other)
        assert found.cosine == pytest.approx(cosine)
        assert found.overlap_a == pytest.approx(1.0)
        assert found.columns.mean == pytest.approx(0.0, abs=1e-5)
        assert found.rows.mean == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("degrees", [1e-6, 0.01, 30.0, 45.0, 80.0, 90.0])
def test_an_angle_known_by_construction(degrees):
    """Also tiny ones, which a cosine in float64 cannot tell from 0."""
    turn = math.radians(degrees)
    basis = torch.eye(5, dtype=torch.float64)
    turned = basis[:, :2].clone()
    turned[:, 0] = math.cos(turn) * basis[:, 0] + math.sin(turn) * basis[:, 2]
    found = principal_angles(basis[:, :2], turned)
    assert found.tolist() == pytest.approx([0.0, degrees], rel=1e-6, abs=1e-9)
    alone = principal_angles(turned[:, :1], basis[:, :2])
    assert alone.tolist() == pytest.approx([degrees], rel=1e-6)


def test_updates_that_share_no_direction():
    a = Factors(torch.eye(I)[:2], torch.eye(O)[:, :2], 1.0)
    b = Factors(torch.eye(I)[2:5], torch.eye(O)[:, 2:5], 1.0)
    found = compare("m", a, b)
    assert (found.inner, found.cosine, found.overlap_a, found.overlap_b) == (0, 0, 0, 0)
    assert found.columns.smallest == found.rows.smallest == pytest.approx(90.0)


def test_zero_updates_have_no_angles():
    zero = Factors(torch.randn(2, I), torch.zeros(O, 2), 1.0)
    found = compare("m", factors(2, 0), zero)
    assert (found.norm_b, found.cosine, found.overlap_a, found.overlap_b) == (0, 0, 0, 0)
    assert found.columns is found.rows is None


def test_a_doubled_direction_is_one_direction():
    """Rank-deficient factors span what the update spans, not what their columns could."""
    a = factors(2, 0)
    doubled = Factors(torch.cat([a.a_RI, a.a_RI]), torch.cat([a.b_OR, a.b_OR], dim=1), 0.5)
    found = compare("m", doubled, factors(3, 1))
    expected = compare("m", a, factors(3, 1))
    assert found.inner == pytest.approx(expected.inner, rel=1e-6)
    assert found.columns.mean == pytest.approx(expected.columns.mean, abs=1e-4)


def test_layers_are_summed_as_one_long_vector():
    a = {"x": factors(2, 0), "y": factors(3, 1), "z": factors(1, 2)}
    b = {"x": factors(2, 5, -1.0), "y": factors(3, 6), "w": factors(1, 7)}
    told = []
    found = interference(a, b, lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]
    assert (found.only_a, found.only_b) == (("z",), ("w",))
    assert [m.inner for m in found.modules] == sorted(m.inner for m in found.modules)
    inner = sum(float((dense(a[n]) * dense(b[n])).sum()) for n in "xy")
    norm_a = math.hypot(*(float(dense(f).norm()) for f in a.values()))
    norm_b = math.hypot(*(float(dense(f).norm()) for f in b.values()))
    assert found.inner == pytest.approx(inner)
    assert (found.norm_a, found.norm_b) == pytest.approx((norm_a, norm_b))
    assert found.cosine == pytest.approx(inner / norm_a / norm_b)
    within = sum(
        share_within(dense(a[n]), dense(b[n])) * float(dense(a[n]).square().sum()) for n in "xy"
    )
    assert found.overlap_a == pytest.approx(within / norm_a**2)


def test_layers_without_a_module_in_common():
    found = interference({"x": factors(2, 0)}, {"y": factors(2, 1)})
    assert found.modules == ()
    assert (found.inner, found.cosine, found.overlap_a) == (0.0, 0.0, 0.0)


def test_updates_of_different_linears_are_all_listed():
    odd = Factors(torch.randn(2, I + 1), torch.randn(O, 2), 1.0)
    with pytest.raises(LayerError) as caught:
        interference({"x": factors(2, 0), "y": factors(2, 0)}, {"x": odd, "y": odd})
    assert len(caught.value.faults) == 2
    with pytest.raises(LayerError, match="different linears"):
        compare("m", factors(1, 0), odd)
