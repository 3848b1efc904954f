"""A newer registry than Debian's: a front before the real one, with what that one lacks.

Two things, each as the specification has it, all else is passed through as it is:
- the referrers API (GET /v2/NAME/referrers/DIGEST, `OCI-Subject` on a PUT with a subject), by
  looking into the manifests that pass
- uploads that outlive a broken connection: what arrived of a PATCH is handed on as a whole one, and
  the upload's old address goes on from there
"""

import json
import re
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from lamina.core.digest import digest_bytes
from lamina.core.manifests import INDEX_TYPE, MANIFEST_TYPE

_REFERRERS = re.compile(r"/v2/(.+)/referrers/(sha256:[0-9a-f]{64})")
_MANIFEST = re.compile(r"/v2/(.+)/manifests/([^/?]+)")


class Modern:
    """Listens on a free port of this machine."""

    def __init__(self, port, *, break_after=None, api=True, page=2):
        self.upstream, self.api, self.page = f"http://127.0.0.1:{port}", api, page
        self.break_after = break_after
        """Bytes after which the first PATCHes break, one a piece; emptied as they do."""
        self.referrers = {}
        self.moved = {}
        """An upload's old address -> where it goes on."""
        self.resumed = 0
        self.asked = []
        handler = type("Handler", (_Handler,), {"front": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    front: Modern

    def log_message(self, *_):
        pass

    def _pass(self):
        front = self.front
        front.asked.append(f"{self.command} {self.path}")
        match = _REFERRERS.fullmatch(self.path.partition("?")[0])
        if match and front.api and self.command == "GET":
            return self._list(*match.groups())
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        target = front.upstream + front.moved.get(self.path, self.path)
        broken = self.command == "PATCH" and bool(front.break_after)
        if broken:
            body = body[: front.break_after.pop(0)]
            start = int(self.headers["Content-Range"].partition("-")[0])
            self.headers.replace_header("Content-Range", f"{start}-{start + len(body) - 1}")
        status, headers, data = self._ask(target, body)
        if broken:
            front.moved[self.path] = headers["Location"].removeprefix(front.upstream)
            self.close_connection = True
            self.connection.close()
            return None
        if self.command == "GET" and self.path in front.moved:
            front.resumed += 1
        subject = self._subject(body) if self.command == "PUT" and status == 201 else None
        if subject and front.api:
            headers["OCI-Subject"] = subject
        return self._answer(status, headers, data)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _pass

    def _ask(self, url, body):
        dropped = ("host", "connection", "content-length")
        headers = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
        data = body if self.command in ("PUT", "POST", "PATCH") else None
        request = urllib.request.Request(url, data=data, headers=headers, method=self.command)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()

    def _subject(self, body):
        """Take note of what a manifest speaks of; its subject's digest."""
        match = _MANIFEST.fullmatch(self.path)
        if not match:
            return None
        manifest = json.loads(body)
        if "subject" not in manifest:
            return None
        entry = {
            "mediaType": MANIFEST_TYPE,
            "digest": digest_bytes(body),
            "size": len(body),
            "artifactType": manifest["artifactType"],
        }
        key = match[1], manifest["subject"]["digest"]
        known = self.front.referrers.setdefault(key, [])
        if entry not in known:
            known.append(entry)
        return manifest["subject"]["digest"]

    def _list(self, name, digest):
        found = self.front.referrers.get((name, digest), [])
        start = int(self.path.partition("?from=")[2] or 0)
        end = start + self.front.page
        headers = {"Content-Type": INDEX_TYPE}
        if end < len(found):
            headers["Link"] = f'</v2/{name}/referrers/{digest}?from={end}>; rel="next"'
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": found[start:end]}
        return self._answer(200, headers, json.dumps(index).encode())

    def _answer(self, status, headers, data):
        own = f"http://127.0.0.1:{self.front.port}"
        self.send_response(status)
        length = headers.get("Content-Length", str(len(data)))
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "date"):
                self.send_header(name, value.replace(self.front.upstream, own))
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
