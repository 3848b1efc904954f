"""Weights that stay in their files give the numbers of weights in memory, to the bit."""

import os
import resource
import subprocess
import sys
import time

import pytest
import torch

from lamina.bases import families, streamed
from lamina.bases.load import load, too_large
from lamina.bases.shell import Files
from lamina.bases.streamed import Ahead, StreamedLinear, WeightFiles, reading_cost
from lamina.core.errors import BaseError
from lamina.core.machine import free
from lamina.lowrank.attach import attached, fold_into
from lamina.lowrank.maths import Factors
from lamina.tokens.batch import collate
from lamina.train.fused import fuse
from lamina.train.held_out import mean_loss
from lamina.train.objective import token_losses
from tests.pico import SMALLEST_VOCAB, pico_base
from tests.train import tiny
from tests.train.tiny import PAD, rows

pytestmark = pytest.mark.slow  # models are trained or read from disk again and again

BATCH = collate(rows(5), PAD)
BENEATH = {"nothing": (), "a layer on all": ("all-linear",), "on some": ("k_proj", "up_proj")}
DTYPES = {
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "stored float32, computed bfloat16": (torch.float32, torch.bfloat16),
    "stored bfloat16, computed float32": (torch.bfloat16, torch.float32),
}
"""(stored, computed)"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("streamed")
    made = {}

    def of(family="llama", stored=torch.float32):
        if (family, stored) not in made:
            made[family, stored] = pico_base(
                root / f"{family}-{stored}", family=family, dtype=stored, vocab=SMALLEST_VOCAB,
                hidden=32, layers=3,
            )  # fmt: skip
        return made[family, stored]

    return of


def factors_for(linears, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Factors(
            torch.randn(3, m.in_features, generator=generator) * m.in_features**-0.5,
            torch.randn(m.out_features, 3, generator=generator) * 0.2,
            0.7,
        )
        for name, m in linears.items()
    }


def model_of(directory, dtype, beneath, *, stream, stored):
    wide = bool(beneath) and stored == torch.float32 and not stream  # as `compile_stack` does it
    model = load(directory, dtype=torch.float32 if wide else dtype, stream=stream).model
    if beneath:
        linears = families.linears(model)
        fold_into(linears, factors_for(families.select(linears, beneath), 6))
    if wide:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    return model


def losses_and_gradients(model, *, fuse_it=True, steps=1, targets=("all-linear",)):
    linears = families.select(families.linears(model), targets)
    found = []
    with attached(model, factors_for(linears, 5), linears) as attachment:
        subject = model
        if fuse_it:
            subject, why = fuse(model)
            assert subject is not None, why
        for _ in range(steps):
            attachment.zero_grad()
            losses = token_losses(subject, BATCH)
            losses.mean().backward()
            with torch.inference_mode():  # as an evaluation in between does
                seen = token_losses(subject, BATCH)
            found.append((losses.detach(), attachment.flat.grad.clone(), seen.clone()))
    return found


@pytest.mark.parametrize("fuse_it", [True, False], ids=["fused", "modules"])
@pytest.mark.parametrize("beneath", BENEATH.values(), ids=BENEATH)
@pytest.mark.parametrize(("stored", "dtype"), DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_losses_and_gradients_are_those_of_weights_in_memory(
    folder, family, stored, dtype, beneath, fuse_it
):
    directory = folder(family, stored)
    found, expected = (
        losses_and_gradients(
            model_of(directory, dtype, beneath, stream=stream, stored=stored),
            fuse_it=fuse_it,
            steps=3,
        )
        for stream in (True, False)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert all(map(torch.equal, ours, theirs))
        assert theirs[1].abs().max() > 0


@pytest.mark.parametrize("targets", [("layers.2.mlp.up_proj",), ("layers.1.self_attn.q_proj",)])
def test_upper_layers_only(folder, targets):
    found, expected = (
        losses_and_gradients(load(folder(), dtype=torch.float32, stream=s).model, targets=targets)
        for s in (True, False)
    )
    assert all(map(torch.equal, found[0], expected[0]))


def test_a_whole_training_has_the_same_factors(folder, tmp_path):
    outcomes = []
    for stream in (True, False):
        model = load(folder(), dtype=torch.float32, stream=stream).model
        outcomes.append(tiny.run(tiny.job(tmp_path / str(stream), on=model))[0])
    assert tiny.raw(outcomes[0]) == tiny.raw(outcomes[1])
    assert outcomes[0].progress.best_loss == outcomes[1].progress.best_loss


def test_a_family_without_a_fused_decoder_streams_too(tmp_path):
    directory = pico_base(tmp_path / "gemma", family="gemma3_text", hidden=32)
    ids = torch.arange(8, 30)[None]
    with torch.inference_mode():
        found, expected = (
            load(directory, dtype=torch.float32, stream=s).model(input_ids=ids).logits
            for s in (True, False)
        )
    assert torch.equal(found, expected)


def test_shards_are_read_where_they_are(tmp_path):
    from safetensors.torch import load_file

    from lamina.bases.shards import write_shards

    whole = pico_base(tmp_path / "whole", hidden=32)
    cut = tmp_path / "cut"
    cut.mkdir()
    for path in whole.iterdir():
        if path.suffix != ".safetensors":
            (cut / path.name).write_bytes(path.read_bytes())
    tensors = load_file(whole / "model.safetensors")
    write_shards({n: t.nbytes for n, t in tensors.items()}, tensors.get, cut, limit=30_000)
    assert len(list(cut.glob("*.safetensors"))) > 2
    found, expected = (
        losses_and_gradients(load(d, dtype=torch.float32, stream=True).model) for d in (cut, whole)
    )
    assert all(map(torch.equal, found[0], expected[0]))


# -- what is in memory, what is read ---------------------------------------------------------------


def test_no_weight_of_the_decoder_is_in_memory_and_none_can_be_written(folder):
    model = load(folder(), dtype=torch.float32, stream=True).model
    decoder, _ = fuse(model)
    mean_loss(decoder, [BATCH])
    linears = families.linears(model)
    assert all(isinstance(linear, StreamedLinear) for linear in linears.values())
    names = {name for name, _ in model.named_parameters()}
    assert not any(name.removesuffix(".weight") in linears for name in names)
    held = sum(len(buffer) for buffer in linears["model.layers.0.mlp.up_proj"].ahead._buffers)
    assert held == 2 * 4 * 32 * 64 * 2  # two of the largest group: gate and up
    code = (
        "import sys, torch; from pathlib import Path; from lamina.bases.load import load\n"
        "m = load(Path(sys.argv[1]), dtype=torch.float32, stream=True).model\n"
        "m.get_input_embeddings().weight.data[0, 0] = 1\n"
    )
    done = subprocess.run([sys.executable, "-c", code, folder()], capture_output=True, check=False)
    assert done.returncode < 0  # a write into the mapping ends the process, not the base


def test_each_weight_is_read_once_a_direction_once_the_order_is_known(folder):
    model = load(folder(), dtype=torch.float32, stream=True).model
    linears = families.linears(model)
    files = linears["model.layers.0.mlp.up_proj"].ahead.files
    with attached(model, factors_for(linears, 5), linears):
        decoder, _ = fuse(model)
        taken = []
        for _ in range(4):
            before = files.bytes_read
            token_losses(decoder, BATCH).mean().backward()
            linears["model.layers.0.mlp.up_proj"].ahead._coming.done.result()
            taken.append(files.bytes_read - before)
    whole = sum(linear.bytes for linear in linears.values())
    largest = 2 * 4 * 32 * 64
    # forward and back: the last group is still in hand when the way back begins, and the first
    # one needs no way back
    assert taken[-1] == taken[-2]
    assert 2 * whole - 3 * largest < taken[-1] <= 2 * whole


def test_the_next_weights_are_read_while_the_present_ones_are_used(folder, monkeypatch):
    """Reading takes 20 ms and so does using: together, not one after the other."""
    files = Files(folder())
    names = [n for n in sorted(files.homes) if n.endswith("proj.weight")]
    reader = WeightFiles(files, cached=True)
    read = WeightFiles.read

    def slow(self, name, out):
        time.sleep(0.02)
        read(self, name, out)

    monkeypatch.setattr(WeightFiles, "read", slow)
    ahead = Ahead(reader)
    for name in names:
        ahead.expect((name,))
    for turn in range(2):
        began = time.perf_counter()
        for name in [*names, *reversed(names)]:
            ahead.take((name,))
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        apart = 0.04 * (2 * len(names) - 1)
        assert seconds < 0.8 * apart, turn


def test_a_wrong_guess_still_gives_the_right_bytes(folder):
    files = Files(folder())
    names = [n for n in sorted(files.homes) if n.endswith("proj.weight")]
    ahead = Ahead(WeightFiles(files, cached=False))
    for name in names:
        ahead.expect((name,))
    order = torch.randint(len(names), (200,), generator=torch.Generator().manual_seed(0)).tolist()
    for place in order:
        raw, _ = ahead.take((names[place],))
        assert torch.equal(raw, files.read(names[place]).reshape(-1).view(torch.uint8))


def test_the_cost_is_measured(folder):
    model = load(folder(), dtype=torch.float32, stream=True).model
    linears = families.linears(model)
    cost = reading_cost(linears.values())
    assert cost.bytes == sum(4 * m.in_features * m.out_features for m in linears.values())
    assert cost.rate > 1e6
    assert cost.seconds == cost.bytes / cost.rate
    assert (
        reading_cost(families.linears(load(folder(), dtype=torch.float32).model).values()) is None
    )


# -- what goes wrong -------------------------------------------------------------------------------


def test_a_file_that_was_cut_short_after_it_was_opened(folder, tmp_path):
    import shutil

    directory = shutil.copytree(folder(), tmp_path / "base")
    model = load(directory, dtype=torch.float32, stream=True).model
    file = directory / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(OSError, match="ends before"):
        families.linears(model)["model.layers.2.mlp.up_proj"].supplied()


def test_tensors_of_other_names_or_shapes_are_all_named(folder, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    directory = shutil.copytree(folder(), tmp_path / "base")
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(8, 8)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(BaseError) as caught:
        load(directory, dtype=torch.float32, stream=True)
    assert len(caught.value.faults) == 2


# -- when it is chosen -----------------------------------------------------------------------------


def test_what_does_not_fit_is_streamed(folder, monkeypatch):
    from lamina.bases import load as module

    stored = sum(p.numel() for p in load(folder(), dtype=torch.float32).model.parameters())
    for room, expected in ((None, False), (stored * 8, False), (stored * 4, True)):
        monkeypatch.setattr(module, "free", lambda room=room: room)
        assert too_large(folder(), torch.float32) is expected
    assert too_large(folder(), torch.bfloat16) is False


def test_a_process_limit_is_memory_free():
    code = (
        "import resource\nfrom lamina.core.machine import free\n"
        "before = free()\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (300 << 20, 300 << 20))\n"
        "print(before, free())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, limited = map(int, done.stdout.split())
    assert before > 300 << 20
    assert (200 << 20) < limited < (300 << 20)
    assert free() > 0
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY
    assert streamed.SAMPLE_BYTES > 0
