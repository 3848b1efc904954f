"""What a stack must be able to do to sit an exam. Exams know no model; stacks know no exam."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

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
