"""A Ray cluster to work on: one that is there, or one of this machine's own for a while."""

import logging
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from lamina.core.errors import FleetError, MissingPartError, UsageError
from lamina.core.libraries import told

JOIN_SECONDS = 30
"""How long a cluster may take to answer."""
POLL_SECONDS = 0.25
"""How often whoever waits for work is asked whether to go on."""


@contextmanager
def cluster(address: str | None = None) -> Iterator[Any]:
    """Ray, connected to the cluster at `address` for the length of a block.

    Without an address, to a cluster of this machine's own, which listens to nobody who lacks its
    token and ends with the block. Raises FleetError where nothing answers, UsageError for what is
    no address, MissingPartError.
    """
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anybody
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # files that nobody reads
        "RAY_DEDUP_LOGS": "0",  # what is held back is printed when stdout is ours again
        "RAY_raylet_start_wait_time_s": str(2 * JOIN_SECONDS),
    }
    if address is not None:
        _knock(address)  # Ray itself waits for minutes
        with told(settings), _connected(address, None) as ray:
            yield ray
        return
    settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with (
        told(settings),
        tempfile.TemporaryDirectory(prefix="lamina-ray-", ignore_cleanup_errors=True) as folder,
        _connected(None, folder) as ray,
    ):
        yield ray


@contextmanager
def _connected(address: str | None, folder: str | None) -> Iterator[Any]:
    ray = ray_itself()  # reads its settings when it is first imported
    with redirect_stdout(sys.stderr):  # where Ray tells of dead workers
        try:
            _join(ray, address, folder)
            yield ray
        finally:
            ray.shutdown()


def _join(ray: Any, address: str | None, folder: str | None) -> None:
    try:
        ray.init(
            address=address or "local",
            namespace="lamina",
            include_dashboard=None if address else False,
            log_to_driver=False,
            _temp_dir=folder,
            configure_logging=True,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, OSError, ValueError, TimeoutError) as error:
        where = f"the cluster at {address}" if address else "a cluster on this machine"
        raise FleetError(f"{where} does not answer: {_first_line(error)}", hint=_HINT) from None


def _knock(address: str) -> None:
    """See that something listens there. Raises FleetError, UsageError."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise UsageError(
            f"{address!r} is no address of a Ray cluster", hint="give host:port, as 10.0.0.1:6379"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), JOIN_SECONDS).close()
    except OSError as error:
        raise FleetError(
            f"the cluster at {address} does not answer: {_first_line(error)}", hint=_HINT
        ) from None


_HINT = "see: ray status; start one with: ray start --head"


def ray_itself() -> Any:
    """The library. Raises MissingPartError."""
    try:
        import ray
    except ImportError:
        raise MissingPartError(
            "work on many machines needs `ray`, which is not installed",
            hint="pip install 'lamina[ray]'",
        ) from None
    return ray


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__


def last_line(error: BaseException) -> str:
    """What went wrong, of a traceback that came from elsewhere."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


def processors(ray: Any) -> list[int]:
    """Of each machine that is there."""
    return [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]


def graphics(ray: Any) -> int:
    """GPUs of all machines together. Where there are some, each process gets one: Ray hides them
    from all others."""
    return int(ray.cluster_resources().get("GPU", 0))
