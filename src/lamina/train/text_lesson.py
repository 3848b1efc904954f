"""Text: likelihood of what is supervised, through the fused decoder where there is one."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from lamina.lowrank.attach import Attachment
from lamina.tokens.batch import collate
from lamina.tokens.mask import Encoded
from lamina.tokens.pack import plan_batches
from lamina.train.crew import Alone, Crew
from lamina.train.events import EventLog
from lamina.train.graphs import graphs_of
from lamina.train.held_out import eval_batches, mean_loss
from lamina.train.job import Job
from lamina.train.objective import SoftTargets, token_losses, worst_of_rows
from lamina.train.passes import backward
from lamina.train.protect import Guard, directions
from lamina.train.teach import mixed, said_of_old_rows
from lamina.train.way import prefixes_of, way_through

LOOK_TOKENS = 1024
"""Tokens in one forward without learning."""


class TextLesson:
    """See `lesson.Lesson`."""

    def __init__(self, job: Job, groups: Sequence[Sequence[int]]) -> None:
        self._job, self._groups = job, groups
        self._rows = cast(Sequence[Encoded], (*job.rows, *job.old_rows))
        self._said: dict[int, SoftTargets | None] = {
            **dict(enumerate(job.said or [None] * len(job.rows))),
            **said_of_old_rows(job, groups, "labels"),
            **said_of_old_rows(job, groups, "parents"),
        }
        self._crew: Crew = Alone()
        self.guard: Guard | None = None
        self.kernels, self.why = "none", ""

    def begin(self, attachment: Attachment, crew: Crew) -> None:
        """Ask the stack what it says of old rows, and choose the way through the model."""
        self._crew = crew
        self._said |= said_of_old_rows(self._job, self._groups, "stack")
        self._prefixes = prefixes_of(self._job, attachment)
        self._model, self.kernels, self.why = way_through(self._job, attachment, self._prefixes)
        self._graphs = graphs_of(self._model)
        self.guard = self._guarded(attachment)
        self._batches = eval_batches(self._job)

    def _guarded(self, attachment: Attachment) -> Guard | None:
        """What keeps the update off the inputs of old rows, where the recipe asks for it."""
        job, recipe = self._job, self._job.recipe
        if not recipe.protect or not job.old_rows:
            return None
        spans = directions(
            job.model,
            attachment.modules,
            cast(Sequence[Encoded], job.old_rows),
            recipe.protect,
            recipe.at_once,
            job.pad_id,
            recipe.seed,
        )
        for each in spans.values():
            self._crew.follow(each)
        return Guard(attachment, spans, fresh=job.start is None)

    @property
    def judges(self) -> bool:
        """Whether rows are held out."""
        return bool(self._batches)

    def backward(self, rows: Sequence[int], step: int) -> tuple[Tensor, Tensor]:
        """See `passes.backward`."""
        recipe = self._job.recipe
        return backward(
            self._model,
            [self._rows[index] for index in rows],
            [self._said[index] for index in rows],
            self._job.pad_id,
            recipe.at_once,
            checkpointing=recipe.checkpointing,
            graphs=self._graphs,
            crew=self._crew,
        )

    def held_out_loss(self) -> float:
        """Nats per supervised token."""
        return mean_loss(self._model, self._batches, self._crew)

    @torch.inference_mode()
    def worst(self, rows: Sequence[int]) -> Tensor:
        """See `Lesson`."""
        found = torch.empty(len(rows))
        lengths = [len(self._rows[i]) for i in rows]
        for places in plan_batches(lengths, LOOK_TOKENS, seed=0, epoch=0):
            batch = collate([self._rows[rows[i]] for i in places], self._job.pad_id)
            soft = mixed(batch, [self._said[rows[i]] for i in places])
            losses_N = token_losses(self._model, batch, soft)
            found[torch.tensor(places)] = worst_of_rows(losses_N, batch, soft)
        return found

    def leave(self, events: EventLog) -> None:
        """Leave activations to later runs."""
        if self._prefixes is not None:
            self._prefixes.leave()
            events.emit("prefixes", **self._prefixes.counts._asdict())
