"""A child of test_ladder.py: `python -m tests.flows.refresh_crash FOLDER` (see `deaths`).

The store's `second` stands on an old version of `first`. The refresh asks more of the copy than it
can keep, so the layer is distilled: rows are written, a run is made, trained, landed and judged.
"""

import json
import sys
from pathlib import Path

import scipy.special  # noqa: F401  imported once, before the forks, as the model is
import transformers.models.llama.modeling_llama  # noqa: F401

from lamina.core.evidence import CARRIED_TYPE, CarriedEvidence
from lamina.core.report import Silent
from lamina.flows.inventory import history
from lamina.flows.lineage import status_of
from lamina.flows.refresh import refresh
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from tests.flows.deaths import die_everywhere

STRIDE = 11


def work(root: Path) -> None:
    store = Store.open(root, create=False)
    refresh(store, "second", Silent(), lambda: False, keep=50, at_most="distil", override="a test")


def left(root: Path) -> dict[str, object]:
    """What a refresh that came to its end left."""
    store = Store.open(root, create=False)
    found = resolve(store, "second")
    carried = store.evidence(found.layers[-1].digest, CARRIED_TYPE, CarriedEvidence)
    return {
        "stack": found.digest,
        "moves": [(m["version"], m["passed"] is not None) for m in history(store, "second")],
        "rungs": sorted({c.rung for c in carried}),
        "fresh": all(status.fresh for status in status_of(store, "second")),
        "damage": list(store.verify().faults),
    }


if __name__ == "__main__":
    print(json.dumps(die_everywhere(Path(sys.argv[1]), work, left, STRIDE)))
