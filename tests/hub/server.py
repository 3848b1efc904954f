"""A stand-in of the Hub on 127.0.0.1 that speaks its HTTP API as far as huggingface_hub uses it.

Two servers: the Hub, and the storage that it sends large files to and from, as another host, which
must never see a token. Paths and answers follow huggingface_hub's own requests: `_commit_api.py`,
`lfs.py`, `hf_api.py` (create_repo, create_branch, model_info, list_repo_tree), `file_download.py`.
"""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub.repocard import REGEX_YAML_BLOCK
from yaml import YAMLError, safe_load

from tests.hub.state import ATTRIBUTES, HubState, Repo, git_oid, is_large

LICENCES = ("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "gemma", "other", "unknown")


class Refused(Exception):
    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status, self.code = status, code


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Clients that hang up are part of the tests."""


@contextlib.contextmanager
def serve():
    """The state, with `endpoint` and `storage_url` to reach it at, for the length of the block."""
    state = HubState()
    with contextlib.ExitStack() as stack:
        for handler, name in ((_Hub, "endpoint"), (_Storage, "storage_url")):
            server = Server(("127.0.0.1", 0), type("Bound", (handler,), {"hub": state}))
            thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            host = "127.0.0.1" if name == "endpoint" else "localhost"
            setattr(state, name, f"http://{host}:{server.server_port}")
        yield state


class _Handler(BaseHTTPRequestHandler):
    hub: HubState
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self):
        with self.hub.lock:
            self.hub.busy += 1
        try:
            self._serve_one()
        finally:
            with self.hub.lock:
                self.hub.busy -= 1

    def _serve_one(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        self.hub.requests.append((self.command, self.path, dict(self.headers), len(body)))
        self.fault = self.hub.fault(self.command, self.path)
        if self.fault and self.fault.call:
            self.fault.call()
        if self.fault and self.fault.drop == "before":
            return self._hang_up()
        if self.fault and self.fault.status:
            return self._json(self.fault.status, {"error": "made to fail"}, self.fault.headers)
        try:
            self._answer(body)
        except Refused as refused:
            headers = {"X-Error-Message": str(refused)}
            headers |= {"X-Error-Code": refused.code} if refused.code else {}
            self._json(refused.status, {"error": str(refused)}, headers)

    def _chunks(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _hang_up(self):
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)

    def _json(self, status, value, headers=None):
        self._send(
            status, json.dumps(value).encode(), {"Content-Type": "application/json"}, headers
        )

    def _send(self, status, data, *headers, size=None):
        if self.fault and self.fault.drop == "after":
            self._hang_up()
            return
        self.send_response(status)
        for name, value in {k: v for each in headers if each for k, v in each.items()}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if size is None else size))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.drop == "half":
            self.wfile.write(data[: len(data) // 2])
            self._hang_up()
            return
        if self.fault and self.fault.drop == "spoil":
            data = bytearray(data)
            data[len(data) // 2] ^= 1
        self.wfile.write(data)

    def _ranged(self, data, headers):
        wanted = self.headers.get("Range")
        if not wanted:
            return self._send(200, data, headers, {"Accept-Ranges": "bytes"})
        start = int(wanted.removeprefix("bytes=").split("-")[0])
        if start >= len(data):
            return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        said = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        return self._send(206, data[start:], headers, said)


class _Hub(_Handler):
    def _answer(self, body):
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        query = parse_qs(url.query)
        match (self.command, *parts):
            case ("POST", "api", "repos", "create"):
                self._create(json.loads(body))
            case ("POST", "api", "validate-yaml"):
                self._validate(json.loads(body)["content"])
            case ("GET", "api", "models", org, name):
                self._info(f"{org}/{name}", "main", query)
            case ("GET", "api", "models", org, name, "revision", revision):
                self._info(f"{org}/{name}", revision, query)
            case ("GET", "api", "models", org, name, "tree", revision):
                self._tree(f"{org}/{name}", revision)
            case ("POST", "api", "models", org, name, "branch", branch):
                self._branch(f"{org}/{name}", branch)
            case ("POST", "api", "models", org, name, "preupload", revision):
                self._preupload(f"{org}/{name}", revision, json.loads(body))
            case ("POST", "api", "models", org, name, "commit", branch):
                self._commit(f"{org}/{name}", branch, body)
            case ("POST", org, repo, "info", "lfs", "objects", "batch"):
                self._batch(f"{org}/{repo.removesuffix('.git')}", json.loads(body))
            case ("POST", "lfs", "verify"):
                self._verify(json.loads(body))
            case ("POST", "lfs", "complete", oid):
                self._complete(oid, json.loads(body))
            case ("GET" | "HEAD", org, name, "resolve", revision, *path):
                self._resolve(f"{org}/{name}", revision, "/".join(path))
            case _:
                raise Refused(404, f"no such endpoint: {self.command} {self.path}")

    # -- who may what

    def _user(self):
        given = self.headers.get("Authorization")
        if given is None:
            return None
        token = given.removeprefix("Bearer ")
        if token not in self.hub.users:
            raise Refused(401, "Invalid credentials in Authorization header")
        return token

    def _readable(self, name) -> Repo:
        user, repo = self._user(), self.hub.repos.get(name)
        if repo is None or (repo.private and user not in self.hub.members):
            status = 404 if user else 401
            raise Refused(status, "Repository not found", "RepoNotFound")
        return repo

    def _contents(self, name) -> Repo:
        repo = self._readable(name)
        if repo.gated and self._user() not in self.hub.members:
            raise Refused(403, f"Access to model {name} is restricted", "GatedRepo")
        return repo

    def _writable(self, name) -> Repo:
        repo, user = self._readable(name), self._user()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        if name.partition("/")[0] not in self.hub.users[user]:
            raise Refused(403, "you don't have the rights to write to this repository")
        return repo

    def _at(self, repo, revision):
        found = repo.at(revision)
        if found is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    # -- repositories

    def _create(self, asked):
        name, user = f"{asked['organization']}/{asked['name']}", self._user()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        if asked["organization"] not in self.hub.users[user]:
            raise Refused(403, f"you can't create a model under the namespace {name}")
        if name in self.hub.repos:
            return self._json(409, {"error": "You already created this model repo",
                                    "url": f"{self.hub.endpoint}/{name}"})  # fmt: skip
        repo = self.hub.repos[name] = Repo(private=asked.get("visibility") == "private")
        repo.commit("initial commit", {".gitattributes": ATTRIBUTES.encode()}, set())
        return self._json(200, {"url": f"{self.hub.endpoint}/{name}", "name": name})

    def _validate(self, content):
        match = REGEX_YAML_BLOCK.search(content)
        try:
            found = safe_load(match[2]) if match else {}
        except YAMLError as error:
            found, fault = {}, str(error)
        else:
            fault = ""
            if found.get("license", "mit") not in LICENCES:
                fault = '"license" must be one of [...]'
            for entry in found.get("model-index", ()):
                for result in entry["results"]:
                    if not {"type", "name"} <= set(result["dataset"]) or not result["metrics"]:
                        fault = '"model-index[0].results[0].dataset" is not right'
        errors = [{"message": fault}] if fault else []
        self._json(400 if fault else 200, {"errors": errors, "warnings": []})

    def _branch(self, name, branch):
        repo = self._writable(name)
        if branch in repo.branches:
            raise Refused(409, "Reference already exists")
        repo.branches[branch] = repo.head.oid
        self._json(200, {})

    def _info(self, name, revision, query):
        repo = self._readable(name)
        commit = self._at(repo, revision)
        files = [self._file(commit, path, "blobs" in query) for path in sorted(commit.files)]
        card = safe_load((REGEX_YAML_BLOCK.search(
            commit.files.get("README.md", b"").decode()) or [0, 0, "{}"])[2])  # fmt: skip
        self._json(200, {"id": name, "sha": commit.oid, "private": repo.private, "tags": [],
                         "gated": "manual" if repo.gated else False,
                         "cardData": card, "siblings": files})  # fmt: skip

    def _file(self, commit, path, blobs):
        found, data = {"rfilename": path}, commit.files[path]
        if blobs:
            found |= {"size": len(data), "blobId": git_oid(data)}
            if path in commit.large:
                oid = hashlib.sha256(data).hexdigest()
                found["lfs"] = {"sha256": oid, "size": len(data), "pointerSize": 130}
        return found

    def _tree(self, name, revision):
        commit = self._at(self._contents(name), revision)
        tree = []
        for path, data in sorted(commit.files.items()):
            entry = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
            if path in commit.large:
                oid = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 130}
            tree.append(entry)
        self._json(200, tree)

    def _resolve(self, name, revision, path):
        commit = self._at(self._contents(name), revision)
        said = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        data = commit.files[path]
        if path not in commit.large:
            return self._ranged(data, said | {"ETag": f'"{git_oid(data)}"'})
        oid = hashlib.sha256(data).hexdigest()
        said |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{oid}"'}
        said["Location"] = f"{self.hub.storage_url}/{oid}?signed=yes"
        return self._send(302, b"", said)

    # -- uploads

    def _preupload(self, name, revision, asked):
        commit = self._at(self._writable(name), revision)
        answer = []
        for file in asked["files"]:
            path, sample = file["path"], base64.b64decode(file["sample"])
            large = is_large(path, sample, file["size"])
            there = commit.files.get(path)
            oid = None if there is None else git_oid(there)
            if there is not None and path in commit.large:
                oid = hashlib.sha256(there).hexdigest()
            answer.append({"path": path, "uploadMode": "lfs" if large else "regular",
                           "shouldIgnore": False, "oid": oid})  # fmt: skip
        self._json(200, {"files": answer})

    def _batch(self, name, asked):
        self._writable(name)
        assert asked["operation"] == "upload"
        assert asked["hash_algo"] == "sha256"
        objects = []
        for item in asked["objects"]:
            found = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.storage:
                found["actions"] = self._actions(item["oid"], item["size"])
            objects.append(found)
        transfer = "multipart" if self.hub.chunk else "basic"
        self._json(200, {"transfer": transfer, "objects": objects})

    def _actions(self, oid, size):
        verify = {"href": f"{self.hub.endpoint}/lfs/verify"}
        href = f"{self.hub.storage_url}/{oid}?signed=yes"
        if not self.hub.chunk or size <= self.hub.chunk:
            return {"upload": {"href": href}, "verify": verify}
        count = -(-size // self.hub.chunk)
        header = {str(n + 1): f"{href}&part={n + 1}" for n in range(count)}
        header["chunk_size"] = str(self.hub.chunk)
        complete = f"{self.hub.endpoint}/lfs/complete/{oid}"
        return {"upload": {"href": complete, "header": header}, "verify": verify}

    def _complete(self, oid, asked):
        parts = self.hub.parts.pop(oid, {})
        data = b"".join(parts[part["partNumber"]] for part in asked["parts"])
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refused(400, "the parts are not the object")
        self.hub.storage[oid] = data
        self._json(200, {})

    def _verify(self, asked):
        found = self.hub.storage.get(asked["oid"])
        if found is None or len(found) != asked["size"]:
            raise Refused(404, "the object is not there")
        self._json(200, {})

    def _commit(self, name, branch, body):
        repo = self._writable(name)
        with self.hub.lock:
            self._put(repo, name, branch, [json.loads(line) for line in body.splitlines()])

    def _put(self, repo, name, branch, lines):
        now = self._at(repo, branch)
        if branch not in repo.branches:
            raise Refused(400, "not a branch")
        assert lines[0]["key"] == "header"
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, now.oid):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files, large = dict(now.files), set(now.large)
        for line in lines[1:]:
            value = line["value"]
            path = value["path"]
            match line["key"]:
                case "file":
                    files[path] = base64.b64decode(value["content"])
                    large.discard(path)
                case "lfsFile":
                    if value["oid"] not in self.hub.storage:
                        raise Refused(400, f"LFS pointer to an object that is not there: {path}")
                    files[path] = self.hub.storage[value["oid"]]
                    large.add(path)
                case "deletedFile":
                    if path not in files:
                        raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
                    del files[path]
                    large.discard(path)
                case other:
                    raise Refused(400, f"unknown operation {other}")
        oid = repo.commit(header["summary"], files, large, branch)
        self._json(200, {"commitUrl": f"{self.hub.endpoint}/{name}/commit/{oid}",
                         "commitOid": oid, "hookOutput": ""})  # fmt: skip


class _Storage(_Handler):
    """Signed addresses: a token that arrives here has leaked."""

    def _answer(self, body):
        if "Authorization" in self.headers:
            raise Refused(400, "Only one auth mechanism allowed")
        url = urlsplit(self.path)
        oid, query = url.path.strip("/"), parse_qs(url.query)
        if query.get("signed") != ["yes"]:
            raise Refused(403, "not signed")
        if self.command == "PUT":
            if "part" in query:
                self.hub.parts.setdefault(oid, {})[int(query["part"][0])] = body
            elif hashlib.sha256(body).hexdigest() != oid:
                raise Refused(400, "BadDigest")
            else:
                self.hub.storage[oid] = body
            etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
            return self._send(200, b"", {"ETag": f'"{etag}"'})
        if oid not in self.hub.storage:
            raise Refused(404, "NoSuchKey")
        return self._ranged(self.hub.storage[oid], {"ETag": f'"{oid}"'})
