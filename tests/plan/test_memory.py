"""The prediction's terms beside the tensors that they are about, and how a run is made to fit."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lamina.bases import families, sample
from lamina.flows import fitting
from lamina.lowrank.attach import attached
from lamina.plan import memory
from lamina.plan.memory import Pass, Setting, Work, first_fit, predict, settings
from lamina.plan.remedies import ways_out
from lamina.tokens.batch import collate
from lamina.train import fused, layer, objective, teach
from lamina.train.fused import fuse
from lamina.train.loop import fresh_factors
from tests.train.tiny import PAD, model, recipe, row

MB = 10**6


def shapes(family="llama", **changes):
    how = recipe(**changes.pop("how", {}))
    return fitting.shapes_of(model(family, torch.float32, **changes), how)


@pytest.fixture(scope="module")
def big():
    """SmolLM2-135M's shapes, from a model without weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama",
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    return fitting.shapes_of(empty, recipe(rank=16, dtype="bfloat16"))


def test_constants_are_those_of_the_code():
    assert memory.HEAD_CHUNK == objective.CHUNK_BYTES
    assert memory.TEACHER_CHUNK == teach.CHUNK
    assert fitting.ANSWERS_AT_ONCE == sample.BATCH_ROWS


def test_shapes(big):
    assert big.parameters == 134_515_008
    assert big.factors == 4_884_480
    assert (big.hidden, big.wide, big.queries, big.keys, big.head) == (576, 1536, 9, 3, 64)
    assert (big.layers, big.trained_layers, big.qkv, big.fused) == (30, 30, 960, True)
    assert big.largest == 576 * 1536
    assert len({each.source for each in big.linears}) == 30 * 4
    upper = shapes(how={"targets": ("layers.1.mlp.down_proj",)}, num_hidden_layers=3)
    assert (upper.layers, upper.trained_layers) == (3, 2)
    warm = fitting.shapes_of(model(num_hidden_layers=3), recipe(above=0.7), warm=True)
    every = fitting.shapes_of(model(num_hidden_layers=3), recipe())
    assert (warm.trained_layers, every.trained_layers) == (1, 3)
    assert (warm.factors, warm.still) == (every.factors / 3, every.factors * 2 / 3)
    assert shapes(how={"above": 0.7}, num_hidden_layers=3).still == 0  # a fresh one has none there
    assert shapes("qwen3").head_norms
    assert not shapes("llama").head_norms
    assert (shapes("gemma3_text").fused, shapes("gemma3_text").normed) == (False, 4)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("targets", [("all-linear",), ("q_proj", "v_proj")])
