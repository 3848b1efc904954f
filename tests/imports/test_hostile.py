"""Files that lie: each is refused with a reason, before anything lands in the store."""

import json
import random
import re
import shutil
import struct
import sys

import pytest
import safetensors.torch
import torch

from lamina.core.errors import LaminaError, LayerError
from lamina.flows.importing import Request, take_in
from lamina.imports import gguf_lora, kohya, mlx, peft
from lamina.imports.base import beneath
from lamina.imports.detect import detect
from lamina.imports.place import How, place
from lamina.lowrank import codec
from lamina.stack.compile import base_directory
from tests.flows.world import Said
from tests.imports.others import contents, taken
from tests.imports.test_other_formats import gguf_lora as write_gguf_lora

Q = "base_model.model.model.layers.0.self_attn.q_proj"


def adapter(folder, config=None, tensors=None):
    folder.mkdir(exist_ok=True)
    good = {f"{Q}.lora_A.weight": torch.ones(2, 32), f"{Q}.lora_B.weight": torch.ones(32, 2)}
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / codec.CONFIG_FILE).write_text(json.dumps(settings | (config or {})))
    safetensors.torch.save_file(good | (tensors or {}), folder / codec.WEIGHTS_FILE)
    return folder


def refused(store, path, reason, **how):
    before = contents(store)
    with pytest.raises(LayerError, match=re.escape(reason)) as caught:
        taken(store, path, **how)
    assert contents(store) == before
    assert str(caught.value).replace("\n", "").isprintable()
    return caught.value


TENSORS = {
    "not finite": ({f"{Q}.lora_B.weight": torch.full((32, 2), torch.nan)}, "not finite"),
    "infinite": ({f"{Q}.lora_A.weight": torch.full((2, 32), torch.inf)}, "not finite"),
    "another shape": ({f"{Q}.lora_A.weight": torch.ones(2, 33)}, "the base has (32, 32)"),
    "ranks that differ": ({f"{Q}.lora_B.weight": torch.ones(32, 3)}, "differ in rank"),
    "whole numbers": ({f"{Q}.lora_A.weight": torch.ones(2, 32).int()}, "no floating-point type"),
    "no rows": ({f"{Q}.lora_A.weight": torch.ones(0, 32)}, "is empty"),
    "three axes": ({f"{Q}.lora_A.weight": torch.ones(2, 32, 1)}, "3 axes instead of 2"),
    "a vector": ({f"{Q}.lora_A.weight": torch.ones(64)}, "1 axes instead of 2"),
    "only one side": ({f"{Q[:-6]}k_proj.lora_A.weight": torch.ones(2, 32)}, "no lora_B"),
    "a module of nobody": (
        {"x.lora_A.weight": torch.ones(2, 32), "x.lora_B.weight": torch.ones(32, 2)},
        "x: the base has no such linear",
    ),
    "one module twice": (
        {f"language_model.{Q[17:]}.lora_A.weight": torch.ones(2, 32),
         f"language_model.{Q[17:]}.lora_B.weight": torch.ones(32, 2)},
        "model.layers.0.self_attn.q_proj already",
    ),
    "escapes for the terminal": (
        {"\x1b[2J\n\x00.lora_A.weight": torch.ones(2, 32)}, "has a control character",
    ),
    "an endless name": ({"a" * 600 + ".lora_A.weight": torch.ones(2, 32)}, "at most 500 are read"),
    "noise": ({"hello": torch.ones(3)}, "hello: the base has no such tensor"),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "reason"), TENSORS.values(), ids=TENSORS)
def test_tensors(store, tmp_path, tensors, reason):
    refused(store, adapter(tmp_path / "a", tensors=tensors), reason)


def test_ranks_are_bounded_before_a_number_is_read(store, tmp_path, monkeypatch):
    big = {
        f"{Q}.lora_A.weight": torch.ones(20_000, 32),
        f"{Q}.lora_B.weight": torch.ones(32, 20_000),
    }
    folder = adapter(tmp_path / "a", {"r": 20_000}, big)
    monkeypatch.setattr(torch, "frombuffer", None)  # nothing may be read
    refused(store, folder, "rank 20000 is above 16384")


