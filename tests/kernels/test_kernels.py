"""The reference kernels against float64 autograd, the native ones against the reference."""

import pytest
import torch
from torch import nn

from lamina.kernels import accelerated, build, native, reference
from lamina.kernels.choose import chosen
from lamina.kernels.sizes import Heads, Places
from tests.tolerance import TOLERANCE

LENGTHS = [(1,), (5, 3), (17, 1, 40), (49, 50), (131,), (64, 256)]
SHAPES = [(4, 2, 32), (3, 1, 64), (2, 2, 128), (9, 3, 64)]
EPS = 1e-5


def places(lengths, size, dtype=torch.float32):
    n = sum(lengths)
    angle = torch.arange(n)[:, None].double() * torch.linspace(0.01, 1, size // 2)[None].double()
    starts = torch.tensor([0, *lengths]).cumsum(0)
    return Places(starts, angle.cos().to(dtype), angle.sin().to(dtype))


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def heads_of(shape):
    return Heads(*shape, scale=shape[2] ** -0.5)


def width(heads):
    return (heads.queries + 2 * heads.keys) * heads.size


# -- the reference ---------------------------------------------------------------------------------


def exact(ours, theirs):
    torch.testing.assert_close(ours, theirs, **TOLERANCE[torch.float64])


def test_norm_and_its_gradient():
    x, w, gy, before = randn(7, 12), randn(12, seed=1), randn(7, 12, seed=2), randn(7, 12, seed=3)
    x.requires_grad_()
    y = nn.functional.rms_norm(x, (12,), w, EPS)
    y.backward(gy)
    ours, rstd = reference.norm(x.detach(), w, EPS)
    exact(ours, y.detach())
    added = before.clone()
    reference.norm_backward(x.detach(), w, rstd, gy, added)
    exact(added, before + x.grad)


def test_swiglu_and_its_gradient():
    gu, gh = randn(5, 16).requires_grad_(), randn(5, 8, seed=1)
    y = nn.functional.silu(gu[:, :8]) * gu[:, 8:]
    y.backward(gh)
    exact(reference.swiglu(gu.detach()), y.detach())
    inplace = gu.detach().clone()
    exact(reference.swiglu_backward(inplace, gh), y.detach())
    exact(inplace, gu.grad)


def logits(n, v, k, dtype=torch.float64):
    """Logits, what they should predict (one token twice where k allows), and the shares."""
    index = torch.randint(v, (n, k), generator=torch.Generator().manual_seed(7))
    index[:, -1] = index[:, 0]
    share = 0.5 ** torch.arange(1, k + 1.0)
    share[-1] *= 2  # sums to 1 exactly
    return (4 * randn(n, v)).to(dtype), index, share.repeat(n, 1)


@pytest.mark.parametrize("k", [1, 3])
def test_cross_entropy_and_its_gradient(k):
    z, index, share = logits(6, 37, k)
    z.requires_grad_()
    wanted = torch.zeros_like(z).scatter_add(1, index, share.double())
    losses = nn.functional.cross_entropy(z, wanted, reduction="none")
    losses.sum().backward()
    inplace = z.detach().clone()
    exact(reference.cross_entropy(inplace, index, share, gradient=False), losses.detach())
    assert torch.equal(inplace, z)
    exact(reference.cross_entropy(inplace, index, share, gradient=True), losses.detach())
    exact(inplace, z.grad)


def test_turning_back_undoes_turning_and_leaves_values_alone():
    heads = heads_of((4, 2, 32))
    qkv = randn(9, width(heads))
    turned = qkv.clone()
    where = places((9,), 32, torch.float64)
    reference.rotate(turned, where, heads)
    assert not torch.allclose(turned[1:, :192], qkv[1:, :192])
    exact(turned[:, 192:], qkv[:, 192:])
    reference.rotate(turned, where, heads, back=True)
    exact(turned, qkv)


def test_head_norm_and_its_gradient():
    heads = heads_of((3, 1, 32))
    qkv, g = randn(6, width(heads)), randn(6, width(heads), seed=1)
    weights = randn(32, seed=2), randn(32, seed=3)
    x = qkv[:, :128].reshape(6, 4, 32).clone().requires_grad_()
    parts = (
        nn.functional.rms_norm(x[:, :3], (32,), weights[0], EPS),
        nn.functional.rms_norm(x[:, 3:], (32,), weights[1], EPS),
    )
    y = torch.cat(parts, 1).flatten(1)
    y.backward(g[:, :128])
    normed, grad = qkv.clone(), g.clone()
    kept = reference.head_norm(normed, weights, EPS, heads)
    exact(normed, torch.cat([y.detach(), qkv[:, 128:]], 1))
    reference.head_norm_backward(kept, weights, grad, heads)
    exact(grad, torch.cat([x.grad.flatten(1), g[:, 128:]], 1))


@pytest.mark.parametrize("lengths", LENGTHS[:4])
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_attention_and_its_gradient(lengths, shape):
    heads = heads_of(shape)
    n = sum(lengths)
    qkv = randn(n, width(heads)).requires_grad_()
    g = randn(n, heads.queries * heads.size, seed=1)
    outs = []
    for part in torch.split(qkv, list(lengths)):
        cut = part.view(len(part), -1, heads.size).transpose(0, 1)[None]
        q, k, v = torch.split(cut, [heads.queries, heads.keys, heads.keys], dim=1)
        out = nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=heads.scale, enable_gqa=True
        )
        outs.append(out[0].transpose(0, 1).flatten(1))
    y = torch.cat(outs)
    y.backward(g)
    where = places(lengths, heads.size, torch.float64)
    ours, lse = reference.attention(qkv.detach(), where, heads)
    exact(ours, y.detach())
    exact(reference.attention_backward(qkv.detach(), ours, lse, g, where, heads), qkv.grad)


