"""What training, exams and proofs are where a stack draws."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from lamina.bases import pipeline
from lamina.bases.draw import Style, draw
from lamina.core.errors import DataError
from lamina.core.report import Reporter
from lamina.data.example import Example
from lamina.exams.examinee import Likelihood, Progress, Prompt
from lamina.flows import rehearsal, runs
from lamina.flows.pools import pools_of
from lamina.flows.suiting import check_rows
from lamina.stack.compile import Compiled, stored_factors
from lamina.store.layout import Store
from lamina.tokens.mask import EncodeReport
from lamina.train.diffusion import (
    DiffusionLesson,
    Draw,
    Eyes,
    Pictured,
    fixed_draws,
    fixed_losses,
    pictured,
)
from lamina.train.job import Job
from lamina.train.pictures import pictures

EXAM_DRAWS = 8
"""Noises that an exam looks at each image with."""
CHOICE_DRAWS = 4
"""The same for each caption that an image may have."""
AT_ONCE = 8192
"""Places of latents that go through the denoiser together."""
EXAM_STYLE = Style(steps=10)
GRID = 4
"""An image's colours are told by the means of so many by so many squares."""


# -- training --------------------------------------------------------------------------------------


def job_of(
    store: Store, run: runs.Run, spec: runs.RunSpec, compiled: Compiled, reporter: Reporter
) -> tuple[Job, EncodeReport]:
    """A run over a compiled image stack: its images as latents, its captions as states.

    Raises DataError for images that are none, UsageError.
    """
    recipe, model = spec.recipe, compiled.pipeline
    linears = pipeline.chosen(compiled.linears, recipe.targets, pipeline.refused(model))
    read = not any(name.startswith("text_encoder.") for name in linears)

    def encoded(examples: Sequence[Example], what: str) -> list[Pictured]:
        def progress(done: int, total: int) -> None:
            text = f"{what}: {done}/{total} images as latents"
            reporter.event({"event": "examining", "text": text, "last": done == total})

        check_rows(compiled.stack, examples)
        return pictured(model, examples, read=read, progress=progress)

    old = run.rows(runs.REHEARSAL_ROWS)
    own = len(rehearsal.of_layers(store, compiled.stack.layers))
    train = encoded(run.rows(runs.TRAIN_ROWS), "training")
    job = Job(
        model=model,
        linears=linears,
        rows=train,
        rehearsal=pools_of(spec, encoded(old[own:], "old"), encoded(old[:own], "old")),
        eval_rows=encoded(run.rows(runs.HELD_ROWS)[: recipe.eval_rows], "held out"),
        recipe=recipe,
        pad_id=0,
        directory=run.directory,
        resume_with=spec.part_of or f"lamina train --resume {run.id}",
        start=None if spec.start is None else stored_factors(store, spec.start),
        lesson=DiffusionLesson,
    )
    places = sum(map(len, train))
    return job, EncodeReport(rows=len(train), tokens=places, supervised_tokens=places)


# -- exams -----------------------------------------------------------------------------------------


class PaintingExaminee:
    """Sits exams with a compiled image stack: fixed noise, fixed seeds, hence deterministic."""

    def __init__(self, compiled: Compiled) -> None:
        self._model = compiled.pipeline
        self._label = compiled.stack.label
        self._rows: dict[str, Pictured] = {}

    @cached_property
    def _eyes(self) -> Eyes:
        return Eyes(self._model)

    def denoising(self, examples: Sequence[Example], progress: Progress) -> list[Likelihood]:
        """Of each image: the sum of its mean squared errors, and of how many noises."""
        found: list[Likelihood] = []
        for start in range(0, len(examples), 16):
            rows = self._pictured(examples[start : start + 16])
            losses_RK = fixed_losses(self._eyes, rows, EXAM_DRAWS, AT_ONCE)
            found += [Likelihood(float(each.sum()), EXAM_DRAWS) for each in losses_RK]
            progress(len(found), len(examples))
        return found

    def caption_scores(self, example: Example, captions: Sequence[str]) -> list[Likelihood]:
        """Of an image under each caption, at the same noises: the least is the likeliest caption
        (diffusion classifier, arXiv:2303.16203)."""
        (row,) = self._pictured([example])
        words = self._model.captions(captions)
        with torch.no_grad():
            states = self._model.read(words)
        under = [
            replace(row, caption=each, states=said)
            for each, said in zip(words, states, strict=True)
        ]
        losses_RK = fixed_losses(
            self._eyes,
            [row] * len(captions),
            CHOICE_DRAWS,
            AT_ONCE,
            captioned=under,
        )
        return [Likelihood(float(each.sum()), CHOICE_DRAWS) for each in losses_RK]

    def colours_drawn(self, captions: Sequence[str], progress: Progress) -> list[tuple[float, ...]]:
        """Mean colours, square by square, of what is drawn for each caption."""
        found: list[tuple[float, ...]] = []
        for start in range(0, len(captions), 8):
            some = captions[start : start + 8]
            seeds = range(start, start + len(some))
            found += _colours(draw(self._model, some, seeds, EXAM_STYLE))
            progress(len(found), len(captions))
        return found

    def colours_of(self, examples: Sequence[Example]) -> list[tuple[float, ...]]:
        """The same of images."""
        return _colours(pictures(examples, self._model.image_side))

    def _pictured(self, examples: Sequence[Example]) -> list[Pictured]:
        """Latents and states, of each image and caption once."""
        asked = {example.content_digest(): example for example in examples}
        new = {digest: each for digest, each in asked.items() if digest not in self._rows}
        rows = pictured(self._model, list(new.values()))
        self._rows |= dict(zip(new, rows, strict=True))
        return [self._rows[example.content_digest()] for example in examples]

    # what a stack that talks can do, and this one cannot

    def answer(
        self, prompts: Sequence[Prompt], max_new_tokens: int, progress: Progress
    ) -> list[str]:
        """Raises DataError."""
        raise self._mute()

    def log_likelihood(self, examples: Sequence[Example], progress: Progress) -> list[Likelihood]:
        """Raises DataError."""
        raise self._mute()

    def choice_scores(self, prompt: Prompt, choices: Sequence[str]) -> list[Likelihood]:
        """Raises DataError."""
        raise self._mute()

    def _mute(self) -> DataError:
        return DataError(
            f"{self._label} draws, and cannot be asked in words",
            hint="scorers for images: denoise, retrieve, colour",
        )


def _colours(images: Tensor) -> list[tuple[float, ...]]:
    means = torch.nn.functional.adaptive_avg_pool2d(images, GRID)
    return [tuple(each.tolist()) for each in means.flatten(1)]


# -- proofs ----------------------------------------------------------------------------------------


@torch.inference_mode()
def sayings(compiled: Compiled, captions: Sequence[str]) -> list[Tensor]:
    """What the denoiser says of noise under each caption, float32 (places, channels): by it two
    stacks are told apart."""
    model = compiled.pipeline
    eyes = Eyes(model)
    still = torch.zeros(model.latent_shape)
    found = []
    for caption in captions:
        (words,) = model.captions([caption])
        row = Pictured(still, still, words, model.read([words])[0], caption)
        draws: list[Draw] = fixed_draws(row, 2)
        said = eyes.says([row] * len(draws), draws)
        found.append(said.movedim(1, -1).reshape(-1, said.shape[1]).cpu())
    return found
