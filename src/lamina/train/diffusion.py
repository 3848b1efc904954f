"""Images: a denoiser learns what noise is in images' latents, as its base was trained to.

What is frozen is computed once a run and kept: the images' latents, and the captions' states
where the text encoder is not trained. A step's noise, times and left-out captions follow from the
seed, the step and the row alone, so that a run resumed at any step goes on as it would have.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from lamina.bases.pipeline import Caption, Pipeline
from lamina.core.recipe import Diffusion
from lamina.core.seeds import derive
from lamina.data.example import Example
from lamina.lowrank.attach import Attachment
from lamina.train.attending import Joining
from lamina.train.crew import Alone, Crew, share
from lamina.train.events import EventLog
from lamina.train.job import Job
from lamina.train.noising import Noising
from lamina.train.passes import split_rows
from lamina.train.pictures import pictures
from lamina.train.protect import MOST_ROWS, Guard, spans_of
from lamina.train.rehearse import Taught

EVAL_DRAWS = 4
"""Noises that each held-out image is looked at with while training."""
_ENCODED_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class Pictured:
    """One captioned image, ready for the denoiser: a `lesson.Row`."""

    mean: Tensor
    """(C, h, w) float32, of its latents."""
    std: Tensor
    """(C, h, w) float32."""
    caption: Caption
    states: Tensor | None
    """(L, D) what the text encoder says; None where that is still to be learned."""
    example: str

    def __len__(self) -> int:
        return int(self.mean.shape[-2] * self.mean.shape[-1])

    @property
    def supervised(self) -> int:
        """All places of its latents."""
        return len(self)

    @property
    def answer(self) -> bytes:
        """Every image teaches something else."""
        return self.example.encode()


@torch.no_grad()
def pictured(
    model: Pipeline,
    examples: Sequence[Example],
    *,
    read: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Pictured]:
    """Rows of captioned images: latents, and with `read` the captions' states.

    Raises DataError listing every image that is none.
    """
    found: list[Pictured] = []
    for start in range(0, len(examples), _ENCODED_AT_ONCE):
        some = examples[start : start + _ENCODED_AT_ONCE]
        captions = model.captions([example.text or "" for example in some])
        means, stds = model.encode(pictures(some, model.image_side))
        states = model.read(captions) if read else [None] * len(some)
        rows = zip(some, means.float(), stds.float(), captions, states, strict=True)
        for example, mean, std, caption, said in rows:
            digest = example.content_digest()
            found.append(Pictured(mean, std, caption, None if said is None else said, digest))
        progress(len(found), len(examples))
    return found


@dataclass(frozen=True, eq=False)
class Draw:
    """What chance decides of one row in one step."""

    time: float
    """In [0, 1)."""
    noise: Tensor
    latents: Tensor
    """(C, h, w) of the row, drawn from their mean and deviation."""
    dropped: bool = False
    """Whether the caption is left out."""


def draw_of(row: Pictured, how: Diffusion, *labels: str | int) -> Draw:
    """Of a training step; equal labels, equal chance."""
    chance = torch.Generator().manual_seed(derive(0, "draw", *labels))
    time, dropped = torch.rand(2, generator=chance).tolist()
    noise, of_latents = torch.randn((2, *row.mean.shape), generator=chance)
    latents = row.mean + row.std * of_latents.to(row.mean.device)
    return Draw(time, noise, latents, dropped < how.dropped)


def fixed_draws(row: Pictured, count: int) -> list[Draw]:
    """`count` draws that are the image's own, the same whoever looks: times evenly spread."""
    label = hashlib.sha256(row.example.encode()).hexdigest()
    chance = torch.Generator().manual_seed(derive(0, "fixed", label))
    offset = float(torch.rand((), generator=chance))
    return [
        Draw((k + offset) / count, torch.randn(row.mean.shape, generator=chance), row.mean)
        for k in range(count)
    ]


