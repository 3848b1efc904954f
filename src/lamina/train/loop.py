"""The training loop: deterministic, resumable to the bit, stoppable at any step.

Given the same model, rows, recipe and machine it gives the same factors, whether it ran in one
sitting or in ten. Wall-clock time decides only when to write a checkpoint and, where the recipe
has a time limit, the number of steps, which is then fixed in the resolved recipe.
"""

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lamina.bases import families
from lamina.core import heap
from lamina.core.energy import Meter
from lamina.core.errors import TrainError, TrainInterrupted
from lamina.lowrank.attach import Attachment
from lamina.train import checkpoint
from lamina.train.crew import Alone, Crew, Stopwatch, add_step
from lamina.train.events import EventLog
from lamina.train.job import Job, Outcome, fresh_factors, gpu_of
from lamina.train.lesson import Lesson
from lamina.train.optimiser import Optimiser
from lamina.train.plan import Plan
from lamina.train.schedule import (
    eval_interval,
    learning_rate,
    planned_steps,
    steps_for_time,
    warmup_steps,
)
from lamina.train.text_lesson import TextLesson

CHECKPOINT_SECONDS = 30.0
LEAST_JUDGES = 4
"""Held-out rows below which their loss is shown but decides nothing: of a few facts, the one that
is held out may well be best known before anything is learned."""
OVERTIME = 1.1
"""A run that takes longer than its limit by this factor is cut off."""
MOST_SKIPPED = 5
"""Steps in a row with a loss or gradient that is not finite, after which the run has diverged."""


def train(
    job: Job,
    events: EventLog,
    should_stop: Callable[[], bool] = lambda: False,
    crew: Crew | None = None,
) -> Outcome:
    """Train one layer; continue from the checkpoint in `job.directory` where there is one.

    In a `crew` every worker calls this with the same job and comes to the same factors; worker 0
    alone writes checkpoints.
    Raises TrainError when the loss diverges or nothing is supervised, TrainInterrupted (after
    saving) when `should_stop` says so.
    """
    if not job.rows:
        raise TrainError("no rows to train on", hint="lower --held-out, or give more data")
    plan = Plan(job.recipe, (*job.rows, *job.old_rows), len(job.rows), job.rehearsal)
    groups = plan.old_rows(planned_steps(job.recipe, plan.first_pass))
    lesson = (job.lesson or TextLesson)(job, groups)
    # copied into the attachment: what is given goes on to be held by nobody
    start = job.start or fresh_factors(job.linears, job.recipe)
    still = families.lowest(start, job.recipe.above) if job.start else frozenset()
    attachment = Attachment(job.model, start, job.linears, still)
    del start
    try:
        return _Run(job, attachment, events, plan, lesson, crew or Alone()).go(should_stop)
    finally:
        attachment.detach()


