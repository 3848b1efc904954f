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
def test_everything_else():
    x, w, gy, gx = there(randn(7, 64), randn(64, seed=1), randn(7, 64, seed=2), randn(7, 64))
    y, rstd = accelerated.norm(x, w, EPS)
    close(y, reference.norm(x.double().cpu(), w.double().cpu(), EPS)[0])
    wide = gx.double().cpu()
    reference.norm_backward(*(t.double().cpu() for t in (x, w, rstd, gy)), wide)
    accelerated.norm_backward(x, w, rstd, gy, gx)
    close(gx, wide)
    z, index, share = logits(5, 333, 3)
    (ours,) = there(z)
    wide = ours.double().cpu()
    expected = reference.cross_entropy(wide, index, share, gradient=True)
    found = accelerated.cross_entropy(ours, index.to(CUDA), share.to(CUDA), gradient=True)
    close(found, expected)
    close(ours, wide)


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
