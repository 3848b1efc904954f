"""Every command on a stack that draws, and images where a stack talks: done, or refused at once."""

import json
import urllib.request

import pytest

from lamina.core.recipe import Recipe
from lamina.core.report import Silent
from lamina.flows import learn
from tests.cli.program import Program
from tests.flows.world import request, write_rows
from tests.pictures import drawn_store, image_zip, pico_pipeline, shapes
from tests.stacks import new_store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store with `night`, `dusk` and `noon`, which draw, and `talk` over the base `pico`, which
    talks; images and rows beside it."""
    folder = tmp_path_factory.mktemp("both")
    drawn_store(folder / "store")
    store = new_store(folder / "store", layers=1)
    rows = write_rows(folder / "rows.jsonl")
    images = image_zip(folder / "images.zip", shapes(background="navy"))
    noon = {"batch_tokens": 512, "steps": 2, "held_out": 0.3, "rank": 2}
    noon = learn.Request(on="canvas", data=[images], name="noon", recipe=Recipe(**noon))
    for asked in (request(rows, "talk"), noon):
        learn.execute(store, learn.prepare(store, asked, Silent()), Silent())
    same = [("a photo of sks", picture) for _, picture in shapes(background="teal")]
    image_zip(folder / "same.zip", same)
    return folder


@pytest.fixture
def program(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    return Program(folder / "store", monkeypatch, capsys)


QUICK = ("--steps", 2, "--batch-tokens", 512, "--held-out", 0.3, "--accept-regression", "a test")
TRAIN = ("train", "--as", "new", *QUICK, "--data")
DRAWS, TALKS = "dusk draws", "talk talks"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("chat", "dusk", "--once", "hi"), (DRAWS, "lamina draw dusk")),
        (("plan", "--on", "dusk", "--data", "images.zip"), ("it draws", "--steps 10")),
        (("plan", "--on", "talk", "--data", "images.zip"), ("36 of 36 rows are images", TALKS)),
        (("arena", "dusk", "--against", "night"), (DRAWS, "lamina exam dusk --against night")),
        (("arena", "dusk", "--against", "http://127.0.0.1:9/v1"), (DRAWS, "lamina draw dusk")),
        (("arena", "talk", "--against", "dusk"), (DRAWS, "two stacks that talk")),
        (("diff", "dusk", "night"), (DRAWS, "lamina exam dusk --against night")),
        (("diff", "dusk", "talk"), (DRAWS, TALKS, "of one kind")),
        (("advise", "images.zip", "--on", "dusk"), (DRAWS, "lamina sweep")),
        (("exam", "dusk", "--exam", "rows.jsonl"), (DRAWS, "denoise, retrieve, colour")),
        (("exam", "talk", "--exam", "images.zip"), (TALKS, "scorers for it: loss")),
        (("exam", "dusk", "--against", "talk"), (TALKS, "denoise")),
        (("bisect", "dusk", "--exam", "rows.jsonl"), (DRAWS, "denoise, retrieve, colour")),
        (("tag", "dusk", "talk"), (TALKS, DRAWS, "another name")),
        (("tag", "talk", "dusk"), (TALKS, DRAWS, "another name")),
        (("rebase", "dusk", "--onto", "talk", "--as", "x"), (DRAWS, TALKS)),
        (("rebase", "dusk", "--onto-base", "pico", "--as", "x"), (DRAWS, "pico talks")),
        (("rebase", "talk", "--onto-base", "canvas", "--as", "x"), (TALKS, "canvas draws")),
        (("merge", "night", "noon", "--as", "x", "--method", "learned"), ("draws", "ties")),
        (("merge", "night", "talk", "--as", "x"), ("different bases",)),
        (("serve", "dusk", "--engine", "vllm"), (DRAWS, "leave --engine out")),
        (("serve", "dusk", "--engine", "llamacpp"), (DRAWS, "leave --engine out")),
        (("draw", "talk", "hi", "--out", "x.png"), (TALKS, "lamina chat talk")),
        (("base", "pull", "canvas", "--quantise", "nf4"), ("draws", "without --quantise")),
        (("update", "dusk", "--data", "rows.jsonl"), ("40 of 40 rows have no image",)),
        (("update", "talk", "--data", "images.zip"), ("36 of 36 rows are images", TALKS)),
        (("update", "dusk", "--data", "images.zip", "--memory", "2GB"), ("--memory",)),
        (("update", "dusk", "--data", "images.zip", "--known", 0.5), ("known: 0.5",)),
        (("update", "dusk", "--data", "images.zip", "--above", 0.5), ("above: 0.5",)),
        ((*TRAIN, "rows.jsonl", "--on", "dusk"), ("40 of 40 rows have no image", DRAWS)),
        ((*TRAIN, "images.zip", "--on", "talk"), ("36 of 36 rows are images", TALKS)),
        ((*TRAIN, "images.zip", "--on", "dusk", "--stream"), ("--stream",)),
        ((*TRAIN, "images.zip", "--on", "dusk", "--memory", "2GB"), ("--memory",)),
        ((*TRAIN, "images.zip", "--on", "dusk", "--max-length", 64), ("max_length: 64",)),
        ((*TRAIN, "images.zip", "--on", "dusk", "--module-rank", "to_q=3"), ("ranks:",)),
        ((*TRAIN, "images.zip", "--on", "dusk", "--scorer", "loss"), (DRAWS, "denoise")),
        ((*TRAIN, "images.zip", "--on", "dusk", "--exam", "rows.jsonl"), (DRAWS, "denoise")),
        ((*TRAIN, "same.zip", "--on", "dusk", "--scorer", "retrieve"), ("'retrieve'",)),
        ((*TRAIN, "rows.jsonl", "--on", "talk", "--scorer", "denoise"), (TALKS, "loss")),
        ((*TRAIN, "rows.jsonl", "--on", "talk", "--min-snr", 5), ("about images",)),
        (("train", "--as", "talk", "--on", "dusk", *QUICK, "--data", "images.zip"), (TALKS,)),
        (
            (*TRAIN, "images.zip", "--on", "dusk", "--rehearsal-set", "synthesised"),
            ("it writes no rows",),
        ),
        *(
            (("export", "dusk", "out", "--to", target), (DRAWS, "targets for it: diffusers, kohya"))
            for target in ("peft", "hf", "gguf", "gguf-lora", "ollama", "vllm", "mlx")
        ),
        *(
            (("export", "talk", "out", "--to", target), (TALKS, "targets for it: gguf"))
            for target in ("diffusers", "kohya", "diffusers-base")
        ),
    ],
    ids=lambda given: "-".join(map(str, given)) if isinstance(given, tuple) else str(given),
)
def test_what_does_not_suit_is_refused_before_anything_is_done(program, folder, command, said):
    before = sorted(path.name for path in (folder / "store" / "runs").iterdir())
    program(*command).refused(*said)
    assert sorted(path.name for path in (folder / "store" / "runs").iterdir()) == before
    assert not (folder / "out").exists()


def test_what_reads_reads(program):
    assert "canvas" in program("base", "list").done().out
    assert program("base", "show", "canvas", "--json").done().json["modality"] == "image"
    assert "dusk" in program("list").done().out
    assert program("show", "dusk", "--json").done().json["layers"][1]["name"] == "dusk"
    assert "dusk:v1" in program("log", "dusk").done().out
    assert "current" in program("status").done().out
    assert "over 2 layers" in program("cost", "dusk").done().out
    assert "unet." in program("conflicts", "dusk", "night").done().out
    found = program("bisect", "dusk", "--json").done().json
    assert {each["exam"] for each in found["exams"]} >= {"night/denoise", "dusk/retrieve"}
    assert ": \n" not in program("bisect", "dusk").done().out
    assert "sound" in program("verify").done().out
    assert "0 objects would go" in program("gc", "--dry-run").done().out


def test_a_layer_is_reproduced_to_the_digest(program):
    layer = program("show", "dusk", "--json").done().json["layers"][1]["layer"]
    assert layer in program("reproduce", "dusk").done().out


def test_a_subject_under_one_caption_is_examined_without_the_others(program):
    """As people photograph one thing: there is no other caption to tell an image's own from."""
    done = program("train", "--on", "canvas", "--data", "same.zip", "--as", "sks", *QUICK, "--json")
    scores = done.done().json["metrics"]["scores"]
    assert [score["exam"] for score in scores] == ["sks/denoise"]


