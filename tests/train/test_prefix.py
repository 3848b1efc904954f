"""What lies below the first trained layer is computed once a row, and changes no bit."""

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lamina.bases import families
from lamina.bases.convert import pull
from lamina.bases.load import load
from lamina.bases.quantise import quantise
from lamina.bases.sources import parse_source
from lamina.core.errors import TrainInterrupted
from lamina.kernels import build
from lamina.lowrank.attach import attached
from lamina.lowrank.supplied import SuppliedGroup
from lamina.tokens.batch import collate
from lamina.train import prefix, text_lesson
from lamina.train.fused import fuse
from lamina.train.job import fresh_factors
from lamina.train.objective import token_losses
from lamina.train.prefix import Prefixes, resumed
from tests.train.test_fused import factors_for
from tests.train.tiny import PAD, folder, job, model, raw, recipe, row, rows, run, stop_after

UPPER = ("layers.2.mlp.down_proj", "layers.1.self_attn.q_proj", "layers.1.mlp.up_proj")
LONG = {"steps": 24, "eval_every": 5, "patience": None}
"""Several passes over twelve rows."""
NATIVE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}


@pytest.fixture
def bounds(monkeypatch):
    """Sets how much a run remembers, in memory and in a file."""

    def set_to(memory, file):
        made = lambda job, _: Prefixes(job.directory, memory, file)  # noqa: E731
        monkeypatch.setattr(text_lesson, "prefixes_of", made)

    return set_to


def three(family="llama", dtype=torch.float32, **config):
    return model(family, dtype, num_hidden_layers=3, **config)


def upper(directory, on=None, **changes):
    """A long job on some linears of the two upper layers."""
    work = job(directory, on=on or three(), **LONG | changes)
    return replace(work, linears=families.select(work.linears, UPPER))


def counts(events):
    (found,) = [event for event in events if event["event"] == "prefixes"]
    return found


