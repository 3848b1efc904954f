"""Stores that are damaged, full, read-only or in use by others."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.cli.program import PROGRAM, Result, environment, wait
from tests.made import QUICK

ROOT = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("unshare") is None,
    reason="mounts need root on Linux",
)


def mounted(script, program, *commands):
    """Run commands after `script` in a mount namespace of their own; $STORE is the store."""
    given = json.dumps([[str(word) for word in command] for command in commands])
    several = [sys.executable, "-m", "tests.cli.several", given]
    child = subprocess.run(
        ["unshare", "-m", "sh", "-ec", f'{script}; exec "$@"', "sh", *several],
        env=environment(program.home, STORE=str(program.home)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    return [Result(*result) for result in json.loads(child.stdout)]


def weights(program, name="sums"):
    """The blob of a stack's top adapter."""
    layer = program("show", name, "--json").json["layers"][-1]["layer"].removeprefix("sha256:")
    manifest = json.loads((program.home / "blobs/sha256" / layer).read_text())
    (blob,) = [b for b in manifest["layers"] if b["mediaType"].endswith("safetensors")]
    return program.home / "blobs/sha256" / blob["digest"].removeprefix("sha256:")


def damage(path, how):
    os.chmod(path, 0o644)
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif how == "truncated":
        path.write_bytes(data[:-7])
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
def test_a_damaged_blob_is_named_and_never_used(program, rows, how):
    path = weights(program)
    damage(path, how)
    result = program("verify", "--json")
    assert result.code == 1
    assert path.name in str(result.json["faults"])
    assert path.name in program("verify").out
    program("chat", "sums", "--once", "hello").refused(path.name)
    program("train", "--on", "sums", "--data", rows, "--as", "x", *QUICK).refused(path.name)
    program("list").done()
    program("show", "sums").done()


def test_a_damaged_base_is_never_used(program):
    base = program("base", "show", "pico", "--json").json
    (file,) = [f for f in base["files"] if f["name"] == "model.safetensors"]
    damage(program.home / "blobs/sha256" / file["digest"].removeprefix("sha256:"), "flipped")
    program("chat", "pico", "--once", "hello").refused(file["digest"])


@pytest.mark.parametrize("content", [b"", b"{", b'{"schemaVersion": 2}', b"\xff", b"[]"])
def test_a_damaged_index_is_said_and_not_reset(program, content):
    path = program.home / "index.json"
    path.write_bytes(content)
    for command in (["list"], ["log"], ["gc"], ["chat", "sums", "--once", "x"]):
        program(*command).refused("index.json")
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_a_damaged_run_is_said(program, content):
    path = next(program.home.glob("runs/*/run.json"))
    path.write_bytes(content)
    program("runs", "--all").refused(path.parent.name)


@ROOT
@pytest.mark.slow
def test_a_read_only_store_can_be_read(program, rows):
    program("chat", "sums", "--once", "x", "--max-tokens", 1).done()  # fills the cache of links
    program("rm", "times").done()
    reading = (
        ["list", "--json"],
        ["show", "sums"],
        ["log"],
        ["runs", "--all"],
        ["verify"],
        ["chat", "sums", "--once", "hello", "--max-tokens", 2],
        ["chat", "pico", "--once", "hello", "--max-tokens", 2],
    )
    writing = (
        ["rm", "sums"],
        ["gc", "--grace", 0],
        ["train", "--on", "pico", "--data", rows, "--as", "x", *QUICK],
        ["tag", "sums", "other"],
        ["base", "pull", rows.parent],
    )
    script = 'mount --bind "$STORE" "$STORE"; mount -o remount,ro,bind "$STORE"'
    results = mounted(script, program, *reading, *writing)
    for result in results[: len(reading)]:
        result.done()
    for result in results[len(reading) : -1]:
        result.refused("not allowed to write")
    results[-1].refused()


@ROOT
def test_a_full_disk_is_said_and_leaves_a_sound_store(program, rows):
    script = (
        'cp -a "$STORE" "$STORE.full"; mount -t tmpfs -o size=2m none "$STORE"; '
        'cp -a "$STORE.full/." "$STORE"; rm -r "$STORE.full"; '
        'dd if=/dev/zero of="$STORE/runs/filler" bs=4k 2>/dev/null || true'
    )
    train = ["train", "--on", "pico", "--data", rows, "--as", "x", *QUICK]
    said, listed, verified = mounted(script, program, train, ["list", "--json"], ["verify"])
    said.refused("no space left")
    assert [s["name"] for s in listed.done().json["stacks"]] == ["sums", "times"]
    verified.done()


def test_a_file_size_limit_is_a_full_disk(program, pico):
    command = ["sh", "-c", 'ulimit -f 16; exec "$@"', "sh", *PROGRAM]
    child = subprocess.run(
        [*command, "base", "pull", str(pico), "--as", "again"],
        env=environment(program.home.parent / "fresh", PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    Result(child.returncode, child.stdout, child.stderr).refused("no space left")
    left = [p for p in (program.home.parent / "fresh").rglob(".tmp-*") if p.is_file()]
    assert left == []


@pytest.mark.slow
def test_two_processes_that_name_at_once_both_succeed(program):
    children = [program.child("tag", "times", f"copy-{n}") for n in range(2)]
    for child in children:
        wait(child).done()
    names = {s["name"] for s in program("list", "--json").json["stacks"]}
    assert {"copy-0", "copy-1"} <= names
    assert program("verify").done().code == 0


def test_two_processes_that_give_one_name_agree_or_one_is_told(program):
    children = [program.child("tag", stack, "copy", "--json") for stack in ("sums", "times")]
    results = [wait(child) for child in children]
    assert 0 in {r.code for r in results}, results
    for result in results:
        if result.code:
            result.refused("copy", code=result.code)
    moves = program("log", "copy", "--json").json["moves"]
    assert [m["version"] for m in moves] == list(range(len(moves), 0, -1))
    assert len(moves) == sum(r.code == 0 for r in results)
