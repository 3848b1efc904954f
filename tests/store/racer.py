"""A child of test_processes.py: waits for a line on stdin, then moves names as fast as it can.

`python -m tests.store.racer STORE NUMBER` prints {"won": [...], "versions": [...]}.
"""

import json
import sys
from pathlib import Path

from lamina.core.errors import StoreError
from lamina.core.names import Name
from lamina.store.layout import Store
from lamina.store.refs import ANYTHING
from tests.store.make import put_stack

ROUNDS = 6


def main(root: Path, number: str) -> None:
    store = Store.open(root)
    mine = [put_stack(store, f"{number}-{turn}") for turn in range(ROUNDS)]
    print("ready", flush=True)
    sys.stdin.readline()
    won, versions = [], []
    for turn, stack in enumerate(mine):
        try:
            store.tag(Name(f"prize-{turn}"), stack, expected=None)
            won.append(turn)
        except StoreError as error:
            if "somebody else moved" not in error.message:
                raise
        versions.append(store.move("shared", stack, expected=ANYTHING))
        store.collect()
    print(json.dumps({"won": won, "versions": versions, "digests": [s.digest for s in mine]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
