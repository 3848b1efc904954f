"""Layers over images, many at once and in many ways, over two hosts."""

import json

import pytest

from lamina.core.manifests import LayerConfig
from lamina.stack.resolve import resolve
from tests.fleet.hosts import ended
from tests.pictures import image_store, image_zip, shapes

pytestmark = [pytest.mark.slow, pytest.mark.alone]

RECIPE = "{ rank = 2, steps = 3, batch_tokens = 512, held_out = 0.3 }"
FARM = f"""
[defaults]
on = "pico"
recipe = {RECIPE}
[[job]]
name = "night"
data = ["night.zip"]
[[job]]
name = "dusk"
data = ["dusk.zip"]
[[job]]
name = "words"
data = ["rows.jsonl"]
"""
SWEEP = f"""
name = "swept"
on = "pico"
data = ["night.zip"]
recipe = {RECIPE}
[search]
rank = [2, 4]
"""


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """A store with an image base; images, and rows of words, beside it."""
    folder = tmp_path_factory.mktemp("studio")
    for name, colour in (("night", "black"), ("dusk", "gray")):
        image_zip(folder / f"{name}.zip", shapes(background=colour))
    (folder / "rows.jsonl").write_text('{"text": "a row"}\n{"text": "another"}\n' * 5)
    (folder / "farm.toml").write_text(FARM)
    (folder / "sweep.toml").write_text(SWEEP)
    return image_store(folder / "store")


def run(hosts, studio, verb):
    file = studio.root.parent / f"{verb}.toml"
    status, out, said = ended(hosts.lamina(studio.root, verb, file, "--json"))
    return status, json.loads(out), said


def test_a_farm_of_image_layers(hosts, studio):
    status, found, said = run(hosts, studio, "farm")
    assert status == 1, said
    states = {job["name"]: job["state"] for job in found["jobs"]}
    assert states == {"night": "named", "dusk": "named", "words": "failed"}
    wrong = next(job for job in found["jobs"] if job["name"] == "words")
    assert "have no image" in wrong["result"]
    assert wrong["tries"] == 1
    assert resolve(studio, "dusk").draws


def test_a_sweep_over_two_ranks(hosts, studio):
    status, found, said = run(hosts, studio, "sweep")
    assert status == 0, said
    assert sorted(trial["state"] for trial in found["trials"]) == ["landed", "landed"]
    ranks = {
        studio.config(studio.manifest(trial["layer"]), LayerConfig).rank
        for trial in found["trials"]
    }
    assert ranks == {2, 4}
    assert resolve(studio, "swept").draws
