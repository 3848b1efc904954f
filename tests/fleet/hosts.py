"""Two hosts that see nobody but each other: network namespaces that the test makes itself.

Ray listens on every interface that it finds; here it finds only these.
"""

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 6379
CLONE_NEWNET = 0x40000000
BIN = Path(sys.executable).parent
UP_SECONDS = 180


def why_not():
    """Why there can be no hosts here, '' where there can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    if shutil.which("ip") is None:
        return "network namespaces need ip (apt-get install iproute2)"
    name = f"lamina-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return ""


class Hosts:
    """The hosts and, on each, a node of one Ray cluster with one processor."""

    def __init__(self) -> None:
        mark = secrets.token_hex(2)
        self.names = [f"lamina-{mark}-{n}" for n in range(len(ADDRESSES))]
        self._ends = [f"lm{mark}{n}" for n in range(len(ADDRESSES))]
        self.folder = Path(tempfile.mkdtemp(prefix="lm-"))  # the names of sockets are short
        self.address = f"{ADDRESSES[0]}:{PORT}"
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": str(self.folder),
            "OMP_NUM_THREADS": "1",
        }

    def __enter__(self):
        try:
            for name in self.names:
                self._ip("netns", "add", name)
                self._ip("-n", name, "link", "set", "lo", "up")
            one, two = self._ends
            self._ip("link", "add", one, "type", "veth", "peer", "name", two)
            for name, end, address in zip(self.names, self._ends, ADDRESSES, strict=True):
                self._ip("link", "set", end, "netns", name)
                self._ip("-n", name, "address", "add", f"{address}/24", "dev", end)
                self._ip("-n", name, "link", "set", end, "up")
            self.node(0)
            self.node(1)
            self._wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    def _ip(self, *words):
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def command(self, host, *words):
        return ["ip", "netns", "exec", self.names[host], *map(str, words)]

    def node(self, host):
        """Start a host's node."""
        where = (
            ("--head", f"--port={PORT}", "--include-dashboard=false")
            if host == 0
            else (f"--address={self.address}",)
        )
        words = [
            BIN / "ray", "start", *where, f"--node-ip-address={ADDRESSES[host]}", "--num-cpus=1",
            "--disable-usage-stats",
        ]  # fmt: skip
        done = subprocess.run(
            self.command(host, *words), env=self.environment, capture_output=True, text=True,
            timeout=UP_SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def _wait(self):
        end = time.monotonic() + UP_SECONDS
        while True:
            done = subprocess.run(
                self.command(0, BIN / "ray", "status", f"--address={self.address}"),
                env=self.environment, capture_output=True, text=True, timeout=UP_SECONDS,
            )  # fmt: skip
            if "2.0 CPU" in done.stdout:
                return
            assert time.monotonic() < end, done.stdout + done.stderr
            time.sleep(0.5)

    def lamina(self, home, *words):
        """Begin a command on the first host, whose cluster is the one here."""
        return subprocess.Popen(
            self.command(0, BIN / "lamina", *words, "--ray", self.address),
            env=self.environment | {"LAMINA_HOME": str(home)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def threads(self, host, count):
        """A pool of so many threads that are on a host, with whatever they connect to."""
        return ThreadPoolExecutor(count, initializer=_move, initargs=(self.names[host],))

    def pids(self, host, title=""):
        """Processes of a host whose command line begins so."""
        said = subprocess.run(
            ["ip", "netns", "pids", self.names[host]], capture_output=True, text=True
        ).stdout
        found = []
        for pid in map(int, said.split()):
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                if line.startswith(title):
                    found.append(pid)
        return found

    def close(self):
        for host, name in enumerate(self.names):
            for _ in range(20):
                left = self.pids(host)
                if not left:
                    break
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.1)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def _move(name):
    """Take the calling thread, and no other, into a network namespace."""
    with open(f"/var/run/netns/{name}") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {name}")


def ended(process, seconds=600):
    """Exit status, stdout and stderr of a command."""
    out, said = process.communicate(timeout=seconds)
    return process.returncode, out, said


def until(condition, seconds=300):
    """Wait for something."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
