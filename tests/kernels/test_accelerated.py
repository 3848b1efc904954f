"""The GPU's kernels against the reference, and that a step mixes no devices."""

import pytest
import torch

from lamina.bases import families
from lamina.bases.families import backbone
from lamina.kernels import accelerated, reference
from lamina.lowrank.attach import attached
from lamina.lowrank.group import Group
from lamina.tokens.batch import collate
from lamina.train import fused
from lamina.train.objective import token_losses
from tests.kernels.test_kernels import EPS, heads_of, logits, places, randn, width
from tests.tolerance import TOLERANCE
from tests.train.test_fused import factors_for
from tests.train.tiny import PAD, model, rows

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
CUDA = torch.device("cuda")


def there(*tensors):
    return [t.to(CUDA, torch.bfloat16) for t in tensors]


def close(ours, theirs):
    torch.testing.assert_close(ours.double().cpu(), theirs, **TOLERANCE[torch.bfloat16])


@gpu
@pytest.mark.parametrize("lengths", [(5, 3), (17, 1, 40), (64, 256)])
@pytest.mark.parametrize("shape", [(4, 2, 32), (9, 3, 64), (2, 2, 128)])
def test_attention(lengths, shape):
    heads, where = heads_of(shape), places(lengths, shape[2])
    n = sum(lengths)
    qkv, g = randn(n, width(heads)), randn(n, heads.queries * heads.size, seed=1)
    ours, ours_g = there(qkv, g)
    moved = type(where)(where.starts_S, where.cos_NR.to(CUDA), where.sin_NR.to(CUDA))
    out, kept = accelerated.attention(ours, moved, heads)
    exact = ours.double().cpu(), ours_g.double().cpu()
    expected, sums = reference.attention(exact[0], where, heads)
    close(out, expected)
    close(
        accelerated.attention_backward(ours, out, kept, ours_g, moved, heads),
        reference.attention_backward(exact[0], expected, sums, exact[1], where, heads),
    )


@gpu
def test_attention_twice_is_the_same_to_the_bit():
    heads, where = heads_of((4, 2, 64)), places((700, 300), 64)
    moved = type(where)(where.starts_S, where.cos_NR.to(CUDA), where.sin_NR.to(CUDA))
    ours, ours_g = there(randn(1000, width(heads)), randn(1000, 256, seed=1))
    out, kept = accelerated.attention(ours, moved, heads)
    found = [
        accelerated.attention_backward(ours, out, kept, ours_g, moved, heads) for _ in range(5)
    ]
    assert all(torch.equal(found[0], other) for other in found[1:])


def wide(tensors):
    return [t.double().cpu() for t in tensors]


@gpu
@pytest.mark.parametrize("channels", [64, 576, 5000])
def test_norms(channels):
    shapes = (7, channels), (channels,), (7, channels), (7, channels)
    x, w, gy, gx = there(*(randn(*shape, seed=seed) for seed, shape in enumerate(shapes)))
    exact = wide((x, w, gy, gx))
    y, rstd = accelerated.norm(x, w, EPS)
    expected, sums = reference.norm(exact[0], exact[1], EPS)
    close(y, expected)
    torch.testing.assert_close(rstd.double().cpu(), sums, rtol=1e-5, atol=1e-6)
    out = torch.full_like(x, torch.nan)
    assert accelerated.norm(x, w, EPS, out)[0] is out
    assert torch.equal(out, y)
    reference.norm_backward(exact[0], exact[1], rstd.double().cpu(), exact[2], exact[3])
    accelerated.norm_backward(x, w, rstd, gy, gx)
    close(gx, exact[3])


@gpu
@pytest.mark.parametrize("shape", [(4, 2, 32), (9, 3, 64), (32, 8, 128), (3, 1, 80)])
def test_heads(shape):
    heads, where = heads_of(shape), places((4, 5), shape[2])
    moved = type(where)(where.starts_S, where.cos_NR.to(CUDA), where.sin_NR.to(CUDA))
    qkv, g = there(randn(9, width(heads)), randn(9, width(heads), seed=1))
    weights = tuple(there(randn(heads.size, seed=2), randn(heads.size, seed=3)))
    exact_qkv, exact_g, *exact_weights = wide((qkv, g, *weights))
    kept = accelerated.head_norm(qkv, weights, EPS, heads)
    exact_kept = reference.head_norm(exact_qkv, tuple(exact_weights), EPS, heads)
    close(qkv, exact_qkv)
    close(kept[0], exact_kept[0])
    accelerated.head_norm_backward(kept, weights, g, heads)
    reference.head_norm_backward(exact_kept, tuple(exact_weights), exact_g, heads)
    close(g, exact_g)
    for back in (False, True):
        (turned,) = there(randn(9, width(heads), seed=4))
        (expected,) = wide([turned])
        accelerated.rotate(turned, moved, heads, back=back)
        reference.rotate(expected, where, heads, back=back)
        close(turned, expected)


@gpu
@pytest.mark.parametrize("inner", [64, 1000, 1536])
def test_swiglu(inner):
    gu, gh = there(randn(5, 2 * inner), randn(5, inner, seed=1))
    exact_gu, exact_gh = wide((gu, gh))
    close(accelerated.swiglu(gu), reference.swiglu(exact_gu))
    close(accelerated.swiglu_backward(gu, gh), reference.swiglu_backward(exact_gu, exact_gh))
    close(gu, exact_gu)


@gpu
@pytest.mark.parametrize(("vocabulary", "k"), [(333, 3), (37, 1), (9000, 16), (49152, 1)])
def test_cross_entropy(vocabulary, k):
    z, index, share = logits(5, vocabulary, k)
    (ours,) = there(z)
    (exact,) = wide([ours])
    expected = reference.cross_entropy(exact, index, share, gradient=True)
    before = ours.clone()
    found = accelerated.cross_entropy(ours, index.to(CUDA), share.to(CUDA), gradient=False)
    close(found, expected)
    assert torch.equal(ours, before)
    found = accelerated.cross_entropy(ours, index.to(CUDA), share.to(CUDA), gradient=True)
    close(found, expected)
    close(ours, exact)


@gpu
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_fused_decoder(family):
    config = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 64}
    batch, found = collate(rows(5), PAD), []
    for device in ("cuda", "cpu"):
        small = model(family, torch.bfloat16, **config).to(device)
        linears = families.linears(small)
        with attached(small, factors_for(linears), linears) as attachment:
            decoder, why = fused.fuse(small)
            assert decoder is not None, why
            token_losses(decoder, batch).mean().backward()
            found.append(attachment.flat.grad.cpu())
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 0.1


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_step_stays_where_the_model_is(family):
    """On the meta device, which has shapes and no numbers, and refuses to be mixed with others."""
    small = model(family, torch.float32).to("meta")
    linears = families.linears(small)
    with attached(small, factors_for(linears), linears) as attachment:
        inner, config = backbone(small), small.config
        heads = fused.Heads(
            config.num_attention_heads,
            config.num_key_value_heads,
            inner.layers[0].self_attn.head_dim,
            1.0,
        )
        layers = tuple(fused._layer(each, heads, Group) for each in inner.layers)
        decoder = fused.FusedDecoder(small, reference, layers)
        losses = token_losses(decoder, collate(rows(5), PAD))
        assert losses.device.type == attachment.flat.device.type == "meta"
        losses.mean().backward()
