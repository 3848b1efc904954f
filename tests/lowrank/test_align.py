"""Correcting A for inputs that moved, and the directions that inputs lie in."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lamina.core.errors import LayerError
from lamina.lowrank.align import InputMoments, aligned
from lamina.lowrank.inputs import inputs_of, main_directions
from lamina.lowrank.maths import Factors
from tests.tolerance import TOLERANCE


def moments(old, new):
    found = InputMoments(old.shape[1])
    for part in range(0, len(old), 7):
        found.add(old[part : part + 7], new[part : part + 7])
    return found


@given(st.integers(0, 1000), st.floats(1e-3, 10.0))
def test_where_nothing_moved_a_stays(seed, ridge):
    torch.manual_seed(seed)
    x, factors = torch.randn(40, 12), Factors(torch.randn(3, 12), torch.randn(5, 3), 2.0)
    found = aligned(factors, moments(x, x), ridge)
    torch.testing.assert_close(found.a_RI, factors.a_RI, rtol=1e-4, atol=1e-4)
    assert found.b_OR is factors.b_OR
    assert found.scale == factors.scale


def test_a_linear_change_of_the_inputs_is_undone():
    torch.manual_seed(0)
    old, change = torch.randn(400, 12), torch.eye(12) + 0.2 * torch.randn(12, 12)
    new = old @ change.T
    factors = Factors(torch.randn(3, 12), torch.randn(5, 3), 1.0)
    found = aligned(factors, moments(old, new), ridge=1e-6)
    torch.testing.assert_close(new @ found.a_RI.T, old @ factors.a_RI.T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("ridge", [0.01, 0.1, 1.0])
def test_it_minimises_what_it_says(ridge):
    torch.manual_seed(1)
    old, new = torch.randn(60, 8).double(), torch.randn(60, 8).double()
    factors = Factors(torch.randn(2, 8), torch.randn(4, 2), 1.0)
    found = aligned(factors, moments(old, new), ridge).a_RI.double().requires_grad_()
    strength = ridge * (new.T @ new).diagonal().mean()
    a = factors.a_RI.double()
    loss = ((new @ found.T - old @ a.T) ** 2).sum() + strength * ((found - a) ** 2).sum()
    loss.backward()
    assert found.grad.abs().max() < 1e-3 * loss.item() ** 0.5


def test_nothing_read_corrects_nothing():
    factors = Factors(torch.randn(2, 8), torch.randn(4, 2), 1.0)
    assert aligned(factors, InputMoments(8)) is factors


def test_inputs_of_different_tokens_are_refused():
    with pytest.raises(LayerError, match="shapes"):
        InputMoments(4).add(torch.zeros(3, 4), torch.zeros(2, 4))


def test_inputs_are_what_the_linears_read():
    first, second = torch.nn.Linear(4, 6), torch.nn.Linear(6, 2)
    x = torch.randn(2, 3, 4)
    with inputs_of({"first": first, "second": second}) as seen:
        second(first(x))
    torch.testing.assert_close(seen["first"], x.reshape(-1, 4))
    torch.testing.assert_close(seen["second"], first(x).reshape(-1, 6))
    with inputs_of({"first": first}) as later:
        pass
    first(x)
    assert later == {}  # nobody listens after the block


@given(st.integers(0, 200), st.integers(1, 6), st.floats(0.5, 0.99))
def test_main_directions_hold_the_energy_asked_for(seed, rank, energy):
    torch.manual_seed(seed)
    x = torch.randn(200, rank) @ torch.randn(rank, 32) + 1e-3 * torch.randn(200, 32)
    gram = x.T @ x
    q = main_directions(gram, energy, seed)
    count = q.shape[1]
    assert count <= 8
    torch.testing.assert_close(q.T @ q, torch.eye(count), **TOLERANCE[torch.float32])
    held = (q.T @ gram @ q).diagonal().sum() / gram.diagonal().sum()
    assert held >= energy - 1e-3 or count == 8
    exact = torch.linalg.eigvalsh(gram).flip(0)
    fewer = exact[: count - 1].sum() / exact.sum()
    assert fewer < energy + 1e-3  # one direction less would not do
