"""A child of test_squash.py: `python -m tests.flows.squash_crash FOLDER` (see `deaths`)."""

import json
import sys
from pathlib import Path

import scipy.special  # noqa: F401  imported once, before the forks, as the model is
import transformers.models.llama.modeling_llama  # noqa: F401

from lamina.core.evidence import CERTIFICATE_TYPE, CertificateEvidence
from lamina.core.report import Silent
from lamina.flows.inventory import history
from lamina.flows.squash import squash
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from tests.flows.deaths import die_everywhere

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


if __name__ == "__main__":
    print(json.dumps(die_everywhere(Path(sys.argv[1]), work, left, STRIDE)))
