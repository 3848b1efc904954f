"""The starts that the methods benchmark compares: what they promise, against dense arithmetic."""

import pytest
import torch
from benchmarks import starts

from lamina.bases import families
from lamina.lowrank.attach import attached
from lamina.lowrank.inputs import inputs_of
from lamina.tokens.batch import collate
from lamina.train.objective import predicting, token_losses
from tests.train.tiny import PAD, model, recipe, rows

SILENT = ("plain", "inputs", "gradient", "mlp_ranks", "gradient_ranks")
TAKEN = ("pissa", "olora")


@pytest.fixture
def given():
    exact = model()
    batches = [collate(rows(6), PAD), collate(rows(6, seed=50), PAD)]
    return starts.Given(exact, families.linears(exact), recipe(rank=4), batches)


def started(name, given):
    return getattr(starts, name)(given)


@pytest.mark.parametrize("name", SILENT)
def test_the_start_changes_nothing(given, name):
    plain = predicting(given.model, given.batches[0])
    start = started(name, given)
    assert start.weights is None
    with attached(given.model, start.factors, given.linears):
        assert torch.equal(predicting(given.model, given.batches[0]), plain)
    assert all(part.scale == given.recipe.scale for part in start.factors.values())


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_out_comes_back(given, name):
    plain = predicting(given.model, given.batches[0])
    start = started(name, given)
    for linear_name, part in start.factors.items():
        weight = given.linears[linear_name].weight.data
        assert part.rank == 4
        together = start.weights[linear_name] + part.scale * part.b_OR @ part.a_RI
        torch.testing.assert_close(together, weight, rtol=1e-5, atol=1e-6)
        assert (start.weights[linear_name] - weight).norm() > 0.1 * weight.norm()
    untrained = start.layer(start.factors)  # nothing learned: no layer
    assert {part.rank for part in untrained.values()} == {8}
    with attached(given.model, untrained, given.linears):
        found = predicting(given.model, given.batches[0])
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)


def test_pissa_takes_the_principal_part(given):
    start = starts.pissa(given)
    for name, left_OI in start.weights.items():
        values = torch.linalg.svdvals(given.linears[name].weight.data)
        expected = values[given.recipe.rank :].norm()
        torch.testing.assert_close(left_OI.norm(), expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize(("oversampled", "share"), [(2, 0.7), (16, 0.999)])
def test_gradient_holds_what_the_best_directions_hold(given, monkeypatch, oversampled, share):
    """A sketch as wide as W is exact; one of 8 columns is not, least of all of a random model."""
    monkeypatch.setattr(starts, "OVERSAMPLED", oversampled)
    exact = given.model
    for linear in given.linears.values():
        linear.weight.requires_grad_()
    for batch in given.batches:
        token_losses(exact, batch).mean().backward()
    gradients = {name: linear.weight.grad for name, linear in given.linears.items()}
    for linear in given.linears.values():
        linear.weight.requires_grad_(False)
    for name, part in starts.gradient(given).factors.items():
        rows_RI = part.a_RI * 3**0.5
        torch.testing.assert_close(rows_RI @ rows_RI.T, torch.eye(4), rtol=1e-5, atol=1e-5)
        best = torch.linalg.svdvals(gradients[name])[:4].norm()
        assert (gradients[name] @ rows_RI.T).norm() > share * best


def test_inputs_holds_what_the_best_directions_hold(given):
    read: dict[str, list[torch.Tensor]] = {name: [] for name in given.linears}
    for batch in given.batches:
        real = (torch.arange(batch.ids.shape[1])[None] < batch.lengths[:, None]).flatten()
        with inputs_of(given.linears) as seen:
            predicting(given.model, batch)
        for name, x_NI in seen.items():
            read[name].append(x_NI[real].detach())
    for name, part in starts.inputs(given).factors.items():
        x_NI = torch.cat(read[name])
        rows_RI = part.a_RI * 3**0.5
        best = torch.linalg.svdvals(x_NI)[:4].norm()
        assert (x_NI @ rows_RI.T).norm() > 0.98 * best


@pytest.mark.parametrize("name", ["mlp_ranks", "gradient_ranks"])
def test_as_many_parameters_as_plain(given, name):
    plain, other = (
        sum(part.parameters for part in started(each, given).factors.values())
        for each in ("plain", name)
    )
    assert 0.9 * plain <= other <= plain
    assert len({part.rank for part in started(name, given).factors.values()}) > 1
