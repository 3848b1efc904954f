"""Progress on stderr: a live line in a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from lamina.core.plain import shown, shown_in_line

PLAIN_SECONDS = 15.0
"""Seconds between two plain progress lines."""


class Terminal:
    """The command line's reporter."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._last_plain = 0.0
        self._open_line = False
        self._held_out: float | None = None

    def say(self, text: str) -> None:
        """Print a sentence."""
        self._clear()
        sys.stderr.write(shown(text) + "\n")
        sys.stderr.flush()

    def event(self, event: Mapping[str, Any]) -> None:
        """Show progress; every kind of event that is not listed is for the log only."""
        kind = event["event"]
        if kind == "step":
            self._progress(self._step_line(event), last=event["step"] == event["steps"])
        elif kind == "eval" and event["loss"] is not None:
            self._held_out = event["loss"]
            self._progress(f"step {event['step']}: held-out loss {event['loss']:.4f}")
        elif kind == "planned":
            self._progress(f"{event['steps']} of {event['at_most']} steps fit the time given")
        elif kind == "crew":
            self.say(_crew(event))
        elif kind == "resumed":
            self.say(f"going on from step {event['step']}")
        elif kind in ("examining", "pulling", "moving"):
            self._progress(event["text"], last=bool(event.get("last")))

    def _step_line(self, event: Mapping[str, Any]) -> str:
        steps, step = event["steps"], event["step"]
        loss = "skipped (not finite)" if event["loss"] is None else f"loss {event['loss']:.4f}"
        parts = [f"step {step}/{steps or '?'}", loss]
        if self._held_out is not None:
            parts.append(f"held-out {self._held_out:.4f}")
        parts.append(f"{event['tokens_per_second']:.0f} tokens/s")
        if steps:
            left = event["elapsed"] / step * (steps - step) / 60
            parts.append(f"{left:.1f} minutes left")
        return " · ".join(parts)

    def _progress(self, line: str, *, last: bool = False) -> None:
        line = shown_in_line(line)
        if self._live:
            sys.stderr.write(f"\r\033[K{line}")
            self._open_line = True
            if last:
                self._clear(keep=True)
        elif last or time.monotonic() - self._last_plain > PLAIN_SECONDS:
            sys.stderr.write(line + "\n")
            self._last_plain = time.monotonic()
        sys.stderr.flush()

    def _clear(self, *, keep: bool = False) -> None:
        if self._open_line:
            sys.stderr.write("\n" if keep else "\r\033[K")
            self._open_line = False


def _crew(event: Mapping[str, Any]) -> str:
    """What workers sent one another."""
    text = f"{event['workers']} workers: {event['bytes_per_step'] / 1e6:.1f} MB a step into sums"
    gathered = event.get("gathered_per_step")
    return text + (f", {gathered / 1e6:.0f} MB of the base gathered" if gathered else "")
