"""How long work tells people what it is doing, without knowing a terminal or a browser."""

from collections.abc import Mapping
from typing import Any, Protocol


class Reporter(Protocol):
    """Gets sentences and events from flows; the command line shows them, tests collect them."""

    def say(self, text: str) -> None:
        """One finished sentence worth keeping on screen."""

    def event(self, event: Mapping[str, Any]) -> None:
        """One machine-readable event: `event` names its kind (step, eval, examining, …)."""


class Silent:
    """A reporter that shows nothing."""

    def say(self, text: str) -> None:
        """Drop the sentence."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Drop the event."""
