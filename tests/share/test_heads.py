"""An answer whose head breaks off is no answer, wherever it breaks."""

import contextlib
import socket
import threading

import pytest

from lamina.core.errors import DroppedError
from lamina.share.reference import parse_place
from lamina.share.referrers import Repository
from lamina.share.wire import Access, Patience

DIGEST = "sha256:" + "0123456789abcdef" * 4
HEAD = (
    "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nContent-Type: application/json\r\n"
    f"Docker-Content-Digest: {DIGEST}\r\n\r\n"
).encode()
ONCE = Access(patience=Patience(attempts=1))


@contextlib.contextmanager
def answering(answers):
    """A port where each connection gets the next of these bytes as its answer, and ends."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            for answer in answers:
                client, _ = server.accept()
                with client, contextlib.suppress(OSError):
                    client.recv(1 << 16)
                    client.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(10)


def tagged(port, access=ONCE):
    """What a tag points at, asked without a greeting first."""
    registry = Repository(parse_place(f"oci://127.0.0.1:{port}/some/thing:latest"), access)
    with contextlib.closing(registry.wire):
        return registry.head_manifest("latest")


def test_cut_after_any_byte():
    cuts = range(len(HEAD))
    with answering([HEAD[:cut] for cut in cuts] + [HEAD]) as port:
        for _ in cuts:
            with pytest.raises(DroppedError):
                tagged(port)
        assert tagged(port) == DIGEST


def test_it_is_asked_again():
    patient = Access(patience=Patience(attempts=4, first_seconds=0.001))
    with answering([HEAD[:-30], b"", HEAD[:-2], HEAD]) as port:
        assert tagged(port, patient) == DIGEST
