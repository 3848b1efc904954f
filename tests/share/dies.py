"""A child of test_deaths.py: pushes or pulls, to be killed. `python -m tests.share.dies VERB …`."""

import sys
from pathlib import Path

from lamina.core.report import Silent
from lamina.flows.publish import Landing, pull, push
from lamina.share.wire import Access, Patience
from lamina.store.layout import Store

access = Access(patience=Patience(first_seconds=0.01, most_seconds=0.1))


def main(verb: str, root: Path, place: str) -> None:
    store = Store.open(root)
    print("begun", flush=True)
    if verb == "push":
        push(store, "tall", place, access, Silent())
    else:
        pull(store, place, access, Silent(), Landing(name="tall"))
    print("done", flush=True)


def small_disk(root: Path, place: str) -> None:
    """Pull onto a disk that can't hold it, then onto it with room made."""
    import pytest

    from lamina.core.errors import StoreFullError
    from lamina.core.names import Name
    from lamina.share import transfer
    from tests.store.make import put_base

    store = Store.open(root)
    put_base(store)
    with pytest.raises(StoreFullError, match="are free"):
        pull(store, place, access, Silent(), Landing(name="tall"))
    transfer._check_room = lambda *_: None  # as where a quota is what is full
    for _ in range(2):
        with pytest.raises(StoreFullError, match="no space left"):
            pull(store, place, access, Silent(), Landing(name="tall"))
        assert store.verify().clean
        assert not list(root.rglob(".tmp-*"))
        assert not store.names()
    store.collect(grace_seconds=0)
    pulled = pull(store, place.replace(":latest", ":small"), access, Silent(), Landing(name="tall"))
    assert store.resolve(Name("tall")).digest == pulled["stack"]
    assert store.verify().clean
    print("held")


if __name__ == "__main__":
    if sys.argv[1] == "small_disk":
        small_disk(Path(sys.argv[2]), sys.argv[3])
    else:
        main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
