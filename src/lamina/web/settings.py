"""What a server is told when it starts: each value with its unit and default."""

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Log = Callable[[Mapping[str, Any]], None]
"""Takes one record; the command line writes it to stderr as a line of JSON."""


def drop(record: Mapping[str, Any]) -> None:
    """A log that keeps nothing."""


@dataclass(frozen=True)
class Settings:
    """How a server answers."""

    keys_file: Path | None = None
    """Where the keys are; None: there are none."""
    host: str = "127.0.0.1"
    """Address to bind."""
    port: int = 8080
    """0: any free one."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may read answers, such as https://example.org."""
    timeout_seconds: float = 600.0
    """Longest that an answer may take, its time in the queue included."""
    drain_seconds: float = 30.0
    """How long running answers may go on after SIGTERM."""
    body_bytes: int = 4_000_000
    """Largest body of a request."""
    log_contents: bool = False
    """Log prompts and answers too."""
    log: Log = drop

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether an address or host name means this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
