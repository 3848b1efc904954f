"""A step in several passes, and layers computed twice: the same step, in less memory."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lamina.bases import families
from lamina.kernels import build
from lamina.lowrank.attach import attached
from lamina.tokens.batch import collate
from lamina.train.fused import fuse
from lamina.train.loop import fresh_factors
from lamina.train.objective import token_losses
from lamina.train.passes import backward, checkpointed, split_rows
from lamina.train.teach import sayings
from tests.tolerance import TOLERANCE
from tests.train.test_fused import FAMILIES, SOME, factors_for, plain
from tests.train.tiny import PAD, job, model, raw, recipe, row, rows, run


def gradients(small, *, checkpointing, targets=("q_proj", "down_proj", "up_proj")):
    """Losses and gradients of two batches in turn, added up."""
    linears = families.select(families.linears(small), targets)
    with attached(small, factors_for(linears), linears) as attachment:
        decoder, why = fuse(small, checkpointing=checkpointing)
        assert decoder is not None, why
        losses = []
        for seed in (0, 50):
            found = token_losses(decoder, collate(rows(5, seed), PAD))
            found.mean().backward()
            losses.append(found.detach())
        return torch.cat(losses), attachment.flat.grad.clone()


def same_bits(a, b):
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("targets", SOME.values(), ids=SOME)
@pytest.mark.parametrize("family", FAMILIES)
def test_computing_layers_again_gives_the_same_bits(family, targets):
    config = {"num_hidden_layers": 4}
    kept, again = (
        gradients(plain(family, torch.float32, **config), checkpointing=on, targets=targets)
        for on in (False, True)
    )
    assert kept[1].abs().max() > 0
    assert same_bits(kept, again)


def test_and_so_do_native_kernels():
    try:
        build.library()
    except build.Unavailable as error:
        pytest.skip(str(error))
    config = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3}
    kept, again = (
        gradients(plain("llama", torch.bfloat16, **config), checkpointing=on)
        for on in (False, True)
    )
    assert kept[1].abs().max() > 0
    assert same_bits(kept, again)


def test_only_inputs_are_kept():
    """Between forward and backward a layer holds one tensor, of its input's size."""
    small = plain("llama", torch.float32, num_hidden_layers=3)
    linears = families.linears(small)
    with attached(small, factors_for(linears), linears):
        for checkpointing in (False, True):
            decoder, _ = fuse(small, checkpointing=checkpointing)
            nodes = [token_losses(decoder, collate(rows(5), PAD)).grad_fn]
            kept, met = [], set()
            while nodes:
                node = nodes.pop()
                if node in met:
                    continue
                met.add(node)
                kept += [node.kept] if hasattr(node, "kept") else []
                nodes += [each for each, _ in node.next_functions if each is not None]
            assert len(kept) == 3
            assert all(isinstance(each, torch.Tensor) == checkpointing for each in kept)


@pytest.mark.parametrize("family", ["gemma3_text", "llama"])
def test_transformers_modules_compute_again_with_the_same_bits(family):
    found = []
    for on in (False, True):
        small = model(family, torch.float32, num_hidden_layers=2)
        linears = families.linears(small)
        with attached(small, factors_for(linears), linears) as attachment:
            with checkpointed(small, on):
                layers = families.backbone(small).layers
                assert all(layer.gradient_checkpointing == on for layer in layers)
            backward(small, rows(5), [None] * 5, PAD, 1000, checkpointing=on)
            found.append((attachment.flat.grad.clone(),))
        assert not small.is_gradient_checkpointing
        assert not any(module.training for module in small.modules())
    assert found[0][0].abs().max() > 0
    assert same_bits(*found)


def test_dropout_stays_off_while_layers_compute_again():
    small = model("gemma3_text", torch.float32, attention_dropout=0.9)
    linears = families.linears(small)
    with attached(small, factors_for(linears), linears):
        losses = [
            float(backward(small, rows(3), [None] * 3, PAD, 1000, checkpointing=True)[0])
            for _ in range(3)
        ]
    assert len(set(losses)) == 1


def test_a_whole_run_computing_again_gives_the_same_bytes(tmp_path):
    for family in ("llama", "gemma3_text"):
        made = [
            run(job(tmp_path / f"{family}-{on}", on=model(family), checkpointing=on))[0]
            for on in (False, True)
        ]
        assert raw(made[0]) == raw(made[1])


@pytest.mark.parametrize("at_once", [1, 24, 47])
def test_passes_add_up_to_the_step(at_once):
    """Rows of different lengths, labels and old rows beside each other: one mean over all."""
    some = [row(n, seed=n) for n in (17, 16, 9, 4)]
    small = model()
    said = [None, sayings(small, some[1:2], 64, PAD)[0], None, None]
    linears = families.linears(small)
    found = []
    for size in (1000, at_once):
        with attached(small, factors_for(linears), linears) as attachment:
            decoder, _ = fuse(small)
            found.append(
                (backward(decoder, some, said, PAD, size)[0], attachment.flat.grad.clone())
            )
    torch.testing.assert_close(found[1][0], found[0][0], **TOLERANCE[torch.float32])
    torch.testing.assert_close(found[1][1], found[0][1], **TOLERANCE[torch.float32])


def test_a_run_in_passes_takes_the_same_steps(tmp_path):
    whole, events = run(job(tmp_path / "whole"))
    parts, seen = run(job(tmp_path / "parts", pass_tokens=16))
    again, _ = run(job(tmp_path / "again", pass_tokens=16))
    assert raw(parts) == raw(again)
    steps, others = ([e for e in some if e["event"] == "step"] for some in (events, seen))
    assert [e["tokens"] for e in steps] == [e["tokens"] for e in others]
    assert [e["loss"] for e in steps] == pytest.approx([e["loss"] for e in others], rel=1e-3)
    for name, factors in whole.factors.items():
        torch.testing.assert_close(parts.factors[name].b_OR, factors.b_OR, rtol=0.02, atol=2e-4)
    assert parts.recipe.pass_tokens == 16


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 120))
def test_every_row_is_in_one_pass(lengths, at_once):
    cuts = split_rows(lengths, at_once)
    assert [i for cut in cuts for i in range(cut.start, cut.stop)] == list(range(len(lengths)))
    for cut in cuts:
        inside = lengths[cut]
        assert len(inside) == 1 or len(inside) * max(inside) <= at_once
    for one, next_ in pairwise(cuts):  # and no pass could take one row more
        more = lengths[one.start : next_.start + 1]
        assert len(more) * max(more) > at_once


def test_a_recipe_never_passes_more_than_a_step():
    assert recipe(batch_tokens=48).at_once == 48
    assert recipe(batch_tokens=48, pass_tokens=16).at_once == 16
    assert recipe(batch_tokens=48, pass_tokens=480).at_once == 48


def test_old_rows_are_looked_at_in_passes_too(tmp_path):
    """A run with rehearsal and protection, in passes of one row, runs to its end."""
    old = rows(6, seed=300)
    outcome, _ = run(job(tmp_path, old=old, rehearsal=0.3, protect=0.5, pass_tokens=16))
    assert outcome.progress.step == 6
    linears = families.linears(model())
    assert set(outcome.factors) == set(fresh_factors(linears, outcome.recipe))
