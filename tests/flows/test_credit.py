"""Whose work is in a layer: through squash and merge, and when the originals are gone."""

import pytest

from lamina.core.errors import CheckError
from lamina.core.manifests import LayerConfig
from lamina.flows import adapters, learn, rebase, update
from lamina.flows.credit import contributors, credits_of
from lamina.flows.inventory import describe, history, render
from lamina.flows.licensing import licences_of
from lamina.flows.merge import merge
from lamina.flows.squash import squash
from lamina.stack.resolve import resolve
from tests.flows.world import Said, learned, write_rows

pytestmark = pytest.mark.slow  # whole verbs, again and again

WHY = "it is a test"


def top(store, name) -> LayerConfig:
    return resolve(store, name).layers[-1].config


@pytest.fixture
def two(store, tmp_path):
    """`first` by ann with `second` by nobody over it; `other` by ben beside `second`."""
    learned(store, tmp_path, "other", on="first", word="plant", author="ben", accept_regression=WHY)
    return store


def test_a_trained_layer_has_no_credits_and_keeps_its_digest(store):
    found = top(store, "first")
    assert found.credits is None
    assert b"credits" not in found.to_bytes()


def test_a_squash_credits_each_layer_by_its_share(two):
    stack = resolve(two, "other")
    squash(two, "other", name="one", reporter=Said(), override=WHY, author="sam")
    (layer,) = resolve(two, "one").layers
    credits = layer.config.credits
    assert [(c.layer, c.author) for c in credits] == [
        (each.digest, author) for each, author in zip(stack.layers, ("ann", "ben"), strict=True)
    ]
    assert sum(c.share for c in credits) == pytest.approx(1, abs=2e-4)
    assert all(0 < c.share < 1 for c in credits)
    assert credits[0].licence == "cc0-1.0"
    assert contributors(two, [layer]) == ("sam", "ann", "ben")


def test_credit_goes_on_through_a_merge_of_a_squash_without_the_originals(two, tmp_path):
    squash(two, "other", name="one", reporter=Said(), override=WHY, author="sam")
    learned(two, tmp_path, "third", word="metal", author="cem")
    how = {"method": "concat", "reporter": Said(), "override": WHY}
    merge(two, ["one", "third"], name="both", author="mia", **how)
    merged = top(two, "both")
    assert [(c.author, c.made) for c in merged.credits] == [
        ("sam", "squashed"), ("ann", "trained"), ("ben", "trained"), ("cem", "trained"),
    ]  # fmt: skip
    assert merged.credits[0].share is None
    assert sum(c.share or 0 for c in merged.credits) == pytest.approx(1, abs=4e-4)
    for name in ("other", "second", "first", "one", "third"):
        two.untag_all(name)
    for entry in two.entries():
        if entry.artifactType and entry.artifactType.endswith("layer.v1"):
            two.remove_root(entry.digest)
    two.collect(grace_seconds=0)
    assert not two.has(merged.credits[1].layer)
    assert credits_of(two, top(two, "both")) == merged.credits
    shown = render(describe(two, "both"))
    assert "has the work of sam: one @" in shown
    assert "ben: other @" in shown
    (move,) = history(two, "both")
    assert move["contributors"] == ["mia", "sam", "ann", "ben", "cem"]


def test_an_old_squash_without_credits_gets_them_from_its_sources(two):
    squash(two, "other", name="one", reporter=Said(), override=WHY)
    config = top(two, "one").model_copy(update={"credits": None})
    assert [(c.author, c.share) for c in credits_of(two, config)] == [("ann", None), ("ben", None)]


def test_an_export_says_whose_work_it_is(two, tmp_path):
    made = adapters.export(two, "other", tmp_path / "out", "peft", Said())
    assert [layer["author"] for layer in made["credits"]] == ["ann", "ben"]
    assert made["contributors"] == ["ann", "ben"]
    assert made["licences"]["expression"] == "CC0-1.0"


# -- licences: the same works, asked what they allow -----------------------------------------------


@pytest.fixture
def unmixable(store, tmp_path):
    """`first` under CC0, and over it `stubborn`, whose licence bans adaptations."""
    how = {"author": "ben", "accept_regression": WHY, "licence": "cc-by-nd-3.0"}
    learned(store, tmp_path, "stubborn", on="first", word="plant", **how)
    return store


def test_a_squash_that_a_licence_forbids_needs_a_reason_which_is_kept(unmixable):
    said = Said()
    with pytest.raises(CheckError, match="allows no adaptation"):
        squash(unmixable, "stubborn", name="one", reporter=said, override=WHY)
    assert "one" not in unmixable.names()
    done = squash(
        unmixable, "stubborn", name="one", reporter=said, override=WHY, despite="ben said yes"
    )
    assert done["certificate"]["despite"] == "ben said yes"
    assert any("going on: ben said yes" in text for text in said.sentences)


def test_what_was_joined_keeps_its_licences(unmixable):
    squash(unmixable, "stubborn", name="one", reporter=Said(), override=WHY, despite=WHY)
    found = licences_of(unmixable, resolve(unmixable, "one"), "share")
    assert found.expression == "CC0-1.0 AND CC-BY-ND-3.0"
    assert len(found.forbidden) == 1
    assert "layer stubborn is under CC-BY-ND-3.0" in found.forbidden[0]


def test_a_commercial_export_stops_at_a_licence_that_bans_it(store, tmp_path):
    learned(store, tmp_path, "kind", on="pico", word="tree", licence="cc-by-nc-4.0")
    with pytest.raises(CheckError, match="no commercial use"):
        adapters.export(store, "kind", tmp_path / "no", "peft", Said(), commercial=True)
    assert not (tmp_path / "no").exists()
    made = adapters.export(
        store, "kind", tmp_path / "yes", "peft", Said(), commercial=True, despite="we paid"
    )
    assert made["licences"]["despite"] == "we paid"
    assert made["licences"]["expression"] == "CC-BY-NC-4.0"
    adapters.export(store, "kind", tmp_path / "free", "peft", Said())


# -- versions and carries --------------------------------------------------------------------------


def test_an_update_credits_the_version_that_it_went_on_from(store, tmp_path):
    old = resolve(store, "first").layers[-1]
    asked = update.Request(
        stack="first", data=[write_rows(tmp_path / "new.jsonl", 20, word="fruit")],
        accept_regression=WHY, author="ben",
    )  # fmt: skip
    new = learn.execute(store, update.prepare(store, asked, Said()), Said())
    (credit,) = new.config.credits
    assert (credit.layer, credit.author, credit.share) == (old.digest, "ann", None)
    assert contributors(store, resolve(store, "first").layers) == ("ben", "ann")
    again = update.Request(
        stack="first", data=[write_rows(tmp_path / "newer.jsonl", 20, word="stone")],
        accept_regression=WHY, author="cem",
    )  # fmt: skip
    newest = learn.execute(store, update.prepare(store, again, Said()), Said())
    assert [c.author for c in newest.config.credits] == ["ben", "ann"]


def test_a_carried_layer_credits_its_author_for_all_of_it(store, tmp_path):
    learned(store, tmp_path, "beside", word="plant", author="dee")
    asked = rebase.Request(stack="second", onto="beside", name="moved", override=WHY, author="eve")
    rebase.rebase(store, asked, Said(), lambda: False)
    source, moved = (resolve(store, name).layers[-1] for name in ("second", "moved"))
    assert moved.config.origin in ("carried", "distilled", "trained")
    (credit,) = moved.config.credits
    assert credit.layer == source.digest
    assert credit.share in (1.0, None)  # None where it had to be trained again
