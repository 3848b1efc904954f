"""Stacks that draw, through a real registry: what arrives draws and is judged the same."""

import json
import os

import pytest

from lamina.bases.draw import Style
from lamina.core.digest import digest_bytes
from lamina.core.errors import BaseError, TrustError
from lamina.core.report import Silent
from lamina.flows.bases import pull as pull_base
from lamina.flows.draw import painter
from lamina.flows.examine import examine_stack
from lamina.flows.foreign_bases import from_place
from lamina.flows.publish import Landing, pull, push
from lamina.flows.trust import Trust, sign_object, signatures
from lamina.share.parcel import parcel_of
from lamina.share.policy import FILE
from lamina.share.transfer import fetch
from lamina.stack.resolve import resolve
from tests.cli.program import start, wait
from tests.flows.world import Said
from tests.pictures import drawn_store, pico_pipeline
from tests.share.places import Shelf

pytestmark = pytest.mark.slow


@pytest.fixture
def home(tmp_path):
    return drawn_store(tmp_path / "mine")


def sat(store):
    """Every exam of `dusk`, asked now: its answers, and what is said of them."""
    found = examine_stack(store, "dusk", Silent(), fresh=True)
    return {result.exam.key: result.items for result in found.results}


def test_what_arrives_draws_the_same_and_answers_the_same(home, away, place, access):
    said = Said()
    pushed = push(home, "dusk", place, access, said, with_base=True)
    assert any("exam questions" in text and "of rows of its own" in text for text in said.sentences)
    pulled = pull(away, place, access, Silent(), Landing(name="dusk"))
    assert pulled["stack"] == pushed["digest"] == resolve(home, "dusk").digest
    assert pulled["new_base"] == "canvas"
    assert pulled["preview"]["base"]["family"] == "StableDiffusionPipeline"
    assert away.verify().clean
    theirs = resolve(away, "dusk")
    assert theirs.draws
    assert theirs.base_config == resolve(home, "dusk").base_config
    for layer in theirs.layers:
        titles = {blob.title for blob in layer.manifest.layers}
        assert {"exam-0.jsonl", "exam-1.jsonl", "rehearsal.jsonl"} <= titles
    before, after = sat(home), sat(away)
    assert len(after) == 4
    assert after == before
    ours, others = (
        painter(store, "dusk").draw(["a red circle", "a blue line"], [3, 4], Style(steps=4))
        for store in (home, away)
    )
    assert others == ours  # the same files, byte for byte


def test_over_the_base_that_is_there_only_layers_move(home, away, place, access):
    push(home, "dusk", place, access, Silent())
    with pytest.raises(BaseError, match="not at hand"):
        pull(away, place, access, Silent(), Landing(name="dusk"))
    assert not away.entries()
    pull_base(away, str(pico_pipeline()), "mine", Silent())
    pulled = pull(away, place, access, Silent(), Landing(name="dusk"))
    assert pulled["new_base"] is None
    again = pull(away, place, access, Silent(), Landing(name="dusk"))
    assert again["blobs"] == 0


def test_a_signature_counts_as_it_does_for_text(home, away, place, access, tmp_path):
    anna, careful = Trust(tmp_path / "anna"), Trust(tmp_path / "careful")
    careful.keys.trust(anna.keys.new("anna").line)
    (careful.folder / FILE).write_text('unsigned = "refuse"\n')
    landing = Landing(name="dusk", trust=careful)
    push(home, "dusk", place, access, Silent(), with_base=True)
    with pytest.raises(TrustError):
        pull(away, place, access, Silent(), landing)
    assert not away.entries()
    sign_object(home, anna, "dusk", lambda name: pytest.fail(name))
    push(home, "dusk", place, access, Silent())
    stack = pull(away, place, access, Silent(), landing)["stack"]
    assert [found.state for found in signatures(away, careful, stack)] == ["trusted"]


def test_who_has_no_diffusers_is_told_what_to_install(home, away, place, access, tmp_path):
    """A child process in which it cannot be imported."""
    push(home, "dusk", place, access, Silent(), with_base=True)
    without = tmp_path / "without" / "diffusers"
    without.mkdir(parents=True)
    (without / "__init__.py").write_text("raise ModuleNotFoundError('no diffusers')\n")
    path = os.pathsep.join(
        [str(without.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    )
    env = {"PYTHONPATH": path}
    asked = ("pull", place, "--as", "dusk", "--yes")
    told = wait(start(away.root, *asked, env=env))
    told.refused("image bases need diffusers", "pip install 'lamina[images]'")
    assert not away.entries()
    wait(start(away.root, *asked)).done()  # installed, the same command goes on
    told = wait(start(away.root, "draw", "dusk", "a red circle", env=env))
    told.refused("image bases need diffusers", "pip install 'lamina[images]'")


def bent(home, change):
    """A place whose image base has another index: manifest's digest, identity, the place."""
    base = home.resolve_base("canvas")
    shelf = Shelf(home, parcel_of(home, base.digest))
    manifest = json.loads(shelf.things[base.digest])
    blob = next(b for b in manifest["layers"] if "model_index.json" in str(b["annotations"]))
    index = json.loads(shelf.things[blob["digest"]])
    change(index)
    data = json.dumps(index).encode()
    blob |= {"digest": digest_bytes(data), "size": len(data)}
    shelf.things[blob["digest"]] = data
    whole = json.dumps(manifest).encode()
    shelf.things[digest_bytes(whole)] = whole
    return digest_bytes(whole), resolve(home, "canvas").config.base, shelf


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.pop("vae"),
        lambda index: index.pop("unet"),
        lambda index: index.pop("_class_name"),
        lambda index: index.update(unet=["os", "system"]),
        lambda index: index.update(unet="UNet2DConditionModel"),
        lambda index: index.update(vae=["diffusers", "UNet2DConditionModel"]),
    ],
)
def test_a_base_that_is_no_pipeline_is_refused(home, away, change):
    digest, identity, shelf = bent(home, change)
    with pytest.raises(BaseError):
        from_place(away, digest, identity, shelf, lambda items: fetch(away, shelf, items), None)
    assert not away.entries()
