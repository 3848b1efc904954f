"""Progress of many pieces of work: a line for each that runs, and one that stays at its end."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from lamina.cli.display import Terminal
from lamina.core.plain import shown_in_line


@contextmanager
def shown() -> Iterator["Board"]:
    """A board for the length of a block."""
    board = Board()
    try:
        yield board
    finally:
        board.close()


class Board(Terminal):
    """In a terminal what runs is rewritten in place; elsewhere only what is over is told."""

    def __init__(self) -> None:
        super().__init__()
        self._running: dict[str, str] = {}
        self._over = 0
        self._live = False  # what a line's own progress would overwrite
        self._area = (
            Live(
                console=Console(stderr=True),
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            if sys.stderr.isatty()
            else None
        )

    def say(self, text: str) -> None:
        """Print a sentence."""
        self._pause()
        super().say(text)

    def event(self, event: Mapping[str, Any]) -> None:
        """Show how a piece stands: events of kind `job` with `name`, `text` and `done`."""
        if event["event"] != "job":
            self._pause()
            super().event(event)
            return
        name = event["name"]
        line = shown_in_line(f"{name}: " + str(event["text"]).partition("\n")[0])
        self._running.pop(name, None)
        if not event["done"]:
            self._running[name] = line
        elif self._area is None:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        if self._area is not None:
            self._draw(line if event["done"] else None)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._pause()

    def _draw(self, over: str | None) -> None:
        assert self._area is not None
        self._over += over is not None
        lines = [f"{self._over} over", *self._running.values()]
        self._area.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"))
        self._area.start()
        self._area.refresh()  # printing draws the area that was drawn last
        if over is not None:
            self._area.console.print(Text(over))

    def _pause(self) -> None:
        if self._area is not None:
            self._area.stop()