class _Run:
    """One sitting of a run: its mutable state and the steps that change it."""

    def __init__(
        self,
        job: Job,
        attachment: Attachment,
        events: EventLog,
        plan: Plan,
        lesson: Lesson,
        crew: Crew,
    ) -> None:
        self.crew = crew
        self.stopwatch = Stopwatch(crew)
        self.meter = Meter.of_machine(gpu_of(job.model))
        self.job, self.recipe, self.attachment, self.events = job, job.recipe, attachment, events
        self.flat = attachment.flat
        self.lesson = lesson
        lesson.begin(attachment, crew)
        self.best = self.flat.data.clone()
        self.start = self.best.clone() if self.recipe.drift else None
        self.rows = (*job.rows, *job.old_rows)
        self.optimiser = Optimiser(attachment, self.recipe)
        self.plan = plan
        # where known rows are left out an earlier state lacks old ones, of which they don't tell
        self.judged = len(job.eval_rows) >= LEAST_JUDGES and not self.plan.selects
        self.eval_tokens = sum(map(len, job.eval_rows))
        self.eval_supervised = sum(row.supervised for row in job.eval_rows)
        self.progress = self._initial_progress()
        self.joules_before: float | None = 0.0
        self.last_save = time.perf_counter()
        self._restore()
        self.first_step = self.progress.step
        for each in (self.flat.data, self.best):
            crew.follow(each)  # machines may round what they start from in their own way
        heap.give_back()  # what loading and joining weights left in the middle of the heap

    def _initial_progress(self) -> checkpoint.Progress:
        planned = planned_steps(self.recipe, self.plan.first_pass)
        return checkpoint.Progress(
            step=0,
            steps=planned if self.recipe.max_minutes is None else None,
            warmup=warmup_steps(self.recipe, planned),
            tokens=0,
            skipped_in_row=0,
            seconds=0.0,
            best_step=0,
            best_loss=None,
            first_loss=None,
            since_best=0,
            supervised=0,
            joules=0.0,
        )

    # -- state ---------------------------------------------------------------------------------

    def _restore(self) -> None:
        loaded = checkpoint.load(self.job.directory)
        if loaded is None:
            return
        self.progress, tensors = loaded
        if tensors["flat"].shape != self.flat.shape:
            raise TrainError(
                "the checkpoint is of another recipe", hint="start the run anew instead of resuming"
            )
        self.flat.data.copy_(tensors["flat"])
        self.best.copy_(tensors["best"])
        self.optimiser.restore(tensors)
        if self.plan.selects:
            progress = self.progress
            worst, began = tensors["worst"], tensors["worst_began"]
            self.plan.restore(progress.passes, progress.pass_began, worst, began)
        self.stopwatch.before = self.progress.seconds
        self.joules_before = self.progress.joules
        self.events.emit("resumed", step=self.progress.step)

    def save(self) -> None:
        """Write the checkpoint."""
        if self.crew.rank:
            return
        plan = self.plan
        self._update(**self._spent(), passes=plan.number, pass_began=plan.first_step)
        tensors = {"flat": self.flat.data, "best": self.best, **self.optimiser.tensors()}
        if plan.selects:
            tensors |= {"worst": plan.worst, "worst_began": plan.began}
        checkpoint.save(self.job.directory, self.progress, tensors)
        self.last_save = time.perf_counter()
        self.events.emit("checkpoint", step=self.progress.step)

    def elapsed(self) -> float:
        """Seconds of training over all sittings."""
        return self.stopwatch.elapsed()

    def _spent(self) -> dict[str, object]:
        """Seconds and joules over all sittings; no joules where one of them had no counter."""
        now, before = self.meter.reading(), self.joules_before
        joules = None if now.joules is None or before is None else before + now.joules
        unmetered = before is None and now.joules is not None
        why = "an earlier sitting was not metered" if unmetered else now.source
        return {"seconds": self.elapsed(), "joules": joules, "metered": why}

    def _update(self, **changes: object) -> None:
        self.progress = self.progress.model_copy(update=changes)

    # -- the loop ------------------------------------------------------------------------------

    def go(self, should_stop: Callable[[], bool]) -> Outcome:
        """Steps until the schedule, patience, the time limit or a person ends them."""
        self.events.emit("decoder", kernels=self.lesson.kernels, why=self.lesson.why)
        if self.progress.step == 0 and self.progress.first_loss is None:
            self.evaluate()
            self.save()
        while not self._finished():
            if self.stopwatch.agree(should_stop()):
                self.save()
                self.events.emit("interrupted", step=self.progress.step)
                raise TrainInterrupted(
                    f"stopped at step {self.progress.step}; nothing is lost",
                    hint=f"go on with: {self.job.resume_with}",
                )
            self.step()
            self._plan_for_time()
            if self._eval_due():
                self.evaluate()
            if time.perf_counter() - self.last_save > CHECKPOINT_SECONDS:
                self.save()
        self.save()
        return self._outcome()

    def _finished(self) -> bool:
        progress, recipe = self.progress, self.recipe
        if progress.stopped is not None:
            return True
        if self._scheduled():
            return True
        if recipe.stop_after is not None and progress.step >= recipe.stop_after:
            self._stop("stop_after")
        elif self._out_of_patience():
            self._stop("patience")
        elif not self.plan.go_on(progress.step, self._look):
            self._stop("known")
        elif self._overtime():
            self._stop("time")
        return self.progress.stopped is not None

    def _scheduled(self) -> bool:
        """Whether the schedule is through."""
        steps = self.progress.steps
        return steps is not None and self.plan.position(self.progress.step) >= steps

    def _out_of_patience(self) -> bool:
        patience = self.recipe.patience
        return self.judged and bool(patience) and self.progress.since_best >= patience

    def _overtime(self) -> bool:
        """Whether the time limit is well past; at least one step is taken."""
        limit = self.recipe.max_minutes
        return bool(limit and self.progress.step and self.elapsed() > OVERTIME * 60 * limit)

    def _stop(self, why: str) -> None:
        self._update(stopped=why)
        if self.progress.best_step != self.progress.step and why != "patience":
            self.evaluate()

    def step(self) -> None:
        """One optimiser step on the next batch."""
        progress = self.progress
        began = time.perf_counter()
        chosen = self.plan.batch(progress.step)
        rows = [self.rows[index] for index in chosen]
        place = self.plan.position(progress.step)
        rate = learning_rate(self.recipe, place, progress.steps, progress.warmup)
        self.attachment.zero_grad()
        loss, worst_B = self.lesson.backward(chosen, progress.step)
        assert self.flat.grad is not None
        loss, worst_B = add_step(self.crew, self.flat.grad, loss, worst_B)
        if self.plan.selects:
            self.plan.visited(chosen, worst_B)
        guard = self.lesson.guard
        if guard is not None:
            guard.before_step()
        norm = torch.nn.utils.clip_grad_norm_([self.flat], self.recipe.clip)
        finite = bool(torch.isfinite(loss)) and bool(torch.isfinite(norm))
        if finite:
            self.optimiser.step(rate)
            if self.start is not None:
                self.flat.data.lerp_(self.start, min(1.0, rate * self.recipe.drift))
            if guard is not None:
                guard.after_step()
        tokens = sum(map(len, rows))
        learned = sum(row.supervised for row in rows)
        self.meter.poll()
        self._update(
            step=progress.step + 1,
            tokens=progress.tokens + tokens,
            supervised=None if progress.supervised is None else progress.supervised + learned,
            skipped_in_row=0 if finite else progress.skipped_in_row + 1,
        )
        self.events.emit(
            "step",
            step=self.progress.step,
            steps=progress.steps,
            loss=float(loss) if finite else None,
            lr=rate,
            grad_norm=float(norm) if finite else None,
            tokens=tokens,
            tokens_per_second=round(tokens / (time.perf_counter() - began), 1),
            elapsed=round(self.elapsed(), 2),
        )
        if self.progress.skipped_in_row >= MOST_SKIPPED:
            raise TrainError(
                f"the loss was not finite {MOST_SKIPPED} steps in a row, "
                f"up to step {self.progress.step}",
                hint=f"lower --lr (now {self.recipe.lr}); the checkpoint before it is kept",
            )

    def _plan_for_time(self) -> None:
        """Fix the length of a time-limited run, once the time before its decay is spent."""
        limit = self.recipe.max_minutes
        if limit is None or self.progress.steps is not None:
            return
        at_most = planned_steps(self.recipe, self.plan.first_pass)
        spent = self.elapsed() / (60 * limit)
        done = math.ceil(self.plan.position(self.progress.step))
        steps = steps_for_time(self.recipe, done, spent, at_most)
        if steps is not None:
            self._update(steps=steps)
            self.events.emit("planned", steps=steps, at_most=at_most)

    # -- held-out loss ---------------------------------------------------------------------------

    def _eval_due(self) -> bool:
        progress = self.progress
        if not self.lesson.judges:
            return False
        if self._scheduled():
            return True
        if self.plan.selects and self.recipe.eval_every is None:
            return self.plan.ends_pass(progress.step)
        every = eval_interval(self.recipe, progress.steps or 0, self.eval_tokens)
        return progress.step % every == 0

    def evaluate(self) -> None:
        """Held-out loss; keep the factors when it is the best so far.

        With fewer than `LEAST_JUDGES`, or where what is known is left out: the last.
        """
        loss = self.lesson.held_out_loss() if self.lesson.judges else None
        self._update(
            evaluated=self.progress.evaluated + self.eval_tokens,
            evaluated_supervised=self.progress.evaluated_supervised + self.eval_supervised,
        )
        progress = self.progress
        if loss is not None and not math.isfinite(loss):
            self._not_finite()
            return
        best = loss is None or progress.best_loss is None or loss < progress.best_loss
        if best or not self.judged:
            self.best.copy_(self.flat.data)
            self._update(best_step=progress.step, best_loss=loss, since_best=0)
        else:
            self._update(since_best=progress.since_best + 1)
        if progress.step == 0:
            self._update(first_loss=loss)
        self.events.emit("eval", step=progress.step, loss=loss, best=best or not self.judged)

    def _not_finite(self) -> None:
        """A held-out loss that is no number: never the best, and hopeless before the first step."""
        step = self.progress.step
        self.events.emit("eval", step=step, loss=None, best=False)
        if step == 0:
            raise TrainError(
                "the held-out loss is not finite before the first step",
                hint="the stack beneath computes infinities or NaN; try dtype float32",
            )
        self._update(since_best=self.progress.since_best + 1)

    # -- old rows --------------------------------------------------------------------------------

    def _look(self, rows: Sequence[int]) -> Tensor:
        """The largest loss of each row's tokens as the model stands (R,), without learning."""
        found = self.lesson.worst(rows)
        self.crew.follow(found)
        lost = int((found > self.plan.limit).sum())
        tokens = sum(len(self.rows[i]) for i in rows)
        self._update(looked_at=self.progress.looked_at + tokens)
        self.events.emit("looked", step=self.progress.step, rows=len(rows), lost=lost)
        return found

    # -- the end ---------------------------------------------------------------------------------

    def _outcome(self) -> Outcome:
        progress = self.progress
        if not self.lesson.judges:
            self.best.copy_(self.flat.data)
            self._update(best_step=progress.step)
        # a run that ended before its length was fixed never left the peak: any longer one does too
        length = progress.steps or planned_steps(self.recipe, self.plan.first_pass)
        changes: dict[str, object] = {"steps": length}
        if self.recipe.max_minutes is not None:
            changes |= {
                "max_minutes": None,
                "schedule": self.recipe.shape,
                "warmup_steps": progress.warmup,
            }
        if progress.stopped == "time":
            changes["stop_after"] = progress.step
        recipe = self.recipe.model_copy(update=changes)
        self.lesson.leave(self.events)
        if self.crew.size > 1:
            steps = max(1, progress.step - self.first_step)
            self.events.emit(
                "crew",
                workers=self.crew.size,
                bytes_per_step=self.crew.sent // steps,
                gathered_per_step=self.crew.gathered // steps,
            )
        self.events.emit(
            "done", step=progress.step, best_step=self.progress.best_step, loss=progress.best_loss
        )
        del self.optimiser  # its moments, before the factors are copied: this sitting is over
        factors = self.attachment.factors(self.best)
        return Outcome(factors, recipe, self.progress, self.lesson.kernels, self.crew.size)
