"""Kills a verb at every few writes, and runs it again: it must end as if nothing had happened.

Used by children of the tests (`python -m tests.flows.squash_crash FOLDER`), which work on copies
of FOLDER/start/store; each fork dies by SIGKILL just before one of the writes that
`tests.store.crash` counts.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.store.crash import in_fork, look, names, work_and_die

HERE = Path(__file__).resolve().parents[2]


def die_everywhere(
    folder: Path, work: Callable[[Path], None], left: Callable[[Path], dict], stride: int
) -> dict[str, object]:
    """Nothing here computes with torch outside of a fork: its thread pool does not survive one."""
    start = folder / "start" / "store"
    before = names(start)
    fixed = {n: {t: d for t, d in tags.items() if t != "latest"} for n, tags in before.items()}
    whole = shutil.copytree(start, folder / "whole" / "store", symlinks=True)
    faults = [f"undisturbed: ended with {e}" for e in [in_fork(lambda: work(whole))] if e]
    wanted = left(whole)
    deaths = 0
    for at in itertools.count(0, stride):
        here = shutil.copytree(start, folder / "here" / "store", symlinks=True)
        status = in_fork(lambda: work_and_die(work, here, at))  # noqa: B023
        if status == 0:
            break
        if status != -signal.SIGKILL:
            faults.append(f"write {at}: ended with {status}")
            break
        deaths += 1
        faults += [f"write {at}: {fault}" for fault in look(here, fixed)]
        if again := in_fork(lambda: work(here)):  # noqa: B023
            faults.append(f"write {at}: again, it ended with {again}")
        elif (found := left(here)) != wanted:
            faults.append(f"write {at}: {found} in the end instead of {wanted}")
        shutil.rmtree(here.parent)
    return {"deaths": deaths, "faults": faults, "wanted": wanted}


def report_of(child: str, store: Path, folder: Path) -> dict[str, object]:
    """Run a child of that module on a copy of a store; what it found."""
    memory = Path("/dev/shm")  # the page cache survives SIGKILL, so a RAM disk proves as much
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else folder) as place:
        shutil.copytree(store, Path(place) / "start" / "store", symlinks=True)
        done = subprocess.run(
            [sys.executable, "-m", child, place],
            cwd=HERE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    assert found["faults"] == [], f"{found}\n{done.stderr}"
    return found