def header(path, entries, data=b"", length=None):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HEADERS = {
    "empty": (b"", None, b""),
    "a pickle": (b"\x80\x04.", None, b""),
    "a header beyond the file": ({}, 1 << 40, b""),
    "deep JSON": (b"[" * 100_000, None, b""),
    "overlapping tensors": ({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, None, b"\0" * 4),
    "more than there is": ({"a": entry([1 << 40], 0, 4 << 40)}, None, b"\0" * 4),
    "shape and size differ": ({"a": entry([3], 0, 4)}, None, b"\0" * 4),
    "a dtype of nobody": ({"a": entry([1], 0, 4, "F99")}, None, b"\0" * 4),
    "bytes behind the end": ({"a": entry([1], 0, 4)}, None, b"\0" * 5),
    "a name twice": (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                     b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', None, b"\0" * 4),
    "float8": ({"a": entry([4], 0, 4, "F8_E4M3")}, None, b"\0" * 4),
}  # fmt: skip


@pytest.mark.parametrize(("entries", "length", "data"), HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("place", ["peft", "file", "model"])
def test_headers(store, tmp_path, entries, length, data, place):
    if place == "peft":
        folder = adapter(tmp_path / "a")
        header(folder / codec.WEIGHTS_FILE, entries, data, length)
        refused(store, folder, codec.WEIGHTS_FILE)
    elif place == "file":
        refused(store, header(tmp_path / "x.safetensors", entries, data, length), "x.safetensors")
    else:
        base = base_directory(store, store.bases()["pico"])
        folder = tmp_path / "m"
        folder.mkdir()
        shutil.copy(base / "config.json", folder)
        header(folder / "model.safetensors", entries, data, length)
        refused(store, folder, "model.safetensors")


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\xff", '{"peft_type": NaN'])
def test_configs(store, tmp_path, text):
    folder = adapter(tmp_path / "a")
    (folder / codec.CONFIG_FILE).write_text(text, encoding="latin-1")
    refused(store, folder, "adapter_config.json is not")
    (folder / codec.CONFIG_FILE).write_text("{" + " " * (5 << 20) + "}")
    refused(store, folder, "bytes; 4194304 are read")


class Evil:
    """Ends the test run when it is unpickled."""

    def __reduce__(self):
        return (sys.exit, ("a pickle was opened",))


def test_pickles_whatever_their_name(store, tmp_path):
    for name in ("adapter_model.bin", "pytorch_model.bin", "lora.pt", "lora.ckpt"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        torch.save({"x": Evil()}, folder / name)
        refused(store, folder, "is a pickle, which is never opened")
        refused(store, folder / name, "is a pickle, which is never opened")
        shutil.copy(folder / name, folder / "x.safetensors")
        refused(store, folder / "x.safetensors", "is not a safetensors file")
        shutil.copy(folder / name, folder / "x.gguf")
        refused(store, folder / "x.gguf", "is not a GGUF file")


def test_an_index_never_leaves_its_folder(store, tmp_path):
    base = base_directory(store, store.bases()["pico"])
    shutil.copy(base / "model.safetensors", tmp_path / "secret.safetensors")
    folder = tmp_path / "m"
    folder.mkdir()
    shutil.copy(base / "config.json", folder)
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"")
    index = {"weight_map": {"model.norm.weight": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(store, folder, "names weight files that are not there")


def test_a_config_of_a_stranger_is_never_handed_on(store, tmp_path):
    """PEFT imports the module that `megatron_core` names, and runs expressions as they come."""
    folder = adapter(tmp_path / "a", {"megatron_core": "antigravity", "auto_mapping": {"x": "y"}})
    taken(store, folder)
    assert "antigravity" not in sys.modules
    refused(store, adapter(tmp_path / "b", {"megatron_config": {"a": 1}}), "Megatron's")


def test_numbers_that_are_not_finite_in_a_checkpoint(store, tmp_path):
    base = base_directory(store, store.bases()["pico"])
    found = safetensors.torch.load((base / "model.safetensors").read_bytes())
    for name in ("model.layers.0.mlp.up_proj.weight", "model.norm.weight"):
        bad = found | {name: torch.full_like(found[name], torch.nan)}
        safetensors.torch.save_file(bad, tmp_path / "x.safetensors")
        refused(store, tmp_path / "x.safetensors", f"{name}: numbers that are not finite")


def spoiled(data, seed):
    """A file with a few bytes changed, cut or grown."""
    chosen = random.Random(seed)
    data = bytearray(data)
    for _ in range(chosen.randint(1, 6)):
        at = chosen.randrange(min(len(data), 600))
        data[at] = chosen.randrange(256)
    if chosen.random() < 0.3:
        del data[chosen.randrange(len(data)) :]
    return bytes(data) + bytes(chosen.randrange(256) for _ in range(chosen.choice((0, 0, 3))))


@pytest.mark.parametrize("kind", ["gguf-lora", "kohya", "mlx", "peft", "config"])
def test_spoiled_files_are_read_rightly_or_refused(store, tmp_path, kind):
    """Any change of the header's bytes: another reading, or a refusal; never another exception."""
    base = beneath(base_directory(store, store.bases()["pico"]), [], None)
    flat = "lora_te_layers_0_self_attn_q_proj"
    folder = adapter(tmp_path / "a")
    names = {"peft": codec.WEIGHTS_FILE, "config": codec.CONFIG_FILE, "mlx": mlx.WEIGHTS_FILE}
    path = folder / names.get(kind, "x.gguf" if kind == "gguf-lora" else "x.safetensors")
    read = {"gguf-lora": gguf_lora.read, "kohya": kohya.read, "mlx": mlx.read}.get(kind, peft.read)
    if kind == "gguf-lora":
        write_gguf_lora(path)
    elif kind == "kohya":
        safetensors.torch.save_file(
            {f"{flat}.lora_down.weight": torch.ones(2, 32),
             f"{flat}.lora_up.weight": torch.ones(32, 2), f"{flat}.alpha": torch.tensor(2.0)},
            path,
        )  # fmt: skip
    elif kind == "mlx":
        (folder / codec.CONFIG_FILE).write_text('{"lora_parameters": {"rank": 2, "scale": 2.0}}')
        module = "model.layers.0.self_attn.q_proj"
        safetensors.torch.save_file(
            {f"{module}.lora_a": torch.ones(32, 2), f"{module}.lora_b": torch.ones(2, 32)}, path
        )
    good = path.read_bytes()
    where = folder if kind in names else path
    outcomes = {"read": 0, "refused": 0}
    for seed in range(400):
        path.write_bytes(spoiled(good, seed))
        try:
            detect(where)
            place(read(where, base), base, How(), lambda *_: None)
            outcomes["read"] += 1
        except LaminaError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 100, outcomes


@pytest.mark.parametrize("kind", ["peft", "checkpoint", "gguf-lora", "kohya", "mlx"])
def test_what_is_not_what_it_is_said_to_be(store, tmp_path, kind):
    """--from overrides the guess, never the checks."""
    (tmp_path / "empty").mkdir()
    text = tmp_path / "x.txt"
    text.write_text("hello, this is no file of weights")
    gguf = write_gguf_lora(tmp_path / "a.gguf")
    paths = [tmp_path / "empty", tmp_path / "none", text, *([] if kind == "gguf-lora" else [gguf])]
    if kind == "checkpoint":
        paths.remove(gguf)  # transformers is asked, which says that it is no model
    for path in paths:
        before = contents(store)
        with pytest.raises(LayerError):
            taken(store, path, kind=kind)
        assert contents(store) == before


def test_options_that_make_no_sense(store, tmp_path):
    folder = str(adapter(tmp_path / "a"))
    for how, reason in (
        ({"kind": "onnx"}, "known are peft, checkpoint"),
        ({"dora": "yes"}, "fold is the only way"),
        ({"rank": 0}, "give 1 or more"),
        ({"tolerance": 1.5}, "between 0 and 1"),
    ):
        with pytest.raises(LaminaError, match=reason):
            take_in(store, Request(folder, "pico", "x", **how), Said())
    with pytest.raises(LaminaError, match="nothing is called"):
        take_in(store, Request(folder, "nobody", "x"), Said())
