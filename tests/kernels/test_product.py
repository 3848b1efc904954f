"""The training step's products: exact to one rounding, and a row's bits are its own."""

import pytest
import torch

from lamina.kernels import build, native

SIZES = {
    "one row": (1, 32, (16,), (2,), True),
    "queries, keys, values": (97, 64, (64, 16, 48), (6, 0, 16), False),
    "gate and up": (200, 96, (160, 160), (16, 16), False),
    "nothing learned": (33, 64, (80,), (0,), True),
    "more than is in order at once": (130, 1536, (2048,), (16,), True),
}


@pytest.fixture(autouse=True)
def _native():
    try:
        build.library()
    except build.Unavailable as error:
        pytest.skip(str(error))


def made(n, inputs, outs, ranks, residual):
    draw = torch.Generator().manual_seed(n)

    def some(*shape):
        return torch.randn(shape, generator=draw).bfloat16()

    x, weight, total = some(n, inputs), some(sum(outs), inputs), sum(ranks)
    members, start = [], 0
    for out, rank in zip(outs, ranks, strict=True):
        members.append((out, slice(start, start + rank), some(out, rank) if rank else None))
        start += rank
    update = (some(n, total), members) if total else None
    return x, weight, update, some(n, sum(outs)) if residual else None, some(total, inputs)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_forward_and_back_are_rounded_once(sizes):
    x, weight, update, residual, a = made(*sizes)
    assert native.takes(sizes[1], sizes[2], sizes[3])
    exact = x.double() @ weight.double().T
    if residual is not None:
        exact += residual.double()
    start = 0
    for out, at, b in update[1] if update else ():
        if b is not None:
            exact[:, start : start + out] += update[0][:, at].double() @ b.double().T
        start += out
    out = torch.full_like(exact, torch.nan).bfloat16()
    found = native.product(x, weight, update, residual, out)
    assert found is out
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-2)
    g = exact.bfloat16()
    v = update[0] if update else None
    back = native.product_back(g, weight, None if v is None else (v, a))
    exact = g.double() @ weight.double() + (0 if v is None else v.double() @ a.double())
    scale = exact.abs().max()
    torch.testing.assert_close(back.double() / scale, exact / scale, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_a_rows_bits_are_its_own(sizes):
    """Whatever rows stand beside it, whatever the number of threads."""
    x, weight, update, residual, a = made(*sizes)
    u = None if update is None else update[0]

    def forward(at):
        some = None if update is None else (u[at].contiguous(), update[1])
        beside = None if residual is None else residual[at].contiguous()
        return native.product(x[at].contiguous(), weight, some, beside, None)

    def back(at):
        g = whole[at].contiguous()
        return native.product_back(g, weight, None if u is None else (u[at].contiguous(), a))

    everything = slice(0, len(x))
    whole = forward(everything)
    whole_back = back(everything)
    for at in (slice(0, 1), slice(len(x) // 2, None), slice(len(x) // 3, len(x) // 3 + 7)):
        assert torch.equal(forward(at), whole[at])
        assert torch.equal(back(at), whole_back[at])
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(forward(everything), whole)
        assert torch.equal(back(everything), whole_back)
    torch.set_num_threads(before)


def test_what_it_does_not_take():
    assert not native.takes(48, (16,), (2,))
    assert not native.takes(32, (24,), (2,))
    assert not native.takes(32, (16,), (3,))
