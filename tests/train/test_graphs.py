"""Passes that are filled up to a size, and captured: the same gradients, whatever fills up."""

import numpy as np
import pytest
import torch

from lamina.bases import families
from lamina.core.errors import TrainInterrupted
from lamina.lowrank.attach import attached
from lamina.tokens.batch import collate
from lamina.train import graphs
from lamina.train.fused import fuse
from lamina.train.graphs import Graphs, graphs_of
from lamina.train.objective import SoftTargets, token_losses
from tests.tolerance import TOLERANCE
from tests.train import tiny
from tests.train.test_fused import factors_for

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
SIZES = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 2}


def batches():
    for count, seed in ((5, 0), (12, 1), (1, 2), (12, 3)):
        yield collate(tiny.rows(count, seed=20 * seed), tiny.PAD)


def soft_of(batch):
    draw = torch.Generator().manual_seed(1)
    weights = torch.rand(len(batch.targets), 4, generator=draw)
    ids = torch.randint(60, weights.shape, generator=draw)
    return SoftTargets(ids, weights / weights.sum(1, keepdim=True))


@pytest.mark.parametrize("taught", ["labels", "soft"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_what_fills_up_changes_nothing(family, taught):
    model = tiny.model(family, torch.float32, **SIZES)
    linears = families.linears(model)
    with attached(model, factors_for(linears), linears) as attachment:
        decoder, why = fuse(model)
        assert decoder is not None, why
        for batch in batches():
            soft = soft_of(batch) if taught == "soft" else None
            attachment.zero_grad()
            plain = token_losses(decoder, batch, soft)
            (plain.sum() / 7).backward()
            expected = attachment.flat.grad.clone()
            attachment.zero_grad()
            found = Graphs(decoder).backward(batch, soft, 1 / 7)
            torch.testing.assert_close(found, plain.detach(), **TOLERANCE[torch.float32])
            torch.testing.assert_close(attachment.flat.grad, expected, **TOLERANCE[torch.float32])


@pytest.mark.parametrize("count", [1, 64, 65, 127, 128, 129, 1000, 1025, 16384])
def test_sizes(count):
    size = graphs._stepped(count, 64, 4)
    assert size >= count
    assert size % 64 == 0
    assert size - count < max(64, count / 4)


def test_there_are_no_graphs_without_a_gpu():
    model = tiny.model("llama", torch.float32, **SIZES)
    decoder, _ = fuse(model)
    assert graphs_of(decoder) is None
    assert graphs_of(model) is None


@gpu
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_replay_is_the_pass_to_the_bit(family):
    model = tiny.model(family, torch.bfloat16, **SIZES).to("cuda")
    linears = families.linears(model)
    with attached(model, factors_for(linears), linears) as attachment:
        decoder, why = fuse(model)
        assert decoder is not None, why
        once = graphs_of(decoder)
        assert once is not None
        found = {}
        for turn in range(4):  # kernel by kernel, captured, replayed, replayed with other factors
            for place, batch in enumerate(batches()):
                attachment.zero_grad()
                losses = once.backward(batch, None, 1 / 7)
                got = losses.cpu(), attachment.flat.grad.cpu()
                if turn == 3:
                    attachment.zero_grad()
                    fresh = Graphs(decoder)
                    fresh._rows, fresh._longest = once._rows, once._longest
                    losses = fresh.backward(batch, None, 1 / 7)
                    found[place] = losses.cpu(), attachment.flat.grad.cpu()
                elif turn == 0:
                    found[place] = got
                assert all(map(torch.equal, got, found[place]))
                assert float(got[1].norm()) > 0
            if turn == 2:
                attachment.flat.data.mul_(1.5)
        assert once._captured


@gpu
def test_a_run_on_a_gpu_is_the_same_twice_and_in_two_sittings(tmp_path):
    def outcome(name, stop=lambda: False):
        model = tiny.model("llama", torch.bfloat16, **SIZES).to("cuda")
        changes = {"dtype": "bfloat16", "steps": 12, "lr": 1e-2}
        return tiny.run(tiny.job(tmp_path / name, on=model, **changes), stop)

    whole, events = outcome("whole")
    assert next(e for e in events if e["event"] == "decoder")["kernels"] == "accelerated"
    assert tiny.raw(outcome("again")[0]) == tiny.raw(whole)
    with pytest.raises(TrainInterrupted):
        outcome("halves", tiny.stop_after(6))
    assert tiny.raw(outcome("halves")[0]) == tiny.raw(whole)
    losses = [e["loss"] for e in events if e["event"] == "step"]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
