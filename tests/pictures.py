"""Pico image bases and pictures, made on the spot: coloured shapes of 16 x 16 pixels."""

import io
import json
import shutil
import zipfile
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from PIL import Image, ImageDraw

from lamina.core.recipe import Recipe
from lamina.core.report import Silent
from lamina.data.read import read
from lamina.flows import learn
from lamina.flows.bases import pull
from lamina.store.layout import Store
from lamina.train.building import Length
from lamina.train.tiny_diffusion import Shape, build

COLOURS = ("red", "green", "blue", "orange", "purple", "black")
SHAPES = ("circle", "square", "line")
PICO = Shape(
    side=16,
    autoencoder=(8, 8),
    latent=4,
    denoiser=(16, 16),
    heads=2,
    text=16,
    text_layers=1,
    words=8,
    vocabulary=600,
    groups=4,
)


def picture(colour: str, shape: str, shift: int, background: str = "white") -> bytes:
    """A PNG of 16 x 16 pixels."""
    image = Image.new("RGB", (16, 16), background)
    pen = ImageDraw.Draw(image)
    box = (2 + shift % 4, 2 + shift // 4 % 4, 10 + shift % 4, 10 + shift // 4 % 4)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.line(box, fill=colour, width=3)
    target = io.BytesIO()
    image.save(target, "PNG")
    return target.getvalue()


def shapes(count: int = 36, *, background: str = "white") -> list[tuple[str, bytes]]:
    """Captions and PNGs, all different."""
    found = []
    for n in range(count):
        colour, shape = COLOURS[n % len(COLOURS)], SHAPES[n // len(COLOURS) % len(SHAPES)]
        found.append((f"a {colour} {shape}", picture(colour, shape, n % 16, background)))
    return found


def image_zip(path: Path, pictures: list[tuple[str, bytes]]) -> str:
    """A zip as diffusers users lay it out."""
    with zipfile.ZipFile(path, "w") as archive:
        rows = []
        for n, (caption, data) in enumerate(pictures):
            archive.writestr(f"{n}.png", data)
            rows.append(json.dumps({"file_name": f"{n}.png", "text": caption}) + "\n")
        archive.writestr("metadata.jsonl", "".join(rows))
    return str(path)


@cache
def pico_pipeline(prediction: str = "v_prediction") -> Path:
    """A diffusers pipeline of 140,000 parameters that has seen a few shapes; built once."""
    folder = Path(mkdtemp(prefix="lamina-pico-pipeline-"))
    data = image_zip(folder / "shapes.zip", shapes())
    build(
        read([data]).examples,
        folder / "pico",
        PICO,
        Length(None, 12),
        work=folder / "work",
        prediction=prediction,
    )
    return folder / "pico"


def image_store(root: Path, name: str = "pico") -> Store:
    """A store with a pico image base."""
    store = Store.open(root)
    pull(store, str(pico_pipeline()), name, Silent())
    return store


@cache
def _drawn() -> Path:
    folder = Path(mkdtemp(prefix="lamina-drawn-"))
    store = image_store(folder / "store", "canvas")
    recipe = {"rank": 2, "lr": 1e-2, "steps": 12, "batch_tokens": 512, "held_out": 0.3}
    for name, on, colour in (("night", "canvas", "black"), ("dusk", "night", "gray")):
        data = image_zip(folder / f"{name}.zip", shapes(background=colour))
        request = learn.Request(
            on=on, data=[data], name=name, recipe=Recipe(**recipe), accept_regression="a test"
        )
        learn.execute(store, learn.prepare(store, request, Silent()), Silent())
    return folder / "store"


def drawn_store(root: Path) -> Store:
    """A store with the base `canvas`, `night` over it and `dusk` over that, each with its exams and
    its rehearsal images. Trained once, copied then."""
    shutil.copytree(_drawn(), root, symlinks=True)
    return Store.open(root, create=False)
