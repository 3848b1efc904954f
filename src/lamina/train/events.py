"""What a run says while it runs: one JSON object a line, append-only, and to a listener."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]
Listener = Callable[[Event], None]


class EventLog:
    """Appends events to a JSONL file and passes each on. A torn last line is a reader's to skip."""

    def __init__(self, path: Path | None, listener: Listener | None = None) -> None:
        self._path = path
        self._listener = listener

    def emit(self, kind: str, **fields: Any) -> None:
        """Record one event with its wall-clock time."""
        event = {"event": kind, "time": round(time.time(), 3), **fields}
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(event) + "\n")
        if self._listener is not None:
            self._listener(event)
