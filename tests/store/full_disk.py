"""A child of test_disk.py: fills its disk (or its file size limit) and checks what is left.

`python -m tests.store.full_disk STORE BYTES limit|disk`: no file can have more than BYTES.
"""

import resource
import sys
from pathlib import Path

import pytest

from lamina.core.digest import digest_bytes
from lamina.core.errors import StoreFullError
from lamina.core.names import Name
from lamina.store.layout import Store
from tests.store.make import put_layer, put_stack


def refuses(job):
    with pytest.raises(StoreFullError, match="no space left"):
        job()


def stream(store, size):
    with store.writer() as writer:
        for _ in range(64):
            writer.write(b"y" * (size // 16))
        writer.commit()


def grow_index(store, kept):
    """Write longer and longer indexes until one doesn't fit."""
    for number in range(10_000):
        store.tag(Name("n" * 90, f"t{number}".ljust(120, "t")), kept, expected=None)


def main(root: Path, size: int, how: str) -> None:
    store = Store.open(root)
    kept = put_stack(store, "kept")
    store.move("kept", kept, expected=None)
    source = root.parent / "source"
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = b"x" * (2 * size)
    if how == "limit":
        source.write_bytes(big)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited[1]))
        refuses(lambda: store.put_file(source, "text/plain"))
    refuses(lambda: store.put_bytes(big, "text/plain"))
    refuses(lambda: put_layer(store, "big", size=2 * size))
    refuses(lambda: stream(store, size))
    refuses(lambda: grow_index(store, kept))
    before = store.index_path.read_bytes()
    refuses(lambda: store.tag(Name("n" * 100, "t" * 128), kept, expected=None))
    assert store.index_path.read_bytes() == before
    assert not store.has(digest_bytes(big))
    assert [path.name for path in root.rglob(".tmp-*")] == []
    again = Store.open(root)
    assert again.verify().clean, again.verify().faults
    assert again.resolve(Name("kept", "v1")) == kept
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    if how == "limit":
        store.move("kept", store.put_stack(kept.digest, []), expected=kept.digest)
    store.collect(grace_seconds=0)
    assert again.verify().clean
    print("held")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
