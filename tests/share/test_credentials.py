"""Credentials: docker's and podman's files, helpers, identity tokens; and tokens from a server."""

import base64
import json
import os
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lamina.core.errors import ShareError
from lamina.share.credentials import Credential, find_credential
from lamina.share.reference import parse_place
from lamina.share.referrers import Repository
from lamina.share.wire import Access
from tests.share.conftest import QUICK


def packed(text):
    return {"auth": base64.b64encode(text.encode()).decode()}


@pytest.fixture
def config(tmp_path):
    def write(**value):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(value))
        return [tmp_path / "missing.json", path]

    return write


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("ghcr.io", "ghcr.io"),
        ("https://ghcr.io", "ghcr.io"),
        ("https://ghcr.io/v2/", "ghcr.io"),
        ("localhost:5000", "localhost:5000"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("ghcr.io/me", "ghcr.io"),
        ("ghcr.io/me/support", "ghcr.io"),
    ],
)
def test_a_host_is_found_however_it_is_written(config, key, host):
    files = config(auths={key: packed("ann:p:w"), "other.io": packed("eve:x")})
    assert find_credential(files, host, "me/support") == Credential("ann", "p:w")


def test_the_nearest_entry_wins(config):
    files = config(auths={"h.io": packed("all:1"), "h.io/me": packed("mine:2")})
    assert find_credential(files, "h.io", "me/x").user == "mine"
    assert find_credential(files, "h.io", "meant/x").user == "all"


def test_no_entry_is_none(config):
    assert find_credential(config(auths={"h.io": {}}), "h.io", "a") is None
    assert find_credential(config(), "h.io", "a") is None


@pytest.mark.parametrize("text", ["{", "[]", '"x"', '{"auths": []}', '{"auths": {"h.io": "x"}}'])
def test_strange_files_do_no_harm(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    if text == "{":
        with pytest.raises(ShareError, match="cannot read the credentials"):
            find_credential([path], "h.io", "a")
    else:
        assert find_credential([path], "h.io", "a") is None


def test_a_broken_entry_is_said_without_the_secret(config):
    with pytest.raises(ShareError, match="not base64") as refused:
        find_credential(config(auths={"h.io": {"auth": "se cret"}}), "h.io", "a")
    assert "se cret" not in refused.value.render()


def test_secrets_are_in_no_repr():
    assert "hush" not in repr(Credential("ann", "hush", "hush"))


@pytest.fixture
def helper(tmp_path):
    """A helper program that knows one host, and notes what it was asked."""

    def write(answer, code=0):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / "docker-credential-test"
        said = f"cat > {tmp_path}/asked; echo '{answer}'; exit {code}"
        program.write_text(f"#!/bin/sh\n{said}\n")
        program.chmod(0o755)
        return f"{folder}:{os.environ['PATH']}"

    return write


def test_a_helper_is_asked_for_its_host(config, helper, tmp_path):
    path = helper('{"ServerURL":"h.io","Username":"ann","Secret":"s"}')
    files = config(credHelpers={"h.io": "test"}, auths={"h.io": packed("other:x")})
    assert find_credential(files, "h.io", "a", path=path) == Credential("ann", "s")
    assert (tmp_path / "asked").read_text() == "h.io"


def test_the_store_is_asked_for_all_hosts(config, helper):
    path = helper('{"Username":"<token>","Secret":"refresh"}')
    found = find_credential(config(credsStore="test"), "h.io", "a", path=path)
    assert found.identity_token == "refresh"


def test_a_helper_that_knows_nothing_leaves_it_to_the_file(config, helper):
    path = helper("credentials not found in native keychain", code=1)
    files = config(credsStore="test", auths={"h.io": packed("ann:s")})
    assert find_credential(files, "h.io", "a", path=path).user == "ann"


def test_a_helper_that_fails_is_said(config, helper):
    path = helper("no such thing", code=2)
    with pytest.raises(ShareError, match="docker-credential-test failed"):
        find_credential(config(credsStore="test"), "h.io", "a", path=path)
    with pytest.raises(ShareError, match="not installed"):
        find_credential(config(credsStore="nothere"), "h.io", "a", path=path)
    with pytest.raises(ShareError, match="no credential helper"):
        find_credential(config(credsStore="../../bin/sh"), "h.io", "a", path=path)


# -- tokens ----------------------------------------------------------------------------------------


class _TokenServer(BaseHTTPRequestHandler):
    """A registry that wants a bearer token, and the server that gives them."""

    protocol_version = "HTTP/1.1"
    asked: list

    def log_message(self, *_):
        pass

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        if url.path == "/token":
            query = urllib.parse.parse_qs(url.query)
            user = self.headers.get("Authorization")
            self.asked.append(("GET", user, query["scope"][0]))
            return self._say(200, {"token": f"token-for-{user}"})
        who = self.headers.get("Authorization")
        if who is None or "token-for" not in who:
            port = self.server.server_address[1]
            challenge = (
                f'Bearer realm="http://127.0.0.1:{port}/token",service="test",'
                'scope="repository:a/b:pull"'
            )
            return self._say(401, {}, {"WWW-Authenticate": challenge})
        self.asked.append(("api", who, url.path))
        return self._say(200, {"tags": ["one"]})

    def do_POST(self):
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.asked.append(("POST", form["refresh_token"][0], form["grant_type"][0]))
        self._say(200, {"access_token": "token-for-refresh"})

    def _say(self, status, value, headers=()):
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in dict(headers).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def tokens():
    asked = []
    handler = type("Handler", (_TokenServer,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1], asked
    server.shutdown()
    server.server_close()


def tags(port, *files):
    access = Access(credential_files=files, patience=QUICK)
    with Repository(parse_place(f"oci://127.0.0.1:{port}/a/b"), access) as repository:
        return repository.tags()


def test_an_anonymous_token(tokens):
    port, asked = tokens
    assert tags(port) == ["one"]
    assert asked[0] == ("GET", None, "repository:a/b:pull")


def test_a_token_for_a_password(tokens, tmp_path):
    port, asked = tokens
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"auths": {f"127.0.0.1:{port}": packed("ann:s")}}))
    assert tags(port, path) == ["one"]
    assert asked[0][1] == "Basic " + packed("ann:s")["auth"]
    assert len([each for each in asked if each[0] == "GET"]) == 1


def test_a_token_for_an_identity_token(tokens, tmp_path):
    port, asked = tokens
    path = tmp_path / "config.json"
    entry = {"identitytoken": "long-lived"} | packed("00000000-0000-0000-0000-000000000000:")
    path.write_text(json.dumps({"auths": {f"127.0.0.1:{port}": entry}}))
    assert tags(port, path) == ["one"]
    assert asked[0] == ("POST", "long-lived", "refresh_token")
