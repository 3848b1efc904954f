"""Killed at any moment, or out of room: both stores stay whole, and the next try goes on."""

import random
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lamina.core.names import Name
from lamina.core.report import Silent
from lamina.flows.publish import Landing, pull, push
from lamina.store.layout import Store
from tests.share.stacks import tall
from tests.store.make import put_base
from tests.store.test_disk import mounted

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WORDS = ["a", "b", "c", "d"]
SIZE = 1_500_000
DEATHS = 12


def child(*arguments):
    return [sys.executable, "-m", "tests.share.dies", *map(str, arguments)]


def kill_at(seconds, *arguments):
    """Run, kill -9 that long after it began; whether it was done before."""
    process = subprocess.Popen(
        child(*arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n", process.stderr.read()
    time.sleep(seconds)
    process.kill()
    out, _ = process.communicate(timeout=30)
    return "done" in out


def seconds_of(*arguments):
    process = subprocess.Popen(child(*arguments), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    began = time.monotonic()
    out, _ = process.communicate(timeout=60)
    assert "done" in out
    return time.monotonic() - began


def whole(place, access, folder):
    """Everything that the registry lists is there: a fresh store takes it all, or there is none."""
    from lamina.share.incoming import look
    from lamina.share.reference import parse_place
    from lamina.share.referrers import Repository

    fresh = Store.open(folder)
    put_base(fresh)
    with Repository(parse_place(place), access) as repository:
        if repository.head_manifest("latest") is None:
            return None
        incoming = look(fresh, repository, repository.resolve())
        assert not incoming.left_out
    return pull(fresh, place, access, Silent(), Landing(name="tall"))["stack"]


@pytest.mark.slow
def test_a_push_killed_anywhere(home, registry, access, tmp_path):
    first = tall(home, WORDS[:1], size=SIZE)
    last = seconds_of("push", home.root, registry.place("deaths/timed"))
    place = registry.place("deaths/push")
    push(home, "tall", place, access, Silent())
    stack = tall(home, WORDS, size=SIZE)
    draw = random.Random(1)
    for death in range(DEATHS):
        kill_at(draw.uniform(0, 1.5 * last), "push", home.root, place)
        assert whole(place, access, tmp_path / f"fresh-{death}") in (first.digest, stack.digest)
    push(home, "tall", place, access, Silent())
    assert whole(place, access, tmp_path / "end") == stack.digest
    assert home.verify().clean


@pytest.mark.slow
def test_a_pull_killed_anywhere(home, registry, access, tmp_path):
    stack = tall(home, WORDS, size=SIZE)
    place = registry.place("deaths/pull")
    push(home, "tall", place, access, Silent())
    timed = Store.open(tmp_path / "timed")
    put_base(timed)
    last = seconds_of("pull", timed.root, place)
    draw = random.Random(2)
    away = Store.open(tmp_path / "theirs")
    put_base(away)
    for death in range(DEATHS):
        if death % 4 == 0:  # from the beginning again
            away = Store.open(tmp_path / f"theirs-{death}")
            put_base(away)
        kill_at(draw.uniform(0, 1.2 * last), "pull", away.root, place)
        report = Store.open(away.root).verify()
        assert report.clean, report.faults
    pull(away, place, access, Silent(), Landing(name="tall"))
    assert away.resolve(Name("tall")) == stack
    assert away.verify().clean
    away.collect(grace_seconds=0)
    assert not list(away.root.rglob(".tmp-*"))


def test_a_full_disk(home, registry, access, tmp_path):
    place = registry.place("deaths/disk")
    tall(home, ["small"], size=20_000)
    push(home, "tall", place.replace(":latest", ":small"), access, Silent())
    tall(home, WORDS, size=SIZE)
    push(home, "tall", place, access, Silent())
    disk = tmp_path / "disk"
    disk.mkdir()
    work = shlex.join(child("small_disk", disk / "store", place))
    done = mounted(f"mount -t tmpfs -o size=3m none {shlex.quote(str(disk))} && {work}")
    assert (done.stdout, done.returncode) == ("held\n", 0), done.stderr


@pytest.mark.parametrize("verb", ["push", "pull"])
def test_an_interrupt_stops_at_once(home, registry, access, tmp_path, verb):
    """Ctrl-C while bytes move slowly: no waiting for them, and nothing half is left."""
    import signal

    from tests.share.proxy import Proxy

    tall(home, WORDS, size=SIZE)
    place = registry.place(f"deaths/interrupt-{verb}")
    if verb == "pull":
        push(home, "tall", place, access, Silent())
    root = home.root if verb == "push" else tmp_path / "theirs"
    put_base(Store.open(root))
    with Proxy(registry.port, slow=0.05) as proxy:
        slow = place.replace(str(registry.port), str(proxy.port))
        process = subprocess.Popen(
            child(verb, root, slow), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            # a suite that a shell started in the background ignores it, and so would its children
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        process.stdout.readline()
        time.sleep(1.0)
        assert process.poll() is None
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert time.monotonic() - began < 5
    assert b"KeyboardInterrupt" in err
    assert Store.open(root).verify().clean