def test_a_proposal_of_images_is_reviewed_and_accepted(program, folder):
    program("tag", "night", "ours").done()
    asked = ("--onto", "ours", "--author", "ann")
    program("propose", "dusk", "offer.tar", *asked).done()
    found = program("review", "offer.tar", "--json").json
    assert found["weights"]["linears"] == 70
    assert {each["exam"] for each in found["measured"]} >= {"dusk/denoise", "night/retrieve"}
    assert all(each["identical"] is not False for each in found["measured"])
    program("accept", "offer.tar", "--accept-regression", "a test").done()
    assert program("show", "ours", "--json").done().json["layers"][1]["name"] == "dusk"


def test_a_stack_that_draws_is_served_alone(program):
    child = program.child("serve", "dusk", "--port", 0)
    try:
        said = [child.stdout.readline() for _ in range(4)]
        url = said[1].split()[1].removesuffix("/v1,")
        assert f"curl {url}/v1/images/generations" in said[2]
        body = {"model": "dusk", "prompt": "a red circle", "steps": 2, "seed": 1}
        asked = urllib.request.Request(
            f"{url}/v1/images/generations",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(asked) as answer:
            assert json.load(answer)["data"][0]["seed"] == 1
    finally:
        child.terminate()
        child.communicate(timeout=60)
    assert child.returncode == 0


def test_a_base_that_is_a_pipeline_is_not_quantised(program):
    told = program("base", "pull", pico_pipeline(), "--as", "small", "--quantise", "int8")
    told.refused("draws", "without --quantise")


def test_a_layer_is_carried_to_another_image_base(program):
    """Of the same shapes: it fits as it is, and is judged there."""
    other = pico_pipeline("epsilon")
    program("base", "pull", other, "--as", "other").done()
    asked = ("--onto-base", "other", "--as", "carried", "--accept-regression", "a test")
    program("rebase", "night", *asked).done()
    shown = program("show", "carried", "--json").done().json
    assert [layer["name"] for layer in shown["layers"]] == ["night"]
