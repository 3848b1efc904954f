"""A stand-in for the Hub on 127.0.0.1: model info, file metadata, ranges, dropped connections."""

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A client that left is no error; told on stderr, it would be read as another test's."""


@dataclass
class StandIn:
    """One repository, `org/name`, whose `main` is COMMIT."""

    folder: Path
    endpoint: str = ""
    drops: dict[str, int] = field(default_factory=dict)
    """File name -> how many transfers of it are cut half-way."""
    delay: float = 0.0
    licence: str | None = "apache-2.0"
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(method, path, Range header) of every request."""

    def got(self, name: str) -> list[str | None]:
        """Range headers of the GET requests for a file."""
        return [r for method, path, r in self.requests if method == "GET" and path.endswith(name)]


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[StandIn]:
    """Serve the files of `folder` as org/name for the length of the block."""
    state = StandIn(folder)

    class Handler(_Handler):
        hub = state

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    state.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        time.sleep(self.hub.delay)
        if path in ("/api/models/org/name", *self._revisions()):
            self._json(200, self._info())
        elif path == f"/api/models/org/name/tree/{COMMIT}":
            self._json(200, self._tree())
        elif path.startswith(f"/org/name/resolve/{COMMIT}/"):
            self._file(path.removeprefix(f"/org/name/resolve/{COMMIT}/"), body)
        elif path.startswith("/api/models/org/name/revision/"):
            self._json(404, {"error": "Invalid rev id"}, "RevisionNotFound")
        else:
            self._json(404, {"error": "Repository not found"}, "RepoNotFound")

    def _revisions(self):
        return [f"/api/models/org/name/revision/{name}" for name in ("main", "v1", COMMIT)]

    def _info(self):
        card = {"license": self.hub.licence} if self.hub.licence else {}
        return {
            "id": "org/name",
            "sha": COMMIT,
            "private": False,
            "tags": [],
            "cardData": card,
            "siblings": [self._sibling(path) for path in sorted(self._files())],
        }

    def _sibling(self, path):
        """As the Hub does: sha256 for large files, the git blob id for the rest."""
        data = path.read_bytes()
        found = {
            "rfilename": path.relative_to(self.hub.folder).as_posix(),
            "size": len(data),
            "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
        }
        if path.suffix == ".safetensors":
            sha256 = hashlib.sha256(data).hexdigest()
            found["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 130}
        return found

    def _tree(self):
        tree = []
        for path in sorted(self._files()):
            data = path.read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            tree.append(
                {
                    "type": "file",
                    "path": path.relative_to(self.hub.folder).as_posix(),
                    "size": len(data),
                    "oid": sha256[:40],
                    "lfs": {"oid": sha256, "size": len(data), "pointerSize": 130},
                }
            )
        return tree

    def _files(self):
        return [path for path in self.hub.folder.rglob("*") if path.is_file()]

    def _file(self, name, body):
        path = self.hub.folder / name
        if not path.is_file():
            self._json(404, {"error": "Entry not found"}, "EntryNotFound")
            return
        data = path.read_bytes()
        start, wanted = 0, self.headers.get("Range")
        if wanted:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if not body:
            return
        if self.hub.drops.get(name, 0) > 0:
            self.hub.drops[name] -= 1
            self.wfile.write(data[start : start + (len(data) - start) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(data[start:])

    def _json(self, status, value, code=None):
        raw = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)
