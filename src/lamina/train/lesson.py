"""What the loop needs of a modality: how rows go through the model, and what is learned of them.

The loop knows steps, schedules, checkpoints and factors; a lesson knows rows.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from lamina.lowrank.attach import Attachment
from lamina.train.crew import Crew
from lamina.train.events import EventLog
from lamina.train.protect import Guard


class Row(Protocol):
    """One thing to learn from, ready for the model."""

    @property
    def example(self) -> str:
        """Digest of the example that it comes from."""

    @property
    def supervised(self) -> int:
        """Places that are learned from."""

    @property
    def answer(self) -> bytes:
        """Equal where rows teach the same."""

    def __len__(self) -> int:
        """Places that go through the model: tokens, or places of latents."""


class Lesson(Protocol):
    """One run's way of learning. Made before anything is attached to the model."""

    kernels: str
    """As in `Outcome`."""
    why: str
    """Why it is not the fastest, '' where it is."""
    guard: Guard | None
    """Once begun: what keeps the update off old rows; None where nothing does."""

    def begin(self, attachment: Attachment, crew: Crew) -> None:
        """What is trained is on the model now, as it starts."""

    @property
    def judges(self) -> bool:
        """Whether there is anything held out to evaluate on."""

    def backward(self, rows: Sequence[int], step: int) -> tuple[Tensor, Tensor]:
        """The mean loss of rows (places in what is learned and rehearsed), whose gradient is added
        to the factors', and the largest loss in each (see `worst_of_rows`): in a crew, this
        worker's part of them."""

    def held_out_loss(self) -> float:
        """Mean loss of the held-out rows."""

    def worst(self, rows: Sequence[int]) -> Tensor:
        """The largest loss in each of these rows (R,) as the model stands, without learning."""

    def leave(self, events: EventLog) -> None:
        """The run is over."""
