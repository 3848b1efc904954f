"""Identity: what it depends on, and what it does not."""

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lamina.bases.identity import (
    architecture_digest,
    describe,
    template_digest,
    tensor_digest,
    tokenizer_digest,
)
from lamina.bases.shards import INDEX, write_shards
from lamina.core.errors import BaseError
from tests.pico import pico_base

TENSORS = {
    f"t{i}": torch.randn(3, i + 1, generator=torch.Generator().manual_seed(i)) for i in (0, 1, 2, 3)
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pico_base(tmp_path_factory.mktemp("pico") / "llama")


@settings(max_examples=20)
@given(st.lists(st.integers(0, 2), min_size=4, max_size=4), st.randoms())
def test_tensors_count_however_they_are_split(tmp_path_factory, split, random):
    folder = tmp_path_factory.mktemp("split")
    files = []
    for shard in sorted(set(split)):
        names = [f"t{i}" for i, where in enumerate(split) if where == shard]
        random.shuffle(names)
        path = folder / f"{shard}.safetensors"
        save_file({name: TENSORS[name] for name in names}, path, metadata={"n": str(shard)})
        files.append(path)
    random.shuffle(files)
    whole = folder / "whole.safetensors"
    save_file(TENSORS, whole)
    assert tensor_digest(files) == tensor_digest([whole])


@pytest.mark.parametrize("change", ["byte", "name", "shape", "dtype", "less"])
def test_any_change_of_a_tensor_changes_the_digest(tmp_path, change):
    before, after = tmp_path / "a", tmp_path / "b"
    save_file(TENSORS, before)
    changed = dict(TENSORS)
    match change:
        case "byte":
            changed["t1"] = TENSORS["t1"].clone()
            changed["t1"][0, 0] += 1
        case "name":
            changed["t9"] = changed.pop("t1")
        case "shape":
            changed["t1"] = TENSORS["t1"].reshape(2, 3)
        case "dtype":
            changed["t1"] = TENSORS["t1"].view(torch.int32)
        case "less":
            del changed["t1"]
    save_file(changed, after)
    assert tensor_digest([before]) != tensor_digest([after])


def test_a_tensor_in_two_files_is_refused(tmp_path):
    save_file(TENSORS, tmp_path / "a")
    save_file({"t1": TENSORS["t1"]}, tmp_path / "b")
    with pytest.raises(BaseError, match="repeats tensors"):
        tensor_digest([tmp_path / "a", tmp_path / "b"])


def test_write_shards_keeps_the_identity_and_the_limit(tmp_path):
    sizes = {name: t.numel() * t.element_size() for name, t in TENSORS.items()}
    write_shards(sizes, TENSORS.__getitem__, tmp_path, limit=60)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [path.name for path in files] == [
        f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["weight_map"]["t3"] == files[2].name
    assert index["metadata"]["total_size"] == sum(sizes.values())
    whole = tmp_path / "whole"
    save_file(TENSORS, whole)
    assert tensor_digest(files) == tensor_digest([whole])


def test_architecture_ignores_names_and_versions_only():
    config = {"hidden_size": 4, "model_type": "llama"}
    same = config | {"_name_or_path": "/x", "transformers_version": "9", "dtype": "float16"}
    assert architecture_digest(config) == architecture_digest(same)
    assert architecture_digest(config) != architecture_digest(config | {"hidden_size": 5})


def edited(base, tmp_path, file, change):
    folder = tmp_path / "edited"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    value = json.loads((folder / file).read_text())
    change(value)
    (folder / file).write_text(json.dumps(value))
    return tokenizer_digest(folder)


def test_tokenizer_digest_sees_behaviour_only(base, tmp_path):
    own = tokenizer_digest(base)

    def old_merges(value):
        value["model"]["merges"] = [" ".join(pair) for pair in value["model"]["merges"]]

    assert edited(base, tmp_path, "tokenizer.json", old_merges) == own
    padded = lambda value: value.update(padding={"strategy": "BatchLongest"})  # noqa: E731
    assert edited(base, tmp_path, "tokenizer.json", padded) == own
    as_object = lambda value: value.update(eos_token={"content": "<|im_end|>"})  # noqa: E731
    assert edited(base, tmp_path, "tokenizer_config.json", as_object) == own
    other_eos = lambda value: value.update(eos_token="<pad>")  # noqa: E731
    assert edited(base, tmp_path, "tokenizer_config.json", other_eos) != own
    fewer = lambda value: value["model"]["merges"].pop()  # noqa: E731
    assert edited(base, tmp_path, "tokenizer.json", fewer) != own


def test_describe(base):
    config = describe(base, template_origin="own", licence="mit")
    assert (config.family, config.dtype, config.vocab_size) == ("llama", "float32", 384)
    assert config.parameters == 98624
    assert config.template == template_digest((base / "chat_template.jinja").read_text())
    assert config == describe(base, template_origin="own", licence="mit")
    assert config.identity == describe(base, template_origin="own", licence=None).identity


def test_pico_bases_are_deterministic(base, tmp_path):
    again = pico_base(tmp_path / "again")
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {
        p.name: p.read_bytes() for p in base.iterdir()
    }
    other = pico_base(tmp_path / "other", seed=1)
    files = [folder / "model.safetensors" for folder in (base, other)]
    assert tensor_digest(files[:1]) != tensor_digest(files[1:])
