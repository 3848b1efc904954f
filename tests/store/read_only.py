"""A child of test_disk.py: everything that reads works on a read-only store, the rest says why not.

`python -m tests.store.read_only STORE`
"""

import sys
from pathlib import Path

import pytest

from lamina.core.errors import ReadOnlyStoreError
from lamina.core.names import Name
from lamina.store.layout import Store
from lamina.store.refs import ANYTHING
from tests.store.make import IDENTITY_OF_BASE, put_layer


def refuses(job):
    with pytest.raises(ReadOnlyStoreError, match="not allowed to write"):
        job()


def main(root: Path) -> None:
    store = Store.open(root)
    stack = store.resolve(Name("support", "v1"))
    config = store.manifest(stack.digest).config
    assert store.read(config.digest) == store.path(config.digest).read_bytes()
    assert store.verify().clean
    assert store.collect(grace_seconds=0, dry_run=True).blobs == ()
    store.put_bytes(store.read(config.digest), config.mediaType)  # there already
    store.adopt_file(store.path(config.digest), config.mediaType)
    refuses(lambda: store.put_bytes(b"new", "text/plain"))
    refuses(lambda: store.put_file(Path(__file__), "text/plain"))
    refuses(lambda: store.adopt_file(Path(__file__), "text/plain"))
    refuses(lambda: put_layer(store, "new"))
    refuses(lambda: store.put_stack(IDENTITY_OF_BASE, []))
    refuses(lambda: store.move("other", stack, expected=ANYTHING))
    refuses(lambda: store.tag(Name("support"), stack, expected=ANYTHING))
    refuses(lambda: store.untag(Name("support")))
    refuses(lambda: store.collect(grace_seconds=0))
    refuses(lambda: Store.open(root / "cache" / "store"))
    print("held")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
