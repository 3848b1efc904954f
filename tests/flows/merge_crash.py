"""A child of test_merge.py: `python -m tests.flows.merge_crash FOLDER` (see `deaths`)."""

import json
import sys
from pathlib import Path

import scipy.special  # noqa: F401  imported once, before the forks, as the model is
import transformers.models.llama.modeling_llama  # noqa: F401

from lamina.core.evidence import CERTIFICATE_TYPE, CertificateEvidence
from lamina.core.report import Silent
from lamina.flows.inventory import history
from lamina.flows.merge import merge
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from tests.flows.deaths import die_everywhere

STRIDE = 9


def work(root: Path) -> None:
    store, both = Store.open(root, create=False), ["second", "third"]
    merge(store, both, method="concat", name="both", override="a test", reporter=Silent())


def left(root: Path) -> dict[str, object]:
    """What a merge that came to its end left."""
    store = Store.open(root, create=False)
    found = resolve(store, "both")
    layer = found.layers[-1].digest
    return {
        "stack": found.digest,
        "layer": layer,
        "moves": [(m["version"], m["passed"] is not None) for m in history(store, "both")],
        "certified": bool(store.evidence(layer, CERTIFICATE_TYPE, CertificateEvidence)),
        "damage": list(store.verify().faults),
    }


if __name__ == "__main__":
    print(json.dumps(die_everywhere(Path(sys.argv[1]), work, left, STRIDE)))
