"""A child of test_merge.py: kills a merge at every few writes, and merges again.

`python -m tests.flows.merge_crash FOLDER` works on copies of FOLDER/start/store; each fork dies by
SIGKILL just before one of the writes that `tests.store.crash` counts.
"""

import itertools
import json
import shutil
import signal
import sys
from pathlib import Path

import torch

from lamina.core.manifests import CERTIFICATE_TYPE, CertificateEvidence
from lamina.core.report import Silent
from lamina.flows.inventory import history
from lamina.flows.merge import merge
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from tests.store.crash import in_fork, look, names, work_and_die

STRIDE = 9
"""Deaths are this many writes apart."""


def work(root: Path) -> None:
    store = Store.open(root, create=False)
    merge(
        store, ["second", "third"], method="concat", name="both", override="a test",
        reporter=Silent(),
    )  # fmt: skip


def again(root: Path, wanted: list[str]) -> list[str]:
    """Merge once more, and say what is not as an undisturbed merge leaves it."""
    work(root)
    store = Store.open(root, create=False)
    faults = list(store.verify().faults)
    found = resolve(store, "both")
    if [found.layers[-1].digest, found.digest] != wanted:
        faults.append(f"the name points at {found.digest}")
    moves = history(store, "both")
    if [(m["version"], m["passed"] is not None) for m in moves] != [(1, True)]:
        faults.append(f"the moves on record are {moves}")
    if not store.evidence(found.layers[-1].digest, CERTIFICATE_TYPE, CertificateEvidence):
        faults.append("there is no certificate")
    return faults


def die_everywhere(folder: Path) -> dict[str, object]:
    start = folder / "start" / "store"
    before = names(start)
    whole = shutil.copytree(start, folder / "whole" / "store", symlinks=True)
    work(whole)
    stack = resolve(Store.open(whole, create=False), "both")
    wanted = [stack.layers[-1].digest, stack.digest]
    faults: list[str] = []
    for at in itertools.count(0, STRIDE):
        here = shutil.copytree(start, folder / "here" / "store", symlinks=True)
        status = in_fork(lambda: work_and_die(work, here, at))  # noqa: B023
        if status == 0:
            break
        if status != -signal.SIGKILL:
            faults.append(f"write {at}: ended with {status}")
            break
        faults += [f"write {at}: {fault}" for fault in look(here, before)]
        faults += [f"write {at}, again: {fault}" for fault in again(here, wanted)]
        shutil.rmtree(here.parent)
    return {"deaths": at // STRIDE, "faults": faults}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(die_everywhere(Path(sys.argv[1]))))
