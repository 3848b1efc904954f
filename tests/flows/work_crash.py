"""A child of test_work.py: `python -m tests.flows.work_crash FOLDER` (see `deaths`)."""

import json
import sys
from pathlib import Path

import scipy.special  # noqa: F401  imported once, before the forks, as the model is
import transformers.models.llama.modeling_llama  # noqa: F401

from lamina.core.report import Silent
from lamina.flows import job, learn  # noqa: F401
from lamina.flows.inventory import history
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from tests.flows.deaths import die_everywhere
from tests.flows.world import request, write_rows

STRIDE = 4
"""Deaths are this many writes apart."""


def work(root: Path) -> None:
    """Two commands that are one work: the second takes up what the first made, or trains."""
    store = Store.open(root, create=False)
    rows = write_rows(root.parent / "rows.jsonl")
    for _ in range(2):
        learn.execute(store, learn.prepare(store, request(rows), Silent()), Silent())


def left(root: Path) -> dict[str, object]:
    """What a training that came to its end left: digests, moves, roots, damage."""
    store = Store.open(root, create=False)
    found = resolve(store, "mine")
    layer = found.layers[0].digest
    return {
        "stack": found.digest,
        "layer": layer,
        "moves": [(m["version"], m["passed"]) for m in history(store, "mine")],
        "damage": list(store.verify().faults),
    }


if __name__ == "__main__":
    print(json.dumps(die_everywhere(Path(sys.argv[1]), work, left, STRIDE)))
