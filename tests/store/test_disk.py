"""A full disk and a read-only one: real limits and real mounts, each in a process of its own."""

import functools
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lamina.core.names import Name
from tests.store.make import put_stack

HERE = Path(__file__).parents[2]


def run(command):
    return subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)


@functools.cache
def mounting():
    """The command before one that may mount, in a mount namespace of its own; None if not ours."""
    flags = "-m" if os.geteuid() == 0 else "-rm"
    if shutil.which("unshare") is None:
        return None
    probe = run(["unshare", flags, "sh", "-c", "mount -t tmpfs none /mnt"])
    return ["unshare", flags, "sh", "-c"] if probe.returncode == 0 else None


def mounted(script):
    before = mounting()
    if before is None:
        pytest.skip("this system lets us mount nothing (no unshare, or no right to mount)")
    return run([*before, script])


def child(module, *arguments):
    return [sys.executable, "-m", f"tests.store.{module}", *map(str, arguments)]


def test_file_size_limit(tmp_path):
    pytest.importorskip("resource", reason="this system has no resource limits")
    done = run(child("full_disk", tmp_path / "store", 16384, "limit"))
    assert (done.stdout, done.returncode) == ("held\n", 0), done.stderr


def test_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    work = shlex.join(child("full_disk", disk / "store", 262144, "disk"))
    done = mounted(f"mount -t tmpfs -o size=256k none {shlex.quote(str(disk))} && {work}")
    assert (done.stdout, done.returncode) == ("held\n", 0), done.stderr


def test_read_only_store(store):
    store.move("support", put_stack(store, "a"), expected=None)
    root = shlex.quote(str(store.root))
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    done = mounted(
        f"mount --bind {root} {root} && mount -o remount,ro,bind {root} && "
        + shlex.join(child("read_only", store.root))
    )
    assert (done.stdout, done.returncode) == ("held\n", 0), done.stderr
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*")} == before
    assert store.resolve(Name("support")) == put_stack(store, "a")
