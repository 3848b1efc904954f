"""A child of test_contribute.py: `python -m tests.flows.accept_crash FOLDER` (see `deaths`)."""

import json
import sys
from pathlib import Path

import scipy.special  # noqa: F401  imported once, before the forks, as the model is
import transformers.models.llama.modeling_llama  # noqa: F401

from lamina.core.evidence import REVIEW_TYPE
from lamina.core.proposals import ReviewEvidence
from lamina.core.report import Silent
from lamina.flows.accept import accept
from lamina.flows.inventory import history
from lamina.flows.offers import offered
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from tests.flows.deaths import die_everywhere

OFFER = "offer.oci.tar"
"""Beside the layout, so that it goes where the store goes."""
STRIDE = 13
"""Deaths are this many writes apart: an acceptance makes about a hundred."""


def work(root: Path) -> None:
    store = Store.open(root, create=False)
    with offered(str(root / OFFER)) as offer:
        accept(store, offer, Silent(), author="max", override="a test", despite="so")


def left(root: Path) -> dict[str, object]:
    """What an acceptance that came to its end left: digests, moves, damage."""
    store = Store.open(root, create=False)
    found = resolve(store, "second")
    return {
        "stack": found.digest,
        "layers": [layer.digest for layer in found.layers],
        "moves": [(m["version"], m["passed"] is not None) for m in history(store, "second")],
        "reviewed": bool(store.evidence(found.digest, REVIEW_TYPE, ReviewEvidence)),
        "damage": list(store.verify().faults),
    }


if __name__ == "__main__":
    print(json.dumps(die_everywhere(Path(sys.argv[1]), work, left, STRIDE)))
