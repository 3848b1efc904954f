"""A child of test_crash.py: kills itself at every write, and tells what was left.

`python -m tests.store.crash FOLDER used|new` forks once for each of the calls of CALLS that the
work makes; each fork works on its own copy of the store and dies by SIGKILL just before that call.
"""

import contextlib
import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import filelock  # noqa: F401  imported once, before the forks

from lamina.core.errors import UnknownNameError
from lamina.core.names import Name
from lamina.store.collect import stored_blobs
from lamina.store.layout import Store
from tests.store.make import put_base, put_layer, put_naming, put_stack

Work = Callable[[Path], None]
CALLS = ("replace", "rename", "fsync", "link", "unlink", "utime")


def full_work(root: Path) -> None:
    """Every kind of write that a store in use sees. Can be run again after any interruption."""
    store = Store.open(root)
    source = root.parent / "source"
    source.write_bytes(b"a file to adopt" * 1000)
    store.put_file(source, "text/plain")
    adopted = store.adopt_file(source.with_name("source-2"), "text/plain", title="adopted")
    with store.writer() as writer:
        writer.write(b"streamed")
        writer.commit()
    store.tag_base("pico", put_base(store))
    put_layer(store, "a")
    one, two = put_stack(store, "a"), put_stack(store, "a", "b")
    store.move("agent", one, expected=None)
    put_naming(store, one)
    store.tag(Name("agent", "stable"), two, expected=None)
    with contextlib.suppress(UnknownNameError):  # an earlier run got this far
        store.untag(Name("scratch"))
    for entry in store.entries():
        if entry.ref_name is None and entry.artifactType and "layer" in entry.artifactType:
            store.remove_root(entry.digest)
    store.collect(grace_seconds=0)
    assert adopted.size == 17000


def first_work(root: Path) -> None:
    """Make a store and name something in it."""
    store = Store.open(root)
    store.move("first", put_stack(store, "a"), expected=None)
    store.collect(grace_seconds=0)


def names(root: Path) -> dict[str, dict[str, str]]:
    found = Store.open(root, create=False).names()
    return {n: {t: d.digest for t, d in tags.items()} for n, tags in found.items()}


def prepare(folder: Path, *, used: bool) -> Path:
    """What the work starts from: a store in use, or no store yet."""
    folder.mkdir()
    (folder / "source-2").write_bytes(b"another one to adopt"[:17] * 1000)
    root = folder / "store"
    if used:
        store = Store.open(root)
        store.move("kept", put_stack(store, "kept", "a"), expected=None)
        store.move("scratch", put_stack(store, "scratch"), expected=None)
    return root


def in_fork(job: Callable[[], None]) -> int:
    """Run a job in a fork of this process; its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            job()
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def work_and_die(work: Work, root: Path, at: int) -> None:
    """Do the work, but die just before the `at`-th call of CALLS (from 0)."""
    made = 0

    def deadly(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal made
            if made == at:
                os.kill(os.getpid(), signal.SIGKILL)
            made += 1
            return real(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, deadly(getattr(os, name)))
    work(root)


def look(root: Path, before: dict[str, dict[str, str]]) -> list[str]:
    """What is wrong after a death: damage, or prior names that don't resolve as they did."""
    if not (root / "oci-layout").exists():
        return []  # died while making the store: there is nothing yet
    store = Store.open(root, create=False)
    faults = list(store.verify().faults)
    faults += [f"{d} is half-written" for d, _ in stored_blobs(store) if not store.intact(d)]
    now = names(root)
    for name, tags in before.items():
        for tag, digest in tags.items():
            found = now.get(name, {}).get(tag)
            if found != digest and not (name == "scratch" and found is None):
                faults.append(f"{name}:{tag} is {found} instead of {digest}")
    return faults


def die_everywhere(folder: Path, *, used: bool) -> dict[str, object]:
    work = full_work if used else first_work
    start = prepare(folder / "start", used=used)
    before = names(start) if used else {}
    whole = shutil.copytree(start.parent, folder / "whole") / "store"
    work(whole)
    wanted = names(whole)
    faults: list[str] = []
    for at in itertools.count():
        here = shutil.copytree(start.parent, folder / "here") / "store"
        status = in_fork(lambda: work_and_die(work, here, at))  # noqa: B023
        if status == 0:
            break
        where = f"call {at}: "
        if status != -signal.SIGKILL:
            faults.append(f"{where}ended with {status}")
            break
        faults += [where + fault for fault in look(here, before)]
        work(here)
        faults += [f"{where}again: {fault}" for fault in look(here, {})]
        if names(here) != wanted:
            faults.append(f"{where}the names are {names(here)} in the end")
        left = [path.name for path in here.rglob(".tmp-*")]
        if left:
            faults.append(f"{where}{left} left over")
        shutil.rmtree(here.parent)
    return {"deaths": at, "faults": faults}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    print(json.dumps(die_everywhere(folder, used=sys.argv[2] == "used")))
