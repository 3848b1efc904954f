"""Small models trained from nothing, all of their weights, in stages that go on where they stopped.

For bases that are built here; layers are trained by `train.loop`.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lamina.core.errors import TrainInterrupted
from lamina.core.seeds import derive
from lamina.core.values import Value
from lamina.train import checkpoint

SAVE_SECONDS = 60.0
_EMA = 0.998

Report = Callable[[str, int, float, float], None]
"""Called with (stage, step, share of it done, loss)."""
LossOf = Callable[[torch.Generator], Tensor]
"""The loss of one step, by the chance that it is given."""


@dataclass(frozen=True)
class Length:
    """How long to train: so many minutes in all stages, or exactly so many steps in each."""

    minutes: float | None
    steps: int | None = None


@dataclass(frozen=True)
class Stage:
    """One of the things to be trained."""

    name: str
    share: float
    """Of the minutes."""
    peak: float
    """The highest learning rate."""


class State(Value):
    """How far a stage is."""

    step: int = 0
    seconds: float = 0.0
    """Over all sittings."""
    loss: float | None = None
    """A running mean."""
    ended: bool = False


class Builder:
    """Trains stage after stage; what a sitting has done lies in `directory`.

    A stage that has ended is only loaded, one that was cut short goes on at its last saved step
    with the chance that it would have had: a build of so many steps ends with the same bytes
    however often it is stopped.
    """

    def __init__(
        self,
        directory: Path,
        length: Length,
        seed: int,
        *,
        report: Report,
        should_stop: Callable[[], bool],
    ) -> None:
        self._directory, self._length, self._seed = directory, length, seed
        self._report, self._should_stop = report, should_stop

    def train(self, stage: Stage, modules: Sequence[nn.Module], loss_of: LossOf) -> None:
        """Minimise for the stage's length; the modules end with a running mean of their weights.

        Raises TrainInterrupted, after saving.
        """
        sitting = _Sitting(stage, modules, derive(self._seed, stage.name))
        path = self._directory / f"{stage.name}.safetensors"
        saved = checkpoint.read(path, State)
        if saved is not None:
            sitting.restore(*saved)
        if sitting.state.ended:
            return
        last = time.perf_counter()
        while (share := self._done(sitting.state, stage)) < 1:
            now = time.perf_counter()
            if (stop := self._should_stop()) or now - last > SAVE_SECONDS:
                checkpoint.write(path, sitting.state, sitting.tensors())
                last = now
            if stop:
                raise TrainInterrupted(
                    f"stopped at {stage.name}, step {sitting.state.step}; what is done is kept",
                    hint="the same command goes on",
                )
            sitting.step(share, loss_of)
            self._report(stage.name, sitting.state.step, share, sitting.state.loss or 0.0)
        sitting.end()
        checkpoint.write(path, sitting.state, sitting.tensors())

    def _done(self, state: State, stage: Stage) -> float:
        """The share of the stage that is done, 0 to 1."""
        if self._length.steps is not None:
            return min(1.0, state.step / self._length.steps)
        assert self._length.minutes is not None
        return min(1.0, state.seconds / (60 * stage.share * self._length.minutes))


class _Sitting:
    """A stage's weights, their running mean, the optimiser's moments and the chance."""

    def __init__(self, stage: Stage, modules: Sequence[nn.Module], seed: int) -> None:
        self._peak, self.state = stage.peak, State()
        self._weights: list[Tensor] = [p for module in modules for p in module.parameters()]
        self._mean = [p.detach().clone() for p in self._weights]
        self._adam = torch.optim.AdamW(
            self._weights, lr=stage.peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self._chance = torch.Generator().manual_seed(seed)

    def step(self, share: float, loss_of: LossOf) -> None:
        began = time.perf_counter()
        for group in self._adam.param_groups:
            group["lr"] = _rate(self._peak, share)
        self._adam.zero_grad(set_to_none=True)
        loss = loss_of(self._chance)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._adam.step()
        step, was = self.state.step + 1, self.state.loss
        with torch.no_grad():
            torch._foreach_lerp_(self._mean, self._weights, 1 - min(_EMA, step / (step + 10)))
        now = float(loss.detach())
        self.state = State(
            step=step,
            seconds=self.state.seconds + time.perf_counter() - began,
            loss=now if was is None else 0.98 * was + 0.02 * now,
        )

    @torch.no_grad()
    def end(self) -> None:
        """The mean is what stays."""
        for weight, kept in zip(self._weights, self._mean, strict=True):
            weight.copy_(kept)
        self.state = self.state.model_copy(update={"ended": True})

    def tensors(self) -> dict[str, Tensor]:
        """What `restore` needs."""
        found = {f"weight.{i}": p.detach() for i, p in enumerate(self._weights)}
        if self.state.ended:
            return found
        found |= {f"mean.{i}": p for i, p in enumerate(self._mean)}
        for i, weight in enumerate(self._weights):
            for key, moment in self._adam.state.get(weight, {}).items():
                found[f"adam.{i}.{key}"] = moment
        return {**found, "chance": self._chance.get_state()}

    @torch.no_grad()
    def restore(self, state: State, tensors: dict[str, Tensor]) -> None:
        """Go on as `tensors` left it."""
        self.state = state
        for i, weight in enumerate(self._weights):
            weight.copy_(tensors[f"weight.{i}"])
        if state.ended:
            return
        for i, (weight, mean) in enumerate(zip(self._weights, self._mean, strict=True)):
            mean.copy_(tensors[f"mean.{i}"])
            prefix = f"adam.{i}."
            moments = {
                k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)
            }
            if moments:
                self._adam.state[weight] = moments
        self._chance.set_state(tensors["chance"])


def _rate(peak: float, share: float) -> float:
    """A short rise, then a cosine down to a hundredth."""
    falling = 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * share))
    return peak * min(1.0, share / 0.02 + 0.01, falling)
