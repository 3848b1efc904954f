"""The server on a port: clients that leave, ends, where it may bind."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

import pytest

from lamina.core.errors import UsageError
from lamina.web.keys import NewKey
from lamina.web.server import bind
from lamina.web.settings import Settings
from tests.cli.program import environment
from tests.web.engine import Fake, forever

ASKED = {"model": "support", "messages": [{"role": "user", "content": "the user asks"}]}


class Asking:
    """A client that has asked, and not read yet."""

    def __init__(self, url, path, body):
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
        self.response = None
        text = json.dumps(body)
        self._asked = (path, text, {"content-type": "application/json"})
        self.connection.request("POST", *self._asked)
        self._socket = self.connection.sock

    def again(self):
        """Ask the same on the same connection, and read the answer."""
        self.connection.request("POST", *self._asked)
        self.connection.getresponse().read()

    def answer(self):
        """The response's head; its body is read by whoever wants it."""
        self.response = self.connection.getresponse()
        return self.response

    def leave(self):
        """Close the connection."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if self.response is not None:
            self.response.close()
        self.connection.close()


@pytest.fixture
def post():
    """Asks; whoever is there at the end leaves."""
    asking = []

    def posted(url, path="/v1/chat/completions", **body):
        ask = {"model": "support", "prompt": "the user"} if path == "/v1/completions" else ASKED
        asking.append(Asking(url, path, ask | body))
        return asking[-1]

    yield posted
    for each in asking:
        each.leave()


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_client_that_leaves_frees_the_engine_at_once(serve, post, stream, path):
    engine = Fake(forever, delay=0.01, context=10**7)
    body = {"stream": stream, "max_tokens": 10**6}
    with serve(engine) as world:
        asking = post(world.url, path, **body)
        until(lambda: engine.stats().tokens_out > 3)
        if stream:
            assert asking.answer().readline().startswith(b"data: ")
        assert engine.stats().running == 1
        asking.leave()
        left = time.monotonic()
        until(lambda: engine.stats().running == 0)
        assert time.monotonic() - left < 1.0
        until(lambda: world.records)
        (record,) = world.records
        assert record.get("left") or record["status"] == 499
        assert record["completion_tokens"] > 0


def test_many_at_once_and_half_of_them_leave(serve, post):
    engine = Fake(forever, delay=0.005, context=10**7)
    with serve(engine) as world:
        connections = [post(world.url, stream=True, max_tokens=150) for _ in range(24)]
        until(lambda: engine.stats().running == 24)
        for connection in connections[::2]:
            connection.leave()
        whole = [c.answer().read() for c in connections[1::2]]
        assert all(text.endswith(b"data: [DONE]\n\n") for text in whole)
        until(lambda: engine.stats().running == 0)
        until(lambda: len(world.records) == 24)
        assert sum(r.get("left", False) or r["status"] == 499 for r in world.records) == 12


class Slow:
    """A client with little room for what comes, that reads when it is told to."""

    def __init__(self, url, **body):
        where = urlsplit(url)
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.connect((where.hostname, where.port))
        text = json.dumps(ASKED | {"stream": True} | body)
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
        self._socket.sendall((head + text).encode())

    def read(self, most=None):
        """All that comes, or the next of it."""
        if most is not None:
            return self._socket.recv(most)
        return b"".join(iter(lambda: self._socket.recv(65536), b""))

    def close(self):
        self._socket.close()


def test_a_slow_listener_hears_all_and_holds_nobody_up(serve, post):
    engine = Fake(forever, context=10**7)
    with serve(engine) as world, contextlib.closing(Slow(world.url, max_tokens=30_000)) as slow:
        until(lambda: engine.stats().tokens_out == 30_000, 30)
        until(lambda: engine.stats().running == 0)  # it needs nothing of the engine any more
        assert post(world.url, max_tokens=20).answer().status == 200
        until(lambda: world.records)
        assert len(world.records) == 1  # the other one's: the slow one's events wait
        text = b"".join(slow.read(1000) for _ in range(20)) + slow.read()
        assert b"data: [DONE]" in text
        assert text.count(b'"content"') == 30_001  # with the role's


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux only")
def test_a_listener_that_takes_nothing_is_left_in_the_end(serve):
    engine = Fake(forever, context=10**7)
    with serve(engine, timeout_seconds=2.0) as world:
        with contextlib.closing(Slow(world.url, max_tokens=10**6)):
            until(lambda: world.records, 20)
            until(lambda: engine.stats().running == 0)
        # `left` is in it or not: the answer's own time ends when the connection's does
        assert world.records[0]["path"] == "/v1/chat/completions"


@pytest.mark.slow
def test_a_listener_that_takes_nothing_does_not_stop_the_end(serve):
    engine = Fake(forever, context=10**7)
    with serve(engine, drain_seconds=0.2) as world:
        with contextlib.closing(Slow(world.url, max_tokens=10**6)):
            until(lambda: engine.stats().tokens_out > 30_000, 30)
            world.server.handle_exit(signal.SIGTERM, None)
            until(lambda: world.records, 10)
        assert engine.stats().running == 0


def test_a_drain_lets_answers_finish_and_takes_nothing_new(serve, post):
    engine = Fake(forever, delay=0.01, context=10**7)
    with serve(engine) as world:
        connection = post(world.url, stream=True, max_tokens=60)
        until(lambda: engine.stats().tokens_out > 3)
        world.server.handle_exit(signal.SIGTERM, None)
        text = connection.answer().read().decode()
        assert text.endswith("data: [DONE]\n\n")
        assert '"finish_reason":"length"' in text
        with pytest.raises(OSError):
            post(world.url)


def test_a_drain_that_takes_too_long_cancels_and_says_so(serve, post):
    engine = Fake(forever, delay=0.01, context=10**7)
    with serve(engine, drain_seconds=0.2) as world:
        streamed = post(world.url, stream=True, max_tokens=10**6)
        whole = post(world.url, max_tokens=10**6)
        until(lambda: engine.stats().running == 2)
        world.server.handle_exit(signal.SIGTERM, None)
        assert "shutting_down" in streamed.answer().read().decode()
        assert whole.answer().status == 503


def test_others_are_let_in_only_with_a_key(tmp_path):
    settings = Settings(keys_file=tmp_path / "access.json", host="0.0.0.0", port=0)
    with pytest.raises(UsageError, match="lamina access add"):
        bind(settings)
    with pytest.raises(UsageError, match="lamina access add"):
        bind(Settings(host="0.0.0.0", port=0))
    from lamina.web.keys import Keys

    Keys(settings.keys_file).add(NewKey("ann"))
    bind(settings).close()


@pytest.mark.parametrize("name", ["localhost", "::1"])
def test_other_names_of_this_machine(serve, name):
    if name == "::1" and not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with serve(host=name) as world:
        where = urlsplit(world.url)
        connection = http.client.HTTPConnection(where.hostname, where.port, timeout=10)
        connection.request("GET", "/v1/models")
        assert connection.getresponse().status == 200
        connection.close()


def test_a_port_that_is_taken(tmp_path):
    with bind(Settings(port=0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match="--port"):
            bind(Settings(port=port))


def test_small_answers_are_sent_at_once(serve, post):
    """Nagle's algorithm would hold the body back until the client acknowledged the head: 40 ms."""
    with serve() as world:
        assert post(world.url, max_tokens=1).answer().status == 200  # loads what is loaded once
        began = time.perf_counter()
        for _ in range(20):
            asking = post(world.url, max_tokens=1)
            asking.answer().read()
            for _ in range(4):
                asking.again()
        assert (time.perf_counter() - began) / 100 < 0.03


