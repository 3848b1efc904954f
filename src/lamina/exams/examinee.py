"""What a stack must be able to do to sit an exam. Exams know no model; stacks know no exam."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from lamina.core.errors import DataError
from lamina.data.example import Example, Message

Progress = Callable[[int, int], None]
"""Called with (done, in all) as work goes on."""


@dataclass(frozen=True)
class Prompt:
    """What stands before an answer."""

    messages: tuple[Message, ...]
    tools: tuple[str, ...] = ()
    """JSON of each tool that may be called."""


class Likelihood(NamedTuple):
    """How likely given text is."""

    nll: float
    """Negative log-likelihood in nats, summed over the tokens that count."""
    tokens: int
    """How many those are."""

    @property
    def per_token(self) -> float:
        """Nats per token; infinite where no token counts."""
        return self.nll / self.tokens if self.tokens else float("inf")


class Examinee(Protocol):
    """A stack that can be examined. Deterministic: equal questions, equal results."""

    def answer(
        self, prompts: Sequence[Prompt], max_new_tokens: int, progress: Progress
    ) -> Sequence[str]:
        """One greedily generated answer a prompt, in order, without the end-of-turn marker."""

    def log_likelihood(
        self, examples: Sequence[Example], progress: Progress
    ) -> Sequence[Likelihood]:
        """Of each example's supervised tokens, in order."""

    def choice_scores(self, prompt: Prompt, choices: Sequence[str]) -> Sequence[Likelihood]:
        """Of each choice as the answer to `prompt`: its own tokens only, in order."""


@runtime_checkable
class Painter(Protocol):
    """What a stack that draws can do besides. Deterministic too."""

    def denoising(self, examples: Sequence[Example], progress: Progress) -> Sequence[Likelihood]:
        """Of each image: summed mean squared errors of what is said to be noise in it, and at how
        many noises."""

    def caption_scores(self, example: Example, captions: Sequence[str]) -> Sequence[Likelihood]:
        """The same of one image under each of several captions."""

    def colours_drawn(
        self, captions: Sequence[str], progress: Progress
    ) -> Sequence[Sequence[float]]:
        """Mean colours, square by square, of what is drawn for each caption."""

    def colours_of(self, examples: Sequence[Example]) -> Sequence[Sequence[float]]:
        """The same of images."""


def painter(examinee: Examinee) -> Painter:
    """An examinee that draws. Raises DataError for one that talks."""
    if not isinstance(examinee, Painter):
        raise DataError(
            "a stack that talks cannot be examined on images",
            hint="leave these exams out, or examine a stack over an image base",
        )
    return examinee