def test_what_a_layer_keeps_is_what_the_formula_says(family, targets, monkeypatch):
    """Byte for byte, beside what the fused decoder really holds."""
    held = []
    forward = layer.forward

    def watched(*given):
        y_NC, kept = forward(*given)
        held.append(kept)
        return y_NC, kept

    small = model(family, torch.float32, num_hidden_layers=2)
    how = recipe(rank=3, targets=targets)
    linears = families.select(families.linears(small), targets)
    expected = fitting.shapes_of(small, how)
    rows = [row(n, seed=n) for n in (17, 9, 30)]
    with attached(small, fresh_factors(linears, how), linears):
        decoder, _ = fuse(small)
        monkeypatch.setattr(layer, "forward", watched)
        decoder.predicting(collate(rows, PAD))
    assert len(held) == 2
    tokens = -(-sum(map(len, rows)) // fused.FILLED) * fused.FILLED
    for kept in held:
        tensors = [*kept._replace(us=None, raw_heads=None)[:-1], *kept.us, *(kept.raw_heads or ())]
        held_bytes = sum(t.nbytes for t in tensors if t is not None)
        assert held_bytes == tokens * memory._kept_fused(expected, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gemma3_text", "llama", "qwen3", "olmo2", "granite"])
def test_what_modules_keep_is_about_what_the_formula_says(family, dtype):
    """Beside what autograd really saves for one layer more, its factors' copies aside."""
    config = {"hidden_size": 64, "intermediate_size": 160, "head_dim": 16}
    rows = [row(60, seed=n) for n in range(2)]
    how = recipe()

    def saved(layers):
        small = model(family, dtype, num_hidden_layers=layers, **config)
        known = {t.untyped_storage().data_ptr() for t in [*small.parameters(), *small.buffers()]}
        found = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        linears = families.linears(small)
        with attached(small, fresh_factors(linears, how), linears) as attachment:
            known.add(attachment.flat.untyped_storage().data_ptr())
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                losses = objective.token_losses(small, collate(rows, PAD))
        assert losses.requires_grad
        return sum(found.values()), fitting.shapes_of(small, how)

    one, (two, expected) = saved(1)[0], saved(2)
    casts = dtype.itemsize * expected.factors / 2 if dtype != torch.float32 else 0
    real = (two - one - casts) / sum(map(len, rows))
    assert memory._kept_by_modules(expected, dtype.itemsize) == pytest.approx(real, rel=0.05)


def work(**changes):
    whole = Pass(tokens=2048, padded=2048, longest=512, supervised=1000)
    return Work(**({"itemsize": 2, "step": whole, "evaluation": whole} | changes))


def of_rank(some, rank):
    return replace(some, linears=tuple(replace(each, rank=rank) for each in some.linears))


def test_what_is_larger_takes_more(big):
    base = predict(big, work(), 300 * MB).bytes
    step = replace(work().step, tokens=4096, padded=4096)
    for more in (
        {"step": step},
        {"itemsize": 4},
        {"drift": True},
        {"answers": 10**6},
    ):
        assert predict(big, work(**more), 300 * MB).bytes > base, more
    assert predict(replace(big, still=MB), work(), 300 * MB).bytes == base + 6 * MB
    assert predict(big, work(checkpointing=True), 300 * MB).bytes < base - 300 * MB
    assert predict(big, work(), 400 * MB).bytes == base + 100 * MB
    assert predict(of_rank(big, 64), work(), 300 * MB).bytes > base


def test_each_phase_can_be_the_largest(big):
    small = Pass(tokens=16, padded=16, longest=16, supervised=8)
    old = {"step": small, "evaluation": small, "old": work().step}
    found = predict(big, work(protect=True, said=True, **old), 0)
    assert found.bytes == found.phases["looking at old rows"]
    found = predict(big, work(step=small, evaluation=small, beneath=10**9), 0)
    assert found.bytes == found.phases["folding"]
    found = predict(big, work(step=small, evaluation=small, answers=20_000), 0)
    assert found.bytes == found.phases["exam"]
    found = predict(big, work(), 0)
    assert found.bytes == found.phases["training"] >= sum(found.parts.values())


def test_settings_go_from_cheap_to_lean():
    asked = Setting(None, checkpointing=False)
    assert list(settings(2048, 500, asked)) == [
        Setting(size, again) for again in (False, True) for size in (None, 1024, 512, 256)
    ]
    assert list(settings(64, 500, Setting(None, checkpointing=True))) == [Setting(None, True)]
    assert [s.pass_tokens for s in settings(2048, 30, Setting(64, True))] == [64, 32, 16]


@given(st.integers(16, 10_000), st.integers(1, 4000), st.booleans())
def test_no_setting_is_larger_than_what_was_asked_for(tokens, longest, again):
    found = list(settings(tokens, longest, Setting(None, again)))
    assert found[0] == Setting(None, again)
    assert all(way.checkpointing or not again for way in found)
    assert all(way.pass_tokens is None or 16 <= way.pass_tokens < tokens for way in found)


def test_the_first_that_fits_is_taken():
    sizes = {None: 10, 8: 7, 4: 5}
    ways = [Setting(size, checkpointing=False) for size in sizes]

    def needed(way):
        return sizes[way.pass_tokens]

    assert first_fit(iter(ways), needed, 12) == (ways[0], 10)
    assert first_fit(iter(ways), needed, 7) == (ways[1], 7)
    assert first_fit(iter(ways), needed, 4) == (None, 5)


def test_three_ways_out_each_with_its_size(big):
    big, lean = of_rank(big, 128), work(checkpointing=True)
    now = predict(big, lean, 300 * MB).bytes
    found = ways_out(big, lean, 300 * MB, now - 20 * MB)
    assert [text.split()[0] for text, _ in found] == ["--max-length", "--rank", "--target"]
    assert all(size <= now - 20 * MB for _, size in found)
    assert found[1][0] == "--rank 64"  # the mildest that fits
    found = ways_out(big, replace(lean, itemsize=4), 300 * MB, now - 20 * MB)
    assert len(found) == 3
    assert all(size <= now - 20 * MB or text.startswith("not enough") for text, size in found)


def test_where_the_program_alone_is_too_large_nothing_fits(big):
    found = ways_out(big, work(), 300 * MB, 200 * MB)
    assert len(found) == 3
    assert all(text.startswith("not enough alone") and size > 200 * MB for text, size in found)