class Eyes:
    """How a pipeline looks at noisy rows."""

    def __init__(self, model: Pipeline) -> None:
        self.model, self.noising = model, Noising.of(model.schedule)
        self._nothing = model.captions([""])[0]
        self._nothing_states: Tensor | None = None

    def says(self, rows: Sequence[Pictured], draws: Sequence[Draw]) -> Tensor:
        """(B, C, h, w) float32, what the denoiser says of each row under its draw."""
        x, noise, times_B = self._noisy(draws)
        captions = [
            self._nothing if d.dropped else r.caption for r, d in zip(rows, draws, strict=True)
        ]
        noisy = self.noising.noisy(x, noise, times_B).to(self.model.device)
        states = self._states(rows, draws, captions)
        return self.model.denoise(noisy, times_B.to(self.model.device), states, captions)

    def target(self, draws: Sequence[Draw]) -> Tensor:
        """(B, C, h, w) float32, what it should say."""
        return self.noising.target(*self._noisy(draws)).to(self.model.device)

    def weights(self, draws: Sequence[Draw], gamma: float | None) -> Tensor:
        """(B,): see `Noising.weight`."""
        return self.noising.weight(self._times(draws), gamma).to(self.model.device)

    def _times(self, draws: Sequence[Draw]) -> Tensor:
        return self.noising.times(torch.tensor([draw.time for draw in draws]))

    def _noisy(self, draws: Sequence[Draw]) -> tuple[Tensor, Tensor, Tensor]:
        x, noise = (torch.stack(some).cpu() for some in zip(
            *((draw.latents, draw.noise) for draw in draws), strict=True
        ))  # fmt: skip
        return x, noise, self._times(draws)

    def _states(
        self, rows: Sequence[Pictured], draws: Sequence[Draw], captions: Sequence[Caption]
    ) -> Tensor:
        if any(row.states is None for row in rows):
            return self.model.read(captions)
        if self._nothing_states is None:
            with torch.no_grad():
                self._nothing_states = self.model.read([self._nothing])[0]
        known = [
            self._nothing_states if draw.dropped else cast(Tensor, row.states)
            for row, draw in zip(rows, draws, strict=True)
        ]
        return torch.stack(known)


@torch.no_grad()
def fixed_losses(
    eyes: Eyes,
    rows: Sequence[Pictured],
    draws: int,
    at_once: int,
    captioned: Sequence[Pictured] | None = None,
) -> Tensor:
    """(R, draws) float64: the mean squared error of each row at its own fixed noises and times.

    `captioned`: rows whose captions are read in place of the rows' own.
    """
    pairs = [
        (row, said, draw)
        for row, said in zip(rows, captioned or rows, strict=True)
        for draw in fixed_draws(row, draws)
    ]
    found = []
    for part in split_rows([len(row) for row, _, _ in pairs], at_once):
        _, read, drawn = zip(*pairs[part], strict=True)
        far = eyes.says(read, drawn) - eyes.target(drawn)
        found.append(far.square().mean((1, 2, 3)).double().cpu())
    return torch.cat(found).view(len(rows), draws)


