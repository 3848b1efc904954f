"""LoRA files for image tools, loaded back by diffusers and compared by the images it draws."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lamina.bases.draw import Style, draw
from lamina.bases.pipeline import kernels, named_linears
from lamina.bases.pipeline_files import MODELS, nested, place_nested
from lamina.bases.quiet import quiet
from lamina.core.errors import MissingPartError
from lamina.export import diffusers as lora_file
from lamina.export.parity import Parity
from lamina.flows.modality import probes_of
from lamina.flows.outbound import Job, Made, refuse_precision
from lamina.imports.base import Beneath
from lamina.lowrank.attach import fold_into
from lamina.stack.compile import Compiled, base_directory, compile_stack, layer_factors

LIMIT = 1 / 510
"""Half a level of eight bits: images within it are the same pixels, or next to them."""
MEASURE = "largest difference of a pixel, of images of the same seed"
_STYLE = Style(steps=8)
_IMAGES = 4


def diffusers(job: Job) -> Made:
    """A LoRA file that `load_lora_weights` reads. Raises UsageError, LayerError, CheckError."""
    return _made(job, kohya=False)


def kohya(job: Job) -> Made:
    """A LoRA file with kohya's names. Raises UsageError, LayerError, CheckError."""
    return _made(job, kohya=True)


def pipeline(job: Job) -> Made:
    """The base's own pipeline, as diffusers reads it. Layers are exported beside it, as LoRA."""
    refuse_precision(job)
    place_nested(base_directory(job.store, job.stack.base), job.directory, link=False)
    return _proved(job, job.directory, None)


def _made(job: Job, *, kohya: bool) -> Made:
    refuse_precision(job)
    layers = [layer_factors(job.store, layer) for layer in job.stack.layers]
    write = lora_file.write_kohya if kohya else lora_file.write
    directory = base_directory(job.store, job.stack.base)
    file = write(layers, job.directory, kernels(directory))
    with nested(directory) as folder:
        return _proved(job, folder, file)


def _proved(job: Job, folder: Path, file: Path | None) -> Made:
    name = file.name if file else ""
    use = (
        f"lamina export {job.base_name} BASE_DIR --to diffusers-base",
        "python: pipe = DiffusionPipeline.from_pretrained('BASE_DIR'); "
        f"pipe.load_lora_weights('@DIR@', weight_name='{name}')",
    )
    try:
        with quiet():
            theirs = lora_file.loaded(folder, file)
    except MissingPartError as error:
        return Made(None, unproved=f"{error.message}: {error.hint}", use=use if file else ())
    captions = [each for each in probes_of(job.store, job.stack) if isinstance(each, str)]
    ours = compile_stack(job.store, job.stack, dtype=torch.float32)
    asked = captions[:_IMAGES]
    expected = draw(ours.pipeline, asked, range(len(asked)), _STYLE)
    return Made(images_alike(expected, drawn_by(theirs, asked)), use=use if file else ())


def drawn_by(theirs: Any, captions: Sequence[str]) -> Tensor:
    """(N, 3, S, S) in [-1, 1]: what diffusers' pipeline draws, seeds 0, 1, …"""
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    schedule = theirs.scheduler.config
    flow = "FlowMatch" in type(theirs.scheduler).__name__
    kind: Any = FlowMatchEulerDiscreteScheduler if flow else DDIMScheduler
    theirs.scheduler = kind.from_config(schedule)
    found = []
    with quiet():
        for seed, caption in enumerate(captions):
            images = theirs(
                caption,
                num_inference_steps=_STYLE.steps,
                guidance_scale=_STYLE.guidance,
                generator=torch.Generator().manual_seed(seed),
                output_type="np",
            ).images
            found.append(torch.from_numpy(images[0]).permute(2, 0, 1) * 2 - 1)
    return torch.stack(found)


def images_alike(ours: Tensor, theirs: Tensor) -> Parity:
    """The largest difference of a pixel, as a share of white."""
    return Parity(float((ours - theirs).abs().max()) / 2, LIMIT, len(ours), MEASURE)


def prove_file(base: Beneath, file: Path, ours: Compiled, captions: Sequence[str]) -> Parity:
    """Images that diffusers draws with somebody's file over the same stack, beside ours.

    Raises MissingPartError.
    """
    asked = captions[:_IMAGES]
    with nested(base.directory) as folder, quiet():
        theirs = lora_file.loaded(folder, None)
        parts = {name: getattr(theirs, name) for name in MODELS if hasattr(theirs, name)}
        linears = named_linears(parts)
        for layer in base.layers:
            fold_into(linears, layer)
        theirs.load_lora_weights(str(file.parent), weight_name=file.name)
        expected = draw(ours.pipeline, asked, range(len(asked)), _STYLE)
        return images_alike(expected, drawn_by(theirs, asked))
