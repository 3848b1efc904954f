"""The server itself: where it binds, and how it ends.

SIGTERM or SIGINT: no new connections, running answers go on for a while, then they are cancelled.
A second one: at once.
"""

import asyncio
import contextlib
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from lamina.core.errors import UsageError
from lamina.flows.hosting import Host
from lamina.web.keys import Keys
from lamina.web.settings import Log, Settings

BACKLOG = 2048
LAST_WORDS_SECONDS = 5.0
"""After the drain, for sending what was cancelled to its clients."""


def bind(settings: Settings) -> socket.socket:
    """The socket to serve on. Raises UsageError for an address that cannot be had, or that others
    reach while there is no key."""
    keys = settings.keys_file and Keys(settings.keys_file).all()
    if not settings.loopback and not keys:
        raise UsageError(
            f"anybody who reaches {settings.host} could use this server: there is no key",
            hint="make one first: lamina access add NAME; or serve this machine alone, without "
            "--host",
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # with its protocol named, or asyncio leaves Nagle's algorithm on: 40 ms more an answer
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_bind(settings, error) from None
    try:
        if sys.platform != "win32":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections inherit it: who takes nothing is left
            patience = round(1000 * settings.timeout_seconds)
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise _cannot_bind(settings, error) from None
    return bound


def _cannot_bind(settings: Settings, error: OSError) -> UsageError:
    return UsageError(
        f"cannot serve on {settings.host}, port {settings.port}: {error.strerror}",
        hint="choose another: --port 8081 (0 takes any free one)",
    )


def url_of(bound: socket.socket) -> str:
    """Where a bound socket is found."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn, with a drain of the host's engines and signals of our own."""

    def __init__(
        self, app: ASGIApp, host: Host, settings: Settings, ready: Callable[[], None]
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",  # not whichever of several happens to be installed
                http="h11",
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                ws="none",
                timeout_graceful_shutdown=None,
            )
        )
        self._host, self._settings, self._ready = host, settings, ready
        self._drained = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain."""
        threading.Thread(target=self._drain, name="drain", daemon=True).start()
        self.config.timeout_graceful_shutdown = round(
            self._settings.drain_seconds + LAST_WORDS_SECONDS
        )
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):  # of those who take nothing
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()
        await asyncio.sleep(0)  # in which they are closed

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: the first one drains, the second one does not wait."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    def serve_on(self, bound: socket.socket) -> bool:
        """Serve until a signal; whether the end was orderly, not forced by a second signal."""
        with _logged(self._settings.log):
            self.run(sockets=[bound])
        if self.force_exit:
            return False
        self._drained.wait(self._settings.drain_seconds + LAST_WORDS_SECONDS)
        return True

    def _drain(self) -> None:
        self._host.drain(self._settings.drain_seconds)
        self._drained.set()


@contextlib.contextmanager
def _logged(log: Log) -> Iterator[None]:
    """What uvicorn warns of goes to our log."""
    logger = logging.getLogger("uvicorn.error")
    handler = _Forward(log)
    before = logger.propagate, logger.level
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate, logger.level = before


class _Forward(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log({"event": "server", "level": record.levelname, "text": record.getMessage()})