# -- the native ones -------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def compiled(request):
    """The library; tests whose names say 'native' skip where the machine cannot have it."""
    try:
        return build.library()
    except build.Unavailable as error:
        return str(error)


@pytest.fixture
def here(compiled):
    if isinstance(compiled, str):
        pytest.skip(compiled)


def close(ours, inputs_in_bfloat16, limit=6e-3):
    """Within one rounding to bfloat16 and a little: relative to the whole tensor."""
    ours, expected = ours.double(), inputs_in_bfloat16.double()
    assert torch.isfinite(ours).all()
    assert (ours - expected).norm() <= limit * expected.norm() + 1e-6


@pytest.mark.usefixtures("here")
class TestNative:
    @pytest.mark.parametrize("n", [1, 3, 64])
    @pytest.mark.parametrize("channels", [16, 576])
    def test_norm(self, n, channels):
        x, w, gy, gx = (
            randn(*shape, seed=seed, dtype=torch.bfloat16)
            for seed, shape in enumerate([(n, channels), (channels,), (n, channels), (n, channels)])
        )
        y, rstd = native.norm(x, w, EPS)
        expected, r = reference.norm(x.double(), w.double(), EPS)
        close(y, expected)
        close(rstd, r)
        wide = gx.double()
        reference.norm_backward(x.double(), w.double(), r, gy.double(), wide)
        native.norm_backward(x, w, rstd, gy, gx)
        close(gx, wide)

    def test_swiglu(self):
        gu = (10 * randn(33, 96)).bfloat16()  # far out on both sides too
        gh = randn(33, 48, seed=1, dtype=torch.bfloat16)
        close(native.swiglu(gu), reference.swiglu(gu.double()))
        wide = gu.double()
        h = reference.swiglu_backward(wide, gh.double())
        close(native.swiglu_backward(gu, gh), h)
        close(gu, wide)

    @pytest.mark.parametrize(("v", "k"), [(16, 1), (50, 1), (49152, 1), (333, 16)])
    def test_cross_entropy(self, v, k):
        z, index, share = logits(5, v, k, torch.bfloat16)
        wide, before = z.double(), z.clone()
        expected = reference.cross_entropy(wide, index, share, gradient=True)
        close(native.cross_entropy(z, index, share, gradient=False), expected)
        assert torch.equal(z, before)
        close(native.cross_entropy(z, index, share, gradient=True), expected)
        close(z, wide)
        # what is left over after rounding each to bfloat16 stays small beside the whole
        assert abs(z.double().sum(1)).max() < 1e-2

    def test_cross_entropy_of_logits_far_apart(self):
        z = torch.tensor([[3e4, -3e4, 0.0] + [-torch.inf] * 14]).bfloat16()
        index, share = torch.tensor([[1]]), torch.ones(1, 1)
        loss = native.cross_entropy(z, index, share, gradient=True)
        assert float(loss) == pytest.approx(6e4, rel=1e-2)
        torch.testing.assert_close(
            z[0].float(), torch.eye(17)[0] - torch.eye(17)[1], rtol=0, atol=1e-30
        )

    @pytest.mark.parametrize("back", [False, True])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_rotate(self, shape, back):
        heads = heads_of(shape)
        qkv = randn(21, width(heads), dtype=torch.bfloat16)
        where, wide = places((21,), heads.size), qkv.double()
        reference.rotate(wide, where, heads, back=back)
        native.rotate(qkv, where, heads, back=back)
        close(qkv, wide)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_head_norm(self, shape):
        heads = heads_of(shape)
        qkv, g = (randn(13, width(heads), seed=s, dtype=torch.bfloat16) for s in (0, 1))
        weights = tuple(randn(heads.size, seed=s, dtype=torch.bfloat16) for s in (2, 3))
        exact_weights = tuple(w.double() for w in weights)
        wide, wide_g = qkv.double(), g.double()
        kept = reference.head_norm(wide, exact_weights, EPS, heads)
        reference.head_norm_backward(kept, exact_weights, wide_g, heads)
        ours = native.head_norm(qkv, weights, EPS, heads)
        native.head_norm_backward(ours, weights, g, heads)
        close(qkv, wide)
        close(g, wide_g)

    @pytest.mark.parametrize("lengths", LENGTHS)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_attention(self, lengths, shape):
        heads, where = heads_of(shape), places(lengths, shape[2])
        n = sum(lengths)
        qkv = randn(n, width(heads), dtype=torch.bfloat16)
        g = randn(n, heads.queries * heads.size, seed=1, dtype=torch.bfloat16)
        out, lse = native.attention(qkv, where, heads)
        expected, sums = reference.attention(qkv.double(), where, heads)
        close(out, expected)
        close(lse, sums)
        grad = native.attention_backward(qkv, out, lse, g, where, heads)
        close(
            grad,
            reference.attention_backward(qkv.double(), expected, sums, g.double(), where, heads),
        )

    def test_no_sequence_sees_another(self):
        heads = heads_of((4, 2, 64))
        one, two = (randn(n, width(heads), seed=n, dtype=torch.bfloat16) for n in (37, 70))
        alone, _ = native.attention(two, places((70,), 64), heads)
        beside, _ = native.attention(torch.cat([one, two]), places((37, 70), 64), heads)
        assert torch.equal(beside[37:], alone)

    def test_the_number_of_threads_changes_no_bit(self):
        heads, where = heads_of((9, 3, 64)), places((50, 77, 3), 64)
        qkv = randn(130, width(heads), dtype=torch.bfloat16)
        before, found = torch.get_num_threads(), []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                out, lse = native.attention(qkv, where, heads)
                found.append((out, native.attention_backward(qkv, out, lse, out, where, heads)))
        finally:
            torch.set_num_threads(before)
        for out, grad in found[1:]:
            assert torch.equal(out, found[0][0])
            assert torch.equal(grad, found[0][1])


