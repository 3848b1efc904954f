"""Layers over a latent diffusion base: a style, then a subject over it, beside diffusers and peft.

The base is built from emoji without food (`lamina base build tiny-diffusion`), unless the store has
it; the style is that of pixel-art monsters (put on white), the subject is food. `matrix`: every
exam on base, style, and style with subject. `picture`: a grid, a row a prompt, a column a stack.
`built_minutes`: what the base took from its images to the store, if it was built for the row.

`vs_diffusers`: seconds of a step that diffusers' own training script takes (images through the
autoencoder and captions through the text encoder at each step, LoRA by peft), over ours, in one
run on the same images, steps by turns, all in float32. `vs_diffusers_cached`: the same where its
latents and states are computed before, as its script does not. `…_bf16`: the same in bfloat16,
which is our default, and its `--mixed_precision bf16`. `convolutions`: all of it with the
convolutions of the denoiser's blocks trained too, as LoCon. `depth_8_1`: a step over eight layers
beneath, over one above the bare base.
"""

import io
import json
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from benchmarks.common import Log, emit, home, parser, say
from benchmarks.depth import add_layer
from lamina.bases.draw import Style
from lamina.bases.pipeline import CONVOLUTIONS, chosen
from lamina.core.recipe import ALL_LINEAR, Recipe
from lamina.data.example import Example
from lamina.data.read import read
from lamina.exams.report import interval_text, score_of
from lamina.flows import learn
from lamina.flows.draw import Painter, build, grid
from lamina.flows.examine import sit
from lamina.flows.questions import carried
from lamina.stack.compile import Compiled, compile_stack
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from lamina.train.diffusion import DiffusionLesson, Eyes, pictured
from lamina.train.job import Job
from lamina.train.pictures import pictures

