"""A Ray cluster to work on: one that is there, or one of this machine's own for a while."""

import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from lamina.core.errors import FleetError, MissingPartError, UsageError

JOIN_SECONDS = 30
"""How long a cluster may take to answer."""


@contextmanager
def cluster(address: str | None = None) -> Iterator[Any]:
    """Ray, connected to the cluster at `address` for the length of a block.

    Without an address to the one that RAY_ADDRESS names; where there is none, to a cluster of this
    machine's own, which listens to nobody who lacks its token and ends with the block.
    Raises FleetError where nothing answers, UsageError for what is no address, MissingPartError.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address is not None:
        _knock(address)  # Ray itself waits for minutes
    given = dict(os.environ)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    os.environ.setdefault("RAY_raylet_start_wait_time_s", str(2 * JOIN_SECONDS))
    if address is None:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    ray = ray_itself()  # reads them when it is first imported
    try:
        try:
            ray.init(
                address=address or "local",
                namespace="lamina",
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                configure_logging=True,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, OSError, ValueError, TimeoutError) as error:
            where = f"the cluster at {address}" if address else "a cluster on this machine"
            raise FleetError(
                f"{where} does not answer: {_first_line(error)}",
                hint=_HINT,
            ) from None
        with redirect_stdout(sys.stderr):  # where Ray tells of dead workers
            yield ray
    finally:
        ray.shutdown()
        for name in set(os.environ) - set(given):
            del os.environ[name]
        os.environ.update(given)


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