# -- choosing and compiling ------------------------------------------------------------------------


def test_what_has_no_native_kernels_says_why():
    cpu = torch.device("cpu")
    assert "float32" in chosen(torch.float32, cpu, (64,), 64)[1]
    assert "multiple of 16" in chosen(torch.bfloat16, cpu, (24,), 64)[1]
    assert "heads of 32" in chosen(torch.bfloat16, cpu, (64,), 80)[1]
    assert "cuda" in chosen(torch.float32, torch.device("cuda"), (64,), 64)[1]


def test_a_gpu_has_kernels_of_its_own(monkeypatch):
    monkeypatch.setattr(accelerated, "find_spec", lambda name: None)
    ops, why = chosen(torch.bfloat16, torch.device("cuda"), (64,), 64)
    assert ops is reference
    assert "triton" in why
    monkeypatch.setattr(accelerated, "find_spec", lambda name: name)
    assert chosen(torch.bfloat16, torch.device("cuda"), (64,), 64) == (accelerated, "")


@pytest.fixture
def anew(monkeypatch, tmp_path):
    """The library as if it had never been asked for, kept in a folder of its own."""
    monkeypatch.setattr(build, "directory", lambda: tmp_path / "kernels")
    monkeypatch.setattr(build, "suits", lambda: True)
    build.library.cache_clear()
    yield tmp_path / "kernels"
    build.library.cache_clear()


def test_without_a_compiler_the_reference_is_used(anew, monkeypatch):
    monkeypatch.setattr(build, "COMPILERS", ("no-such-compiler",))
    module, why = chosen(torch.bfloat16, torch.device("cpu"), (64,), 64)
    assert module is reference
    assert "no C++ compiler" in why


def test_a_source_that_does_not_compile_is_no_end(anew, monkeypatch, tmp_path):
    source = tmp_path / "broken.cpp"
    source.write_text("int main( {")
    monkeypatch.setattr(build, "SOURCES", (source,))
    module, why = chosen(torch.bfloat16, torch.device("cpu"), (64,), 64)
    assert module is reference
    assert "did not compile" in why
    assert list(anew.iterdir()) == []


@pytest.mark.usefixtures("here")
def test_it_is_compiled_once(anew, monkeypatch):
    build.library()
    (made,) = anew.iterdir()
    monkeypatch.setattr(build, "_compile", None)
    build.library.cache_clear()
    build.library()
    assert list(anew.iterdir()) == [made]
