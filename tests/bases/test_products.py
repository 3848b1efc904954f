"""Products with frozen weights, small enough for torch's own and large enough for oneDNN's."""

import pytest
import torch

from lamina.bases import products

SMALL, LARGE = (4, 24, 16), (512, 128, 96)


@pytest.mark.parametrize("sizes", [SMALL, LARGE])
@pytest.mark.parametrize("biased", [False, True])
def test_float32_is_as_near_to_the_true_product_as_torch_is(sizes, biased):
    n, i, o = sizes
    x, w = torch.randn(n, i), torch.randn(o, i)
    bias = torch.randn(o) if biased else None
    true = x.double() @ w.double().T + (0 if bias is None else bias.double())
    far = (products.linear(x, w, bias).double() - true).abs().max()
    assert far < 2e-6 * i
    g = torch.randn(n, o)
    far = (products.through(g, w).double() - g.double() @ w.double()).abs().max()
    assert far < 2e-6 * o


def test_large_float32_products_are_onednns():
    n, i, o = LARGE
    x, w = torch.randn(n, i), torch.randn(o, i)
    with torch.profiler.profile() as seen:
        products.linear(x, w)
        products.through(torch.randn(n, o), w)
    calls = {each.key: each.count for each in seen.key_averages()}
    assert calls["mkldnn::_linear_pointwise"] == 2
    assert "aten::mm" not in calls


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_torchs_to_the_bit(dtype):
    n, i, o = LARGE
    x, w, g = (torch.randn(*shape, dtype=dtype) for shape in ((n, i), (o, i), (n, o)))
    assert torch.equal(products.linear(x, w), torch.nn.functional.linear(x, w))
    assert torch.equal(products.through(g, w), g @ w)


def test_columns_of_a_wider_matrix_are_not_onednns():
    """It would take four hundred times as long."""
    wide, x = torch.randn(900, 960), torch.randn(900, 576)
    g = wide[:, :576]
    with torch.profiler.profile() as seen:
        found = products.across(g, x)
        products.across(x, g)
        products.linear(g, torch.randn(576, 576))
    assert "mkldnn::_linear_pointwise" not in {each.key for each in seen.key_averages()}
    assert (found.double() - g.double().T @ x.double()).abs().max() < 2e-3


@pytest.mark.parametrize("sizes", [SMALL, LARGE, (2048, 16, 256)])
def test_sums_over_rows_and_updates_are_as_near(sizes):
    n, i, o = sizes
    x, g, y = torch.randn(n, i), torch.randn(n, o), torch.randn(n, o)
    far = (products.across(g, x).double() - g.double().T @ x.double()).abs().max()
    assert far < 2e-6 * n
    b = torch.randn(o, i)
    true = y.double() + 0.5 * x.double() @ b.double().T
    assert (products.added(y.clone(), x, b, 0.5).double() - true).abs().max() < 2e-6 * i
