"""A bad network: a TCP proxy of our own between a client and a registry, that breaks what passes.

Faults are chosen per connection by a seeded generator. They work on bytes, so they hit headers and
bodies alike: what a real network, a broken load balancer or a lying registry would do.
"""

import contextlib
import random
import re
import socket
import threading
import time
from collections import Counter

FAULTS = (
    "drop",
    "cut",
    "delay",
    "busy",
    "slow_down",
    "flip",
    "flip_up",
    "truncate",
    "no_range",
    "longer",
)
"""drop: the connection ends after some bytes of the request. cut: after some of the answer.
delay: the answer waits. busy: 500 instead of an answer. slow_down: 429 with Retry-After.
flip: one bit of the answer's body is another. flip_up: of the request's. truncate: the answer's
body ends early, and its Content-Length says so. no_range: the Range header is lost. longer:
Content-Length promises more than comes."""
_LENGTH = re.compile(rb"(\r\n[Cc]ontent-[Ll]ength: )(\d+)")
_RANGE = re.compile(rb"\r\n[Rr]ange: [^\r]*")


class Proxy:
    """Listens on a free port of this machine; `rate` is the share of requests that are broken."""

    def __init__(self, port, *, seed=0, rate=0.0, faults=FAULTS, far=20_000, slow=0.0):
        self.slow = slow
        """Seconds before each 64 kB."""
        self.upstream, self.rate, self.faults, self.far = port, rate, faults, far
        self.counts = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._open = set()
        self._closing = False
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self):
        return self._server.getsockname()[1]

    def close(self):
        self._closing = True
        self._server.close()
        for each in list(self._open):
            each.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _accept(self):
        while not self._closing:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _draw(self):
        """The next request's fault, and how far into it."""
        with self._lock:
            fault = None
            if self.faults and self._random.random() < self.rate:
                fault = self._random.choice(self.faults)
                self.counts[fault] += 1
            return fault, self._random.randrange(self.far)

    def _serve(self, client):
        """Request by request, each in a connection of its own to the registry."""
        self._open.add(client)
        with client, contextlib.suppress(OSError):
            client.settimeout(60)
            reader = client.makefile("rb", buffering=1 << 16)
            while self._one(client, reader):
                pass
        self._open.discard(client)

    def _one(self, client, reader):
        head = _head(reader)
        if not head:
            return False
        fault, place = self._draw()
        length = _length(head)
        if fault in ("busy", "slow_down"):
            _skip(reader, length)
            status = "500 Internal Server Error" if fault == "busy" else "429 Too Many Requests"
            more = "Retry-After: 0\r\n" if fault == "slow_down" else ""
            client.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n{more}\r\n".encode())
            return True
        if fault == "no_range":
            head = _RANGE.sub(b"", head)
        with socket.create_connection(("127.0.0.1", self.upstream), timeout=60) as server:
            head = re.sub(rb"\r\n[Cc]onnection: [^\r]*", b"", head)
            server.sendall(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
            if fault == "drop":
                self._copy(reader, server, min(length, place))
                return False
            if fault == "flip_up" and length:
                self._copy_flipped(reader, server, length, place)
            else:
                self._copy(reader, server, length)
            if fault == "delay":
                time.sleep(0.02 + place % 100 / 1000)
            return self._answer(client, server, head, fault, place)

    def _answer(self, client, server, request, fault, place):
        reader = server.makefile("rb", buffering=1 << 16)
        head = _head(reader)
        if not head:
            return False
        bodiless = request.startswith(b"HEAD ") or b" 204 " in head[:16] or b" 304 " in head[:16]
        length = 0 if bodiless else _length(head)
        head = re.sub(rb"\r\n[Cc]onnection: [^\r]*", b"", head)
        host = f"127.0.0.1:{self.upstream}".encode()
        head = head.replace(host, f"127.0.0.1:{self.port}".encode())  # Location
        if fault == "cut":
            client.sendall(head[: place % (2 * len(head))])
            self._copy(reader, client, min(length, place))
            return False
        if fault == "longer" and length:
            client.sendall(_LENGTH.sub(lambda m: m[1] + str(int(m[2]) + 100).encode(), head))
            self._copy(reader, client, length)
            return False
        if fault == "truncate" and length > 1:
            kept = place % length
            client.sendall(_LENGTH.sub(lambda m: m[1] + str(kept).encode(), head))
            self._copy(reader, client, kept)
            return False
        client.sendall(head)
        if fault == "flip" and length:
            self._copy_flipped(reader, client, length, place)
        else:
            self._copy(reader, client, length)
        return True

    def _copy(self, reader, target, length):
        while length > 0:
            time.sleep(self.slow)
            piece = reader.read1(min(length, 1 << 16))
            if not piece:
                raise ConnectionError
            target.sendall(piece)
            length -= len(piece)

    def _copy_flipped(self, reader, target, length, place):
        """All of it but for one bit."""
        at = place % length
        self._copy(reader, target, at)
        byte = reader.read(1)
        target.sendall(bytes([byte[0] ^ 1 << place % 8]) if byte else b"")
        self._copy(reader, target, length - at - 1)


def _head(reader):
    """Everything up to the empty line; b'' at the end of the connection."""
    lines = []
    while line := reader.readline(1 << 16):
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    return b""


def _length(head):
    match = _LENGTH.search(head)
    return int(match[2]) if match else 0


def _skip(reader, length):
    while length > 0 and (piece := reader.read1(min(length, 1 << 16))):
        length -= len(piece)
