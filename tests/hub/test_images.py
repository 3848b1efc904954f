"""Stacks that draw on the Hub: a LoRA file that diffusers loads, a card of images, the stack."""

import re
import sys

import pytest
import torch
from huggingface_hub import ModelCard, snapshot_download

from lamina.bases.draw import Style, draw
from lamina.bases.pipeline_files import nested
from lamina.bases.quiet import quiet
from lamina.core.errors import MissingPartError
from lamina.core.report import Silent
from lamina.export.diffusers import loaded
from lamina.flows.bases import pull as pull_base
from lamina.flows.card import gather
from lamina.flows.hub import pull
from lamina.flows.publish import Landing
from lamina.flows.squash import squash
from lamina.flows.to_diffusers import LIMIT, drawn_by
from lamina.share.card import render
from lamina.share.hub import BLOBS
from lamina.stack.compile import base_directory, compile_stack
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from tests.hub.test_card import CERTIFICATE, SECTIONS, headings, tokens_of
from tests.hub.world import place, pushed
from tests.pictures import drawn_store, pico_pipeline
from tests.test_docs import faults, shown

pytestmark = pytest.mark.slow

FORMS = ("hub-images", "diffusers", "kohya", "diffusers-base")
OF_WORDS = re.compile(r"token|chat|template|logit|vllm|llama|ollama|\bPEFT\b|text-generation", re.I)


@pytest.fixture
def store(tmp_path):
    return drawn_store(tmp_path / "store")


def test_diffusers_draws_what_was_pushed_and_lamina_restores_it(hub, store, tmp_path):
    found, _ = pushed(hub, store, "dusk")
    files = hub.repos["org/agent"].head.files
    assert {name for name in files if not name.startswith(BLOBS)} == {
        ".gitattributes",
        "README.md",
        "lamina.json",
        "lamina/index.json",
        "lamina/oci-layout",
        "pytorch_lora_weights.safetensors",
    }
    assert found["parity"]["ok"]
    folder = tmp_path / "down"
    snapshot_download("org/agent", endpoint=hub.endpoint, local_dir=folder)
    stack = resolve(store, "dusk")
    captions = ["a red circle", "a blue line"]
    ours = compile_stack(store, stack, dtype=torch.float32).pipeline
    with quiet(), nested(base_directory(store, stack.base)) as base:
        theirs = loaded(base, folder / "pytorch_lora_weights.safetensors")
        drawn = drawn_by(theirs, captions)
    expected = draw(ours, captions, range(2), Style(steps=8))
    assert (drawn - expected).abs().max() / 2 < LIMIT
    away = Store.open(tmp_path / "away")
    pull_base(away, str(pico_pipeline()), "canvas", Silent())
    landed = pull(away, place(hub), Silent(), Landing(name="dusk"))
    assert landed["stack"] == found["stack"]


def test_a_second_push_changes_nothing(hub, store):
    pushed(hub, store, "dusk")
    again, _ = pushed(hub, store, "dusk")
    assert again["changed"] is False


def test_nothing_is_pushed_that_diffusers_has_not_read(hub, store, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingPartError, match="diffusers"):
        pushed(hub, store, "dusk")
    assert "org/agent" not in hub.repos


@pytest.mark.parametrize("form", FORMS)
def test_a_card_of_images_speaks_of_images(store, form):
    squash(store, "dusk", name="flat", reporter=Silent(), rank=2, override="a test")
    for name in ("dusk", "flat", "canvas"):
        facts = gather(store, resolve(store, name), certificate=CERTIFICATE, where="org/agent")
        text = render(facts, form)
        assert headings(tokens_of(text)) == SECTIONS
        said = text.replace(facts.parity["measure"], "")
        assert OF_WORDS.findall(said) == []
        assert ModelCard(text).data.pipeline_tag == "text-to-image"
        assert ModelCard(text).data.library_name == "diffusers"
        assert {line: list(faults(line)) for line in shown(text)} == {
            line: [] for line in shown(text)
        }
    stack = render(gather(store, resolve(store, "dusk"), certificate=CERTIFICATE), form)
    assert "captioned images" in stack
    assert "places of latents" in stack
    results = {each.dataset_name: each for each in ModelCard(stack).data.eval_results}
    assert {each.task_type for each in results.values()} == {"text-to-image"}
    assert "night/denoise" in results
