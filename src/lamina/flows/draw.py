"""`lamina draw`: images by a stack, and the base that can be built where none can be had."""

import io
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.core.digest import digest_json
from lamina.core.errors import UsageError
from lamina.core.files import atomic_write, clear_os_errors
from lamina.core.names import parse_name
from lamina.core.report import Reporter
from lamina.core.version import __version__
from lamina.data.example import Example
from lamina.data.images import pillow
from lamina.data.read import read
from lamina.flows import bases
from lamina.flows.suiting import check_draws
from lamina.stack.compile import DTYPES, compile_stack, device_at_hand
from lamina.stack.resolve import ResolvedStack, resolve
from lamina.store.layout import Store

if TYPE_CHECKING:
    from torch import Tensor

    from lamina.bases.draw import Style

BUILT = ("tiny-diffusion",)
"""Bases that `lamina base build` knows."""
MOST_IMAGES = 64
_AT_ONCE = 16


class Painter:
    """A stack, loaded, that draws again and again."""

    def __init__(self, store: Store, stack: ResolvedStack, dtype: str = "float32") -> None:
        check_draws(stack)
        self.stack = stack
        compiled = compile_stack(store, stack, dtype=DTYPES[dtype], device=device_at_hand())
        self._pipeline = compiled.pipeline
        self.side = self._pipeline.image_side
        """Pixels of an image's side."""

    def draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        style: "Style",
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[bytes]:
        """One PNG for each prompt and seed."""
        from lamina.bases.draw import draw

        found: list[bytes] = []
        for start in range(0, len(prompts), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            found += map(png, draw(self._pipeline, prompts[part], seeds[part], style))
            progress(len(found), len(prompts))
        return found


def painter(store: Store, text: str) -> Painter:
    """The stack that `text` means, loaded. Raises UsageError where it talks."""
    return Painter(store, resolve(store, text))


def png(image: "Tensor") -> bytes:
    """A picture (3, S, S) in [-1, 1] as a PNG file."""
    pixels_HWC = ((image + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0)
    target = io.BytesIO()
    pillow().fromarray(pixels_HWC.cpu().numpy()).save(target, "PNG")
    return target.getvalue()


def grid(files: Sequence[bytes], columns: int, gap: int = 2) -> bytes:
    """Several PNGs of one size as one, row by row, on white."""
    library = pillow()
    images = [library.open(io.BytesIO(each)) for each in files]
    width, height = images[0].size
    rows = -(-len(images) // columns)
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    whole = library.new("RGB", size, "white")
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        whole.paste(image, (column * (width + gap), row * (height + gap)))
    target = io.BytesIO()
    whole.save(target, "PNG")
    return target.getvalue()


def to_file(
    store: Store,
    stack: str,
    prompts: Sequence[str],
    out: Path,
    style: "Style",
    reporter: Reporter,
    *,
    seed: int = 0,
    count: int = 1,
) -> dict[str, Any]:
    """Draw `count` images for each prompt, seeds going up from `seed`; several become one grid, a
    row a prompt. Returns what was done, for --json."""
    if count * len(prompts) > MOST_IMAGES:
        raise UsageError(
            f"{count * len(prompts)} images are too many", hint=f"at most {MOST_IMAGES}"
        )
    asked = [(prompt, seed + n) for prompt in prompts for n in range(count)]

    def progress(done: int, total: int) -> None:
        text = f"drawing with {stack}: {done}/{total}"
        reporter.event({"event": "examining", "text": text, "last": done == total})

    hand = painter(store, stack)
    texts, seeds = [text for text, _ in asked], [each for _, each in asked]
    files = hand.draw(texts, seeds, style, progress)
    atomic_write(out, files[0] if len(files) == 1 else grid(files, count))
    return {
        "stack": hand.stack.digest,
        "file": str(out),
        "images": [{"prompt": text, "seed": each} for text, each in asked],
        "steps": style.steps,
        "guidance": style.guidance,
    }


def build(
    store: Store,
    kind: str,
    data: Sequence[str],
    name: str | None,
    reporter: Reporter,
    *,
    minutes: float,
    steps: int | None,
    seed: int,
    side: int,
    licence: str | None,
    should_stop: Callable[[], bool],
) -> bases.Pulled:
    """Train a base of a known kind on captioned images and put it into the store.

    What is done is kept in the cache until it is whole, and the same call goes on from there.
    Raises UsageError, DataError, TrainInterrupted (no base is stored then).
    """
    if kind not in BUILT:
        raise UsageError(f"no base {kind!r} can be built", hint=f"known: {', '.join(BUILT)}")
    wanted = parse_name(name or kind).name
    if side % 16 or not 16 <= side <= 128:
        raise UsageError(f"--side {side}: give a multiple of 16 up to 128")
    from lamina.train.building import Length
    from lamina.train.tiny_diffusion import Shape
    from lamina.train.tiny_diffusion import build as train

    dataset = read(data)
    images = [example for example in dataset.examples if example.image is not None]
    reporter.say(f"{len(images)} images; the base will draw {side} x {side} pixels")

    def report(stage: str, step: int, share: float, loss: float) -> None:
        text = f"{stage}: step {step}, {share:.0%}, loss {loss:.4f}"
        reporter.event({"event": "pulling", "text": text})

    shape, length = Shape(side), Length(None if steps else minutes, steps)
    work = _work(store, [kind, asdict(shape), seed, minutes, steps], images, reporter)
    with tempfile.TemporaryDirectory(prefix="lamina-build-", dir=store.root) as scratch:
        folder = Path(scratch) / kind
        train(
            images,
            folder,
            shape,
            length,
            work=work,
            seed=seed,
            report=report,
            should_stop=should_stop,
        )
        if licence is not None:
            text = f"---\nlicense: {licence}\n---\n"
            (folder / "README.md").write_text(text, encoding="utf-8")
        pulled = bases.pull(store, str(folder), wanted, reporter)
    shutil.rmtree(work, ignore_errors=True)
    return pulled


def _work(
    store: Store, asked: Sequence[object], images: Sequence[Example], reporter: Reporter
) -> Path:
    """Where a build keeps what it has done, by everything that it follows from."""
    key = digest_json([__version__, *asked, [image.content_digest() for image in images]])
    work = store.cache_dir / "builds" / key.removeprefix("sha256:")
    with clear_os_errors(f"making {work}"):
        work.mkdir(parents=True, exist_ok=True)
    if any(work.iterdir()):
        reporter.say("the same build was begun before; it goes on")
    return work