BASE = "bench-emoji"
EMOJI, TILES = "img_noto_emoji_64.zip", "img_dcss_tiles_32.zip"
PROMPTS = ("red circle", "dragon, monster", "pizza", "dog face", "cat face", "green apple")
LAYERS = 8
AT_ONCE = 32
"""Images in a step: what our default of 2,048 places makes of latents of 8 x 8."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser(__doc__, data=True)
    options.add_argument("--quick", action="store_true", help="few images, a few steps")
    options.add_argument("--base", default=BASE, help="an image base of the store")
    options.add_argument("--minutes", type=float, default=20.0, help="of building the base")
    options.add_argument(
        "--steps", type=int, default=900, help="of the style; a third of the subject"
    )
    options.add_argument("--timed", type=int, default=12, help="steps that are timed on each side")
    options.add_argument("--picture", type=Path, help="where the grid of images goes")
    given = options.parse_args(arguments)
    with home(given.home) as directory, tempfile.TemporaryDirectory() as scratch:
        store, work = Store.open(directory), Path(scratch)
        quick = given.quick
        base = part(given.data / EMOJI, work / "base.zip", _no_food, 40 if quick else None)
        food = part(given.data / EMOJI, work / "food.zip", _food, 20 if quick else None)
        monsters = given.data / TILES
        tiles = part(monsters, work / "tiles.zip", _monster, 20 if quick else None, on_white)
        built: dict[str, float] = {}
        if given.base not in store.bases():
            began = time.perf_counter()
            _build(store, given.base, base, given.minutes, quick)
            built = {"built_minutes": round((time.perf_counter() - began) / 60, 1)}
        steps = 2 if quick else given.steps
        _layer(store, given.base, "bench-style", tiles, steps)
        _layer(store, "bench-style", "bench-subject", food, -(-steps // 3))
        stacks = (given.base, "bench-style", "bench-subject")
        row = {
            "base": given.base,
            **built,
            "quick": quick,
            "steps": steps,
            **_sizes(store, "bench-style"),
            "matrix": _matrix(store, stacks),
            **_beside_diffusers(store, given.base, tiles, 2 if quick else given.timed),
            "convolutions": _beside_diffusers(
                store, given.base, tiles, 2 if quick else given.timed, (ALL_LINEAR, CONVOLUTIONS)
            ),
            **_depth(store, given.base, tiles, 2 if quick else given.timed),
        }
        if given.picture is not None:
            _picture(store, stacks, given.picture, 4 if quick else 25)
    emit("images", row, keep=given.keep)


def part(
    source: Path,
    out: Path,
    keep: Callable[[dict[str, Any]], bool],
    most: int | None,
    change: Callable[[bytes], bytes] = lambda data: data,
) -> str:
    """Those images of a zip that are wanted, as another zip."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(out, "w") as chosen_:
        rows = [json.loads(line) for line in archive.read("metadata.jsonl").splitlines()]
        rows = [row for row in rows if keep(row)][:most]
        for row in rows:
            chosen_.writestr(row["file"], change(archive.read(row["file"])))
        chosen_.writestr("metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return str(out)


def _no_food(row: dict[str, Any]) -> bool:
    return not _food(row)


def _food(row: dict[str, Any]) -> bool:
    return bool(row["group"] == "Food & Drink")


def _monster(row: dict[str, Any]) -> bool:
    return str(row["group"]).startswith("mon")


def on_white(data: bytes) -> bytes:
    """A PNG whose black background, from the corners inwards, is white, as the base's images'."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    right, bottom = image.width - 1, image.height - 1
    for corner in ((0, 0), (right, 0), (0, bottom), (right, bottom)):
        if image.getpixel(corner) == (0, 0, 0):
            ImageDraw.floodfill(image, corner, (255, 255, 255))
    target = io.BytesIO()
    image.save(target, "PNG")
    return target.getvalue()


def _build(store: Store, name: str, data: str, minutes: float, quick: bool) -> None:
    build(
        store,
        "tiny-diffusion",
        [data],
        name,
        Log(),
        minutes=minutes,
        steps=2 if quick else None,
        seed=0,
        side=32 if quick else 64,
        licence="apache-2.0",
        should_stop=lambda: False,
    )


def _recipe(steps: int, targets: Sequence[str] = (ALL_LINEAR,)) -> Recipe:
    return Recipe(
        targets=tuple(targets),
        steps=steps,
        lr=1e-3,
        held_out=0.15,
        held_out_max=64,
        dtype="float32",
        exams=("denoise", "retrieve", "colour"),
    )


def _layer(store: Store, on: str, name: str, data: str, steps: int) -> None:
    if name in store.names():
        say(f"{name} is in the store already")
        return
    asked = learn.Request(
        on=on, data=[data], name=name, recipe=_recipe(steps), accept_regression="benchmark"
    )
    learn.execute(store, learn.prepare(store, asked, Log()), Log())


def _sizes(store: Store, name: str) -> dict[str, Any]:
    stack = resolve(store, name)
    layer = stack.layers[-1].manifest.blob("adapter_model.safetensors")
    base = sum(blob.size for blob in store.manifest(stack.base.digest).layers)
    assert layer is not None
    return {"layer_bytes": layer.size, "base_bytes": base, "smaller": round(base / layer.size, 1)}


def _matrix(store: Store, names: Sequence[str]) -> list[dict[str, Any]]:
    """Every exam of the highest stack on each."""
    exams = carried(store, resolve(store, names[-1]).layers)
    results = [(name, sit(store, resolve(store, name), exams, Log())) for name in names]
    return [
        {
            "stack": name,
            "exam": score.exam,
            "value": round(score.value, 4),
            "ci": [round(x, 4) for x in score.ci],
            "n": score.n,
            "text": interval_text(score.metric, score.ci),
        }
        for name, found in results
        for score in map(score_of, found)
    ]


def _picture(store: Store, names: Sequence[str], out: Path, steps: int) -> None:
    hands = [Painter(store, resolve(store, name)) for name in names]
    style = Style(steps=steps)
    files = [hand.draw([prompt], [7], style)[0] for prompt in PROMPTS for hand in hands]
    out.write_bytes(grid(files, len(names)))


# -- time ------------------------------------------------------------------------------------------


def _beside_diffusers(
    store: Store, base: str, data: str, steps: int, targets: Sequence[str] = (ALL_LINEAR,)
) -> dict[str, Any]:
    """Seconds of a step of each side in both dtypes, and their ratios."""
    examples = read([data]).examples[: 4 * AT_ONCE]
    found: dict[str, Any] = {"at_once": AT_ONCE, "step_seconds": {}}
    for tail, dtype in (("", torch.float32), ("_bf16", torch.bfloat16)):
        # three sides at a time: more would meet more shapes than oneDNN keeps code for
        ours, script, cached = _medians(store, base, dtype, examples, targets, steps)
        found["step_seconds"] |= {
            f"ours{tail}": round(ours, 4),
            f"diffusers{tail}": round(script, 4),
            f"cached{tail}": round(cached, 4),
        }
        found[f"vs_diffusers{tail}"] = round(script / ours, 2)
        found[f"vs_diffusers_cached{tail}"] = round(cached / ours, 2)
    return found


def _medians(
    store: Store,
    base: str,
    dtype: torch.dtype,
    examples: Sequence[Example],
    targets: Sequence[str],
    steps: int,
) -> tuple[float, float, float]:
    """Of steps that follow each other by turns: ours, diffusers', and diffusers' with latents and
    states kept."""

    def compiled() -> Compiled:
        return compile_stack(store, resolve(store, base), dtype=dtype)

    sides: list[_Ours | _Theirs] = [
        _Ours(compiled(), examples, targets),
        _Theirs(compiled(), examples, targets, cached=False),
        _Theirs(compiled(), examples, targets, cached=True),
    ]
    taken: list[list[float]] = [[] for _ in sides]
    for step in range(steps + 2):
        for side, times in zip(sides, taken, strict=True):
            began = time.perf_counter()
            side.step(step)
            if step >= 2:  # the first ones compile and allocate
                times.append(time.perf_counter() - began)
    ours, script, cached = (statistics.median(each) for each in taken)
    return ours, script, cached


class _Ours:
    """The steps of lamina's own loop, one at a time."""

    def __init__(
        self,
        compiled: Compiled,
        examples: Sequence[Example],
        targets: Sequence[str] = (ALL_LINEAR,),
    ) -> None:
        from lamina.lowrank.attach import Attachment
        from lamina.train.crew import Alone
        from lamina.train.job import fresh_factors
        from lamina.train.optimiser import Optimiser

        recipe, model = _recipe(1, targets), compiled.pipeline
        linears = chosen(compiled.linears, recipe.targets)
        self._count = len(examples)
        job = Job(
            model=model,
            linears=linears,
            rows=pictured(model, examples),
            eval_rows=(),
            recipe=recipe,
            pad_id=0,
            directory=Path(),
            resume_with="",
        )
        self._lesson = DiffusionLesson(job, [])
        self._attachment = Attachment(model, fresh_factors(linears, recipe), linears)
        self._lesson.begin(self._attachment, Alone())
        self._optimiser = Optimiser(self._attachment, recipe)

    def step(self, number: int) -> None:
        """As the loop takes it."""
        rows = [(number * AT_ONCE + i) % self._count for i in range(AT_ONCE)]
        self._attachment.zero_grad()
        self._lesson.backward(rows, number)
        torch.nn.utils.clip_grad_norm_([self._attachment.flat], 1.0)
        self._optimiser.step(1e-3)


class _Theirs:
    """diffusers' train_text_to_image_lora.py, with min-SNR weighting, on the same modules."""

    def __init__(
        self,
        compiled: Compiled,
        examples: Sequence[Example],
        targets: Sequence[str],
        *,
        cached: bool,
    ) -> None:
        from peft import LoraConfig

        recipe, self._model = _recipe(1, targets), compiled.pipeline
        self._mixed = self._model.dtype == torch.bfloat16
        names = chosen(compiled.linears, recipe.targets)
        self._model.denoiser.add_adapter(
            LoraConfig(
                r=recipe.rank,
                lora_alpha=recipe.alpha_value,
                target_modules=[name.partition(".")[2] for name in names],
            )
        )
        weights = [p for p in self._model.denoiser.parameters() if p.requires_grad]
        for weight in weights:  # `cast_training_params` of the script
            weight.data = weight.data.float()
        self._weights, self._examples = weights, examples
        self._adam = torch.optim.AdamW(weights, lr=1e-3)
        self._images = pictures(examples, self._model.image_side)
        self._captions = self._model.captions([example.text or "" for example in examples])
        self._noising = Eyes(self._model).noising
        self._kept = [self._encoded([i]) for i in range(len(examples))] if cached else None

    @torch.no_grad()
    def _encoded(self, places: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean, std = self._model.encode(self._images[places])
        return mean, std, self._model.read([self._captions[i] for i in places])

    def step(self, number: int) -> None:
        """One step of the script."""
        places = [(number * AT_ONCE + i) % len(self._examples) for i in range(AT_ONCE)]
        if self._kept is None:
            mean, std, states = self._encoded(places)
        else:
            mean, std, states = (
                torch.cat(x) for x in zip(*(self._kept[i] for i in places), strict=True)
            )
        x = mean + std * torch.randn_like(std)
        noise, times = torch.randn_like(x), self._noising.times(torch.rand(len(x)))
        with torch.autocast("cpu", torch.bfloat16, enabled=self._mixed):
            said = self._model.denoiser(
                self._noising.noisy(x, noise, times), times, states, return_dict=False
            )[0]
        far = (said.float() - self._noising.target(x, noise, times)).square().mean((1, 2, 3))
        (far * self._noising.weight(times, 5.0)).mean().backward()
        torch.nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._adam.step()
        self._adam.zero_grad()


def _depth(store: Store, base: str, data: str, steps: int) -> dict[str, Any]:
    """A step over LAYERS layers beneath, over a step over the base, by turns."""
    bare = resolve(store, base)
    deep = bare
    for seed in range(LAYERS):
        deep = add_layer(store, deep, seed)
    examples = read([data]).examples[: 4 * AT_ONCE]
    sides = {
        depth: _Ours(compile_stack(store, stack, dtype=torch.float32), examples)
        for depth, stack in ((1, bare), (LAYERS + 1, deep))
    }
    taken: dict[int, list[float]] = {depth: [] for depth in sides}
    for step in range(steps + 2):
        for depth, side in sides.items():
            began = time.perf_counter()
            side.step(step)
            if step >= 2:
                taken[depth].append(time.perf_counter() - began)
    one, many = (statistics.median(each) for each in taken.values())
    return {"depth_8_1": round(many / one, 3)}


if __name__ == "__main__":
    main()