WAYS = {
    "fused": {},
    "in company of old rows": {"old": rows(5, seed=70), "rehearsal": 0.4},
    "in passes": {"pass_tokens": 20},
    "computed again": {"checkpointing": True},
    "a warm start": {"above": 0.7},
    "modules": {"family": "gemma3_text"},
    "modules, computed again": {"family": "gemma3_text", "checkpointing": True},
    "modules in passes": {"family": "olmo2", "pass_tokens": 20},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_bits_are_the_same_whatever_is_remembered(tmp_path, bounds, way):
    changes = {key: value for key, value in way.items() if key != "family"}
    on = three(way.get("family", "llama"))
    made = upper
    if "above" in way:
        made, changes = job, changes | LONG | {"start": factors_for(families.linears(on))}
    found = {}
    for name, memory, file in (
        ("nothing", 0, 0), ("memory", 1 << 20, 0), ("file", 0, 1 << 20), ("both", 3000, 1 << 20),
        ("some", 3000, 3000),
    ):  # fmt: skip
        bounds(memory, file)
        outcome, events = run(made(tmp_path / name, on=on, **changes))
        found[name] = raw(outcome), outcome.progress.best_loss
        seen = counts(events)
        distinct = 12 + 4 + len(way.get("old", ()))
        if name in ("memory", "file", "both"):
            assert seen["computed"] == distinct
        assert (seen["found"] > 0) == (name != "nothing")
        assert (seen["memory"] > 0) == (memory > 0)
        assert (seen["file"] > 0) == (file > 0)
        assert seen["memory"] <= memory
        assert seen["file"] <= file
    assert all(each == found["nothing"] for each in found.values())


@pytest.mark.parametrize("on", ["streamed", "nf4", "int8"])
def test_and_over_weights_that_are_not_in_memory(tmp_path, bounds, on, monkeypatch):
    source = folder(num_hidden_layers=3)
    if on == "streamed":
        directory = source
    else:
        plain = pull(parse_source(str(source)), tmp_path / "w", progress=lambda text: None)
        directory = quantise(
            plain.directory, plain.config, "it", on, tmp_path / on, progress=lambda text: None
        ).directory
    made = []
    supplier_of = SuppliedGroup.__init__

    def counted(self, members, supplier, *rest):
        def once():
            made.append(self)
            return supplier()

        supplier_of(self, members, once, *rest)

    monkeypatch.setattr(SuppliedGroup, "__init__", counted)
    found, times = [], []
    for name, file in (("without", 0), ("with", 1 << 20)):
        made.clear()
        bounds(0, file)
        small = load(directory, dtype=torch.float32, stream=on == "streamed").model
        outcome, events = run(upper(tmp_path / name, small))
        found.append(raw(outcome))
        times.append(len(made))
        assert counts(events)["found"] == 0 or name == "with"
    assert found[0] == found[1]
    assert times[1] < 0.85 * times[0]  # weights below are made for new rows only


def test_native_kernels_too(tmp_path, bounds):
    try:
        build.library()
    except build.Unavailable as error:
        pytest.skip(str(error))
    found = []
    for name, memory, file in (("nothing", 0, 0), ("memory", 1 << 20, 0), ("file", 0, 1 << 20)):
        bounds(memory, file)
        work = upper(tmp_path / name, three(dtype=torch.bfloat16, **NATIVE))
        outcome, _ = run(work)
        assert outcome.kernels == "native"
        found.append(raw(outcome))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_losses_and_gradients_are_those_of_a_pass_over_all_layers(tmp_path, family):
    batch = collate(rows(5), PAD)
    small = three(family, torch.float64)
    linears = families.select(families.linears(small), UPPER)
    found = []
    for prefixes in (None, Prefixes(tmp_path), Prefixes(tmp_path, memory=0)):
        with attached(small, factors_for(linears), linears) as attachment:
            subject = fuse(small, prefixes=prefixes)[0]
            if subject is None:
                subject = small if prefixes is None else resumed(small, 1, prefixes)
            for _ in range(2):  # computed, then looked up
                attachment.zero_grad()
                losses = token_losses(subject, batch)
                losses.mean().backward()
                found.append((losses.detach(), attachment.flat.grad.clone()))
            if prefixes is not None:
                assert prefixes.counts[:2] == (5, 5)
    assert found[0][1].abs().max() > 0
    for losses, gradient in found[1:]:
        torch.testing.assert_close(losses, found[0][0], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-6, atol=1e-8)


def test_modules_are_as_they_were_afterwards(tmp_path):
    small = three("gemma3_text")
    ids = torch.arange(8, 20)[None]
    before = small(input_ids=ids).logits
    subject = resumed(small, 2, Prefixes(tmp_path))
    subject.predicting(collate(rows(3), PAD))
    assert torch.equal(small(input_ids=ids).logits, before)
    assert not any("forward" in vars(layer) for layer in small.model.layers)


def test_modules_that_cannot_go_on_are_left_alone(tmp_path):
    """Here the last layer adds what the first one was given."""
    small = three("gemma3_text")
    seen = []
    small.model.register_forward_pre_hook(lambda *_: seen.clear())
    small.model.layers[0].mlp.register_forward_hook(lambda _, __, y: seen.append(y))
    small.model.layers[2].register_forward_hook(lambda _, __, y: y + seen.pop() if seen else y)
    assert resumed(small, 2, Prefixes(tmp_path)) is None
    assert resumed(three("gemma3_text"), 0, Prefixes(tmp_path)) is None


def test_nothing_is_remembered_where_all_layers_learn(tmp_path):
    for family in ("llama", "gemma3_text"):
        _, events = run(job(tmp_path / family, on=three(family)))
        assert not [event for event in events if event["event"] == "prefixes"]


# -- the file --------------------------------------------------------------------------------------


def made(rows):
    """Activations that say which row they are of."""
    return [ids_T[:, None].expand(-1, 16).to(torch.bfloat16) for ids_T in rows]


def ids_of(count):
    return [torch.from_numpy(row(5 + i, seed=i).ids) for i in range(count)]


@pytest.mark.parametrize("memory", [0, 400, 1 << 20])
def test_what_is_looked_up_is_what_was_computed(tmp_path, memory):
    prefixes = Prefixes(tmp_path, memory)
    some = ids_of(9)
    first = prefixes.of([*some, some[3]], made)
    asked = []
    again = prefixes.of(some[::-1], lambda rows: asked.extend(rows))[::-1]
    assert not asked
    assert prefixes.counts[:2] == (9, 9)
    for ours, theirs, expected in zip(again, first, made(some), strict=False):
        assert torch.equal(ours, theirs)
        assert torch.equal(ours, expected)
    assert list(tmp_path.iterdir()) == []  # the file has no name


def test_a_full_disk_is_no_fault(tmp_path, monkeypatch):
    real, written = os.pwrite, []

    def full(handle, data, start):
        written.append(len(data))
        if len(written) > 3:
            raise OSError(errno.ENOSPC, "full")
        return real(handle, data[:100], start)

    prefixes = Prefixes(tmp_path, memory=0)
    some = ids_of(6)
    monkeypatch.setattr(prefix.os, "pwrite", full)
    for _ in range(3):
        for ours, expected in zip(prefixes.of(some, made), made(some), strict=True):
            assert torch.equal(ours, expected)
    assert len(written) == 4  # it is not tried again
    assert prefixes.counts.file > 0


def test_it_takes_a_share_of_what_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(prefix.shutil, "disk_usage", lambda _: type("U", (), {"free": 1600}))
    prefixes = Prefixes(tmp_path, memory=0)
    prefixes.of(ids_of(9), made)
    assert 0 < prefixes.counts.file <= 400


CHILD = """
import os, signal, sys
from pathlib import Path
import torch
from lamina.train import loop, text_lesson
from lamina.train.prefix import Prefixes
from tests.train.test_prefix import upper
from tests.train.tiny import run
text_lesson.prefixes_of = lambda job, _: Prefixes(job.directory, 2000, 1 << 20)
loop.CHECKPOINT_SECONDS = 0.0
asked = 0
def ask():
    global asked
    asked += 1
    if asked == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return False
run(upper(Path(sys.argv[1])), ask)
"""


@pytest.mark.parametrize("step", [2, 11])
@pytest.mark.slow
def test_killed_and_taken_up_again(tmp_path, step):
    died = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "killed"), str(step)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as this process: bits go with the threads
    )
    assert died.returncode == -signal.SIGKILL
    left = [path.name for path in (tmp_path / "killed").iterdir()]
    assert left == ["state.safetensors"]
    taken_up, events = run(upper(tmp_path / "killed"))
    assert [event for event in events if event["event"] == "resumed"]
    whole, _ = run(upper(tmp_path / "whole"))
    assert raw(taken_up) == raw(whole)


def test_in_many_sittings(tmp_path):
    whole, _ = run(upper(tmp_path / "whole"))
    for _ in range(5):
        with pytest.raises(TrainInterrupted):
            run(upper(tmp_path / "parts"), stop_after(4))
    parts, _ = run(upper(tmp_path / "parts"))
    assert raw(parts) == raw(whole)


def test_a_row_by_itself_whatever_its_batch(tmp_path):
    """The layers below are given one row at a time, filled up to what all have."""
    small = three()
    linears = families.select(families.linears(small), UPPER)
    with attached(small, fresh_factors(linears, recipe(targets=UPPER)), linears):
        decoder, _ = fuse(small, prefixes=Prefixes(tmp_path))
        given = []
        below = decoder._below
        decoder._below = lambda ids, places: given.append(ids) or below(ids, places)
        decoder.predicting(collate(rows(4), PAD))
        decoder.predicting(collate(rows(6), PAD))
    assert [[len(ids) for ids in each] for each in given] == [[32] * 4, [32] * 2]
    assert Path(tmp_path).exists()