CHILD = """
import sys
from pathlib import Path
from lamina.flows.hosting import Host
from lamina.store.layout import Store
from lamina.web.app import create_app
from lamina.web.server import Server, bind, url_of
from lamina.web.settings import Settings
from tests.web.engine import Fake, forever

engine = Fake(forever, delay=0.01, context=10**7)
host = Host(Store.open(Path(sys.argv[1])), lambda *_: engine)
settings = Settings(port=0, drain_seconds=float(sys.argv[2]))
bound = bind(settings)
ready = lambda: print(url_of(bound), flush=True)
server = Server(create_app(host, settings), host, settings, ready)
sys.exit(0 if server.serve_on(bound) else 130)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("signals", "drain", "code"), [(1, 30, 0), (1, 0.3, 0), (2, 60, 130)])
def test_signals_under_load(seed_store, post, signals, drain, code):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(seed_store.root), str(drain)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(seed_store.root) | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        url = child.stdout.readline().strip()
        longest = 10**6 if signals == 2 or drain < 1 else 100
        connections = [post(url, stream=True, max_tokens=longest) for _ in range(8)]
        texts = [c.answer() for c in connections]
        child.send_signal(signal.SIGTERM)
        if signals == 2:
            time.sleep(0.3)
            assert child.poll() is None
            child.send_signal(signal.SIGTERM)
        began = time.monotonic()
        if signals == 1:
            ends = [text.read() for text in texts]
            wanted = b"[DONE]" if drain > 1 else b"shutting_down"
            assert all(wanted in end for end in ends)
        assert child.wait(20) == code
        assert time.monotonic() - began < 8
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_metrics_can_be_read_while_answers_are_made(serve, post):
    engine = Fake(forever, delay=0.01, context=10**7)
    with serve(engine) as world:
        asking = post(world.url, stream=True, max_tokens=10**6)
        until(lambda: engine.stats().running == 1)
        other = http.client.HTTPConnection(urlsplit(world.url).netloc, timeout=10)
        other.request("GET", "/metrics")
        assert b'lamina_engine_running{base="pico"} 1.0' in other.getresponse().read()
        other.close()
        asking.leave()


def test_loading_a_base_stops_nobody(seed_store, make):
    """While one base loads, health is told; and it is loaded once, whoever asks."""
    from lamina.flows.hosting import Host
    from lamina.stack.resolve import resolve

    going, made = threading.Event(), []

    def slow(*_):
        made.append(1)
        assert going.wait(10)
        return Fake()

    host = Host(seed_store, slow)
    stack = resolve(seed_store, "support")
    found = []
    threads = [threading.Thread(target=lambda: found.append(host.base_of(stack))) for _ in range(5)]
    for thread in threads:
        thread.start()
    until(lambda: made)
    assert host.stats() == {}
    going.set()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len({id(served) for served in found}) == 1
