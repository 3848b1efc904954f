"""A child of test_squash.py: kills a squash at every few writes, and squashes again.

`python -m tests.flows.squash_crash FOLDER` works on copies of FOLDER/start/store; each fork dies
by SIGKILL just before one of the writes that `tests.store.crash` counts.
"""

import itertools
import json
import shutil
import signal
import sys
from pathlib import Path

import scipy.special  # noqa: F401  imported once, before the forks, as the model is
import transformers.models.llama.modeling_llama  # noqa: F401

from lamina.core.manifests import CERTIFICATE_TYPE, CertificateEvidence
from lamina.core.report import Silent
from lamina.flows.inventory import history
from lamina.flows.squash import squash
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from tests.store.crash import in_fork, look, names, work_and_die

STRIDE = 5
"""Deaths are this many writes apart: a squash makes more than a hundred."""


def work(root: Path) -> None:
    squash(Store.open(root, create=False), "second", rank=3, override="a test", reporter=Silent())


def left(root: Path) -> dict[str, object]:
    """What a squash that came to its end left: digests, moves, damage."""
    store = Store.open(root, create=False)
    found = resolve(store, "second")
    layer = found.layers[0].digest
    return {
        "stack": found.digest,
        "layer": layer,
        "moves": [(m["version"], m["passed"] is not None) for m in history(store, "second")],
        "certified": bool(store.evidence(layer, CERTIFICATE_TYPE, CertificateEvidence)),
        "damage": list(store.verify().faults),
    }


def die_everywhere(folder: Path) -> dict[str, object]:
    """Nothing here computes with torch outside of a fork: its thread pool does not survive one."""
    start = folder / "start" / "store"
    before = names(start)
    fixed = {n: {t: d for t, d in tags.items() if t != "latest"} for n, tags in before.items()}
    whole = shutil.copytree(start, folder / "whole" / "store", symlinks=True)
    faults = [f"undisturbed: ended with {e}" for e in [in_fork(lambda: work(whole))] if e]
    wanted = left(whole)
    deaths = 0
    for at in itertools.count(0, STRIDE):
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
            faults.append(f"write {at}: squashing again ended with {again}")
        elif (found := left(here)) != wanted:
            faults.append(f"write {at}: {found} in the end instead of {wanted}")
        shutil.rmtree(here.parent)
    if wanted["damage"] or not wanted["certified"]:
        faults.append(f"undisturbed: {wanted}")
    return {"deaths": deaths, "faults": faults}


if __name__ == "__main__":
    print(json.dumps(die_everywhere(Path(sys.argv[1]))))
