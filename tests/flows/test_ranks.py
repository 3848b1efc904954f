"""A layer whose modules have ranks of their own goes wherever a layer of one rank goes."""

import json

import pytest
import torch

from lamina.core.errors import UsageError
from lamina.export.parity import logits_of
from lamina.flows import learn
from lamina.flows.adapters import export
from lamina.flows.importing import Request as Import
from lamina.flows.importing import take_in
from lamina.flows.inventory import describe, render
from lamina.flows.merge import merge
from lamina.flows.squash import squash
from lamina.flows.to_python import load_peft
from lamina.flows.update import Request, recipe_of
from lamina.lowrank import codec
from lamina.stack.compile import compile_stack, stored_factors
from lamina.stack.resolve import resolve
from tests.flows.world import Said, learned, request, write_rows
from tests.stacks import BASE, base_model
from tests.tolerance import TOLERANCE

PROMPTS = [list(range(8, 30)), [11, 250, 9, 9, 70]]
RANKS = {"q_proj": 1, "mlp.down_proj": 5, "up_proj": 2}
EXPECTED = {"q_proj": 1, "down_proj": 5}


@pytest.fixture
def layer(store, tmp_path):
    """A store with the stack `uneven`, over the base."""
    learned(store, tmp_path, "uneven", rank=2, ranks=RANKS, steps=8)
    return store


def logits(store, text):
    return logits_of(compile_stack(store, resolve(store, text), dtype=torch.float32).model, PROMPTS)


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        scale = b.abs().max()
        torch.testing.assert_close(a / scale, b / scale, **TOLERANCE[torch.float32])


def ranks_of(store, text):
    factors = stored_factors(store, resolve(store, text).layers[-1].digest)
    return {name.rpartition(".")[2]: part.rank for name, part in factors.items()}


def test_what_is_stored_is_an_adapter_that_peft_reads(layer, tmp_path):
    stored = resolve(layer, "uneven").layers[-1]
    assert (stored.config.rank, stored.config.alpha) == (2, 4.0)
    assert ranks_of(layer, "uneven") == dict.fromkeys(ranks_of(layer, "first"), 2) | EXPECTED
    factors = stored_factors(layer, stored.digest)
    assert {part.scale for part in factors.values()} == {2.0}  # whatever the rank
    folder = tmp_path / "adapter"
    folder.mkdir()
    for title in (codec.CONFIG_FILE, codec.WEIGHTS_FILE):
        (folder / title).write_bytes(layer.read(stored.manifest.blob(title).digest))
    config = json.loads((folder / codec.CONFIG_FILE).read_text())
    assert sorted(config["rank_pattern"].values()) == [1, 5]
    assert sorted(config["alpha_pattern"].values()) == [2.0, 10.0]
    theirs = logits_of(load_peft(base_model(layer), folder), PROMPTS)
    same(theirs, logits(layer, "uneven"))
    plain = logits_of(base_model(layer), PROMPTS)
    assert (theirs[0] - plain[0]).abs().max() > 1e-2 * plain[0].abs().max()


def test_show_names_them(layer, tmp_path):
    shown = render(describe(layer, "uneven"))
    assert "rank 2, alpha 4 (lora)" in shown
    assert "ranks: mlp.down_proj 5, q_proj 1, up_proj 2" in shown
    assert "times that" not in shown
    learned(layer, tmp_path, "plus", lr_ratio=4.0, steps=1)
    assert "B's lr 4 times that" in render(describe(layer, "plus"))


def test_out_and_in_again(layer, tmp_path):
    export(layer, "uneven", tmp_path / "out", "peft", Said())
    take_in(layer, Import(str(tmp_path / "out"), BASE, "taken"), Said())
    same(logits(layer, "taken"), logits(layer, "uneven"))
    assert ranks_of(layer, "taken") == ranks_of(layer, "uneven")
    export(layer, "uneven", tmp_path / "merged", "hf", Said())


def test_over_and_under_other_layers(layer, tmp_path):
    learned(layer, tmp_path, "above", on="uneven", word="animal", accept_regression="a trial")
    before = logits(layer, "above")
    export(layer, "above", tmp_path / "out", "peft", Said())
    squash(layer, "above", name="one", reporter=Said())
    same(logits(layer, "one"), before)
    found = {"q_proj": 3, "down_proj": 7}
    assert ranks_of(layer, "one") == dict.fromkeys(ranks_of(layer, "first"), 4) | found


def test_merged_with_a_layer_of_one_rank(layer):
    merge(
        layer, ("first", "uneven"), name="both", method="concat", reporter=Said(),
        override="they answer different questions",
    )  # fmt: skip
    parts = [stored_factors(layer, resolve(layer, text).layers[-1].digest)
             for text in ("both", "first", "uneven")]  # fmt: skip
    for name, part in parts[0].items():
        terms = [each[name] for each in parts[1:]]
        assert part.rank == sum(term.rank for term in terms)
        expected = sum(term.scale * term.b_OR @ term.a_RI for term in terms)
        torch.testing.assert_close(
            part.scale * part.b_OR @ part.a_RI, expected, **TOLERANCE[torch.float32]
        )


def test_an_update_keeps_them(layer):
    found = resolve(layer, "uneven").layers[-1]
    recipe = recipe_of(found, Request("uneven", ("x",)))
    assert recipe.ranks == RANKS
    assert recipe.scale == 2.0
    with pytest.raises(UsageError, match="keeps the layer's ranks"):
        recipe_of(found, Request("uneven", ("x",), overrides=(("ranks", {"q_proj": 2}),)))


def test_names_of_nothing_are_refused_before_training(store, tmp_path):
    data = write_rows(tmp_path / "colour.jsonl")
    what = request(data, ranks={"q_prj": 4, "k_proj": 2, "lm_head": 3})
    run = learn.prepare(store, what, Said())
    with pytest.raises(UsageError) as caught:
        learn.execute(store, run, Said())
    assert len(caught.value.faults) == 2
    assert not run.directory.exists()
