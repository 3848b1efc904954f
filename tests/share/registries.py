"""A real registry (Debian's docker-registry) on a free port of this machine."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

PROGRAM = shutil.which("docker-registry")
SECONDS = 20.0
"""Longest that it may take to answer."""


@dataclass(frozen=True)
class Running:
    """A registry that answers."""

    port: int
    root: Path
    process: subprocess.Popen
    ca: Path | None = None
    log: Path | None = None

    @property
    def host(self):
        return f"127.0.0.1:{self.port}"

    def place(self, repository="lamina/test", tag="latest"):
        return f"oci://{self.host}/{repository}:{tag}"

    def lines(self):
        """What it logged of requests: 'METHOD path status'."""
        return self.log.read_text().splitlines()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(folder, *, users=None, tls=False, root=None):
    """A registry below `folder`; `users`: name -> password; `root`: where its blobs lie."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    root = root or folder / "blobs"
    http = {"addr": f"127.0.0.1:{port}"}
    ca = None
    if tls:
        ca, certificate, key = certificates(folder)
        http["tls"] = {"certificate": str(certificate), "key": str(key)}
    config = {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": False}},
        "storage": {
            "filesystem": {"rootdirectory": str(root)},
            "delete": {"enabled": True},
        },
        "http": http,
    }
    if users:
        file = folder / "htpasswd"
        for number, (name, password) in enumerate(users.items()):
            flags = "-Bbc" if number == 0 else "-Bb"
            subprocess.run(
                ["htpasswd", flags, str(file), name, password], check=True, capture_output=True
            )
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(file)}}
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [PROGRAM, "serve", str(folder / "config.yml")], stdout=out, stderr=out
        )
    try:
        wait_for(port, process, log)
        yield Running(port, root, process, ca, log)
    finally:
        process.terminate()
        process.wait(10)


def wait_for(port, process, log):
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(log.read_text())
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError("the registry does not answer: " + log.read_text())


def certificates(folder):
    """A CA of our own, and a certificate of 127.0.0.1 that it signed: ca, certificate, key."""
    ca_key, ca = folder / "ca.key", folder / "ca.pem"
    key, request, certificate = folder / "key.pem", folder / "request", folder / "cert.pem"
    extensions = folder / "extensions"
    extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")

    def openssl(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    new = ("req", "-newkey", "rsa:2048", "-nodes")
    authority = ("-addext", "keyUsage=critical,keyCertSign")
    openssl(
        *new, "-x509", "-days", 2, "-keyout", ca_key, "-out", ca, "-subj", "/CN=ours", *authority
    )
    openssl(*new, "-keyout", key, "-out", request, "-subj", "/CN=127.0.0.1")
    openssl("x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial",
            "-days", 2, "-out", certificate, "-extfile", extensions)  # fmt: skip
    return ca, certificate, key


def get(url, **headers):
    """(status, headers, body) of a plain GET."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()