class DiffusionLesson:
    """See `lesson.Lesson`. Min-SNR weighting and left-out captions as the recipe says; old rows
    teach what the stack says of them under each step's noise, or the noise itself."""

    def __init__(self, job: Job, groups: Sequence[Sequence[int]]) -> None:
        self._job, self._how = job, job.recipe.diffusion or Diffusion()
        self._rows = cast(Sequence[Pictured], (*job.rows, *job.old_rows))
        self._eyes = Eyes(cast(Pipeline, job.model))
        self._taught: list[Taught] = ["labels"] * len(job.rows)
        for pool in job.rehearsal:
            self._taught += [pool.taught] * len(pool.rows)
        self._crew: Crew = Alone()
        self.guard: Guard | None = None
        self.kernels, self.why = "none", "the denoiser's own forward"

    def begin(self, attachment: Attachment, crew: Crew) -> None:
        """Note what the stack is before training, and what of it is kept off."""
        job, self._crew, self._flat = self._job, crew, attachment.flat
        self._before = attachment.flat.data.clone()
        if job.recipe.protect and job.old_rows:
            spans = spans_of(
                attachment.modules, self._forwards(), job.recipe.protect, job.recipe.seed
            )
            for each in spans.values():
                crew.follow(each)
            self.guard = Guard(attachment, spans, fresh=job.start is None)
            self._before = attachment.flat.data.clone()
        attachment.when_detached(Joining(cast(Pipeline, job.model).denoiser).undo)

    def _forwards(self) -> Iterator[tuple[Callable[[], object], None]]:
        """Passes over old rows, at the noise of a step that never comes."""
        old = self._rows[len(self._job.rows) :]
        count = min(len(old), MOST_ROWS)
        chosen = [old[place * len(old) // count] for place in range(count)]
        for part in split_rows([len(row) for row in chosen], self._job.recipe.at_once):
            rows = chosen[part]
            draws = [draw_of(r, self._how, self._job.recipe.seed, "spans", r.example) for r in rows]
            yield lambda rows=rows, draws=draws: self._eyes.says(rows, draws), None  # type: ignore[misc]

    @property
    def judges(self) -> bool:
        """Whether images are held out."""
        return bool(self._job.eval_rows)

    def backward(self, rows: Sequence[int], step: int) -> tuple[Tensor, Tensor]:
        """The mean of weighted squared errors over the rows; each row's own."""
        recipe = self._job.recipe
        mine = share([len(self._rows[i]) for i in rows], self._crew)
        loss, each_B = torch.zeros(()), torch.zeros(len(rows))
        for part in split_rows([len(self._rows[rows[i]]) for i in mine], recipe.at_once):
            places = mine[part]
            chosen = [rows[i] for i in places]
            some = [self._rows[i] for i in chosen]
            draws = [
                draw_of(row, self._how, recipe.seed, step, i)
                for i, row in zip(chosen, some, strict=True)
            ]
            target = self._target(chosen, some, draws)
            far_B = (self._eyes.says(some, draws) - target).square().mean((1, 2, 3))
            far_B = far_B * self._eyes.weights(draws, self._how.min_snr or None)
            (far_B.sum() / len(rows)).backward()  # type: ignore[no-untyped-call]
            far_B = far_B.detach().cpu()
            loss = loss + far_B.sum() / len(rows)
            each_B[places] = far_B
        return loss, each_B

    @torch.no_grad()
    def _target(
        self, places: Sequence[int], rows: Sequence[Pictured], draws: Sequence[Draw]
    ) -> Tensor:
        """The noise's own target; of old rows, what the stack said before training."""
        target = self._eyes.target(draws)
        kinds = [self._taught[place] for place in places]
        for kind in ("stack", "parents"):
            of_kind = [i for i, each in enumerate(kinds) if each == kind]
            if of_kind:
                with self._as_it_was(without=kind == "parents"):
                    said = self._eyes.says([rows[i] for i in of_kind], [draws[i] for i in of_kind])
                target[of_kind] = said
        return target

    @contextmanager
    def _as_it_was(self, *, without: bool) -> Iterator[None]:
        """The factors as they were before training, or none at all, for a block."""
        now = self._flat.data.clone()
        if without:
            self._flat.data.zero_()
        else:
            self._flat.data.copy_(self._before)
        try:
            yield
        finally:
            self._flat.data.copy_(now)

    def held_out_loss(self) -> float:
        """Mean squared error at fixed noises and times, of which a crew's workers take some."""
        rows = cast(Sequence[Pictured], self._job.eval_rows)
        mine = rows[self._crew.rank :: self._crew.size]
        sums = torch.zeros(2, dtype=torch.float64)
        if mine:
            losses = fixed_losses(self._eyes, mine, EVAL_DRAWS, self._job.recipe.at_once)
            sums += torch.tensor([float(losses.sum()), losses.numel()], dtype=torch.float64)
        self._crew.add(sums)
        return float(sums[0] / sums[1])

    def worst(self, rows: Sequence[int]) -> Tensor:
        """Mean squared errors at fixed noises and times."""
        some = [self._rows[i] for i in rows]
        return fixed_losses(self._eyes, some, EVAL_DRAWS, self._job.recipe.at_once).mean(1).float()

    def leave(self, events: EventLog) -> None:
        """Nothing outlasts the run."""
