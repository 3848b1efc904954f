"""`/v1/images/generations`: stacks that draw, as OpenAI's clients ask them."""

import base64
import io

import pytest
from PIL import Image

from tests.pictures import image_store
from tests.web.engine import Fake


@pytest.fixture(scope="module")
def drawing_store(tmp_path_factory):
    return image_store(tmp_path_factory.mktemp("drawing") / "store", "emoji")


@pytest.fixture
def drawing(make, drawing_store):
    return make(Fake(), store=drawing_store)


def ask(world, **body):
    given = {"model": "emoji", "prompt": "a red circle", "steps": 2} | body
    return world.client.post("/v1/images/generations", json=given)


def test_images_come_as_png_and_a_seed_says_which(drawing):
    found = ask(drawing, n=2, seed=7, size="auto", response_format="b64_json").json()
    assert found["size"] == "16x16"
    first, second = (base64.b64decode(each["b64_json"]) for each in found["data"])
    with Image.open(io.BytesIO(first)) as image:
        assert (image.format, image.size) == ("PNG", (16, 16))
    assert first != second
    seeds = [each["seed"] for each in found["data"]]
    again = ask(drawing, n=1, seed=seeds[0]).json()["data"][0]["b64_json"]
    assert base64.b64decode(again) == first
    assert seeds[0] == 7


def test_without_a_seed_each_is_another(drawing):
    one, two = (ask(drawing).json()["data"][0]["seed"] for _ in range(2))
    assert one != two


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"size": "1024x1024"}, "draws 16x16"),
        ({"n": 99}, "n"),
        ({"style": "vivid"}, "style"),
        ({"prompt": ""}, "prompt"),
        ({"response_format": "url"}, "response_format"),
    ],
)
def test_what_cannot_be_done_is_refused(drawing, body, why):
    answered = ask(drawing, **body)
    assert answered.status_code == 400
    assert why in answered.text


def test_a_stack_that_talks_does_not_draw(make):
    world = make(Fake())
    answered = ask(world, model="support")
    assert answered.status_code == 400
    assert "talks" in answered.json()["error"]["message"]


def test_a_stack_that_draws_does_not_talk(drawing):
    answered = drawing.chat(model="emoji")
    assert answered.status_code == 400
    assert "draws" in answered.json()["error"]["message"]


def test_the_page_knows_what_draws(drawing):
    (base,) = drawing.client.get("/ui/api/stacks").json()["bases"]
    assert base["modality"] == "image"
