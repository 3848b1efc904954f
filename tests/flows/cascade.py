"""Stacks over one layer that gets a new version: what stands above it goes stale."""

from lamina.core.report import Silent
from lamina.flows import learn, update
from tests.flows.world import learned, write_rows

WHY = "a test"


def grow(store, folder, above):
    """`first` over the base, and stacks over it: (name, what it stands on), each with its rows."""
    learned(store, folder, "first", steps=6, accept_regression=WHY)
    for name, on in above:
        learned(store, folder, name, on, word=name, accept_regression=WHY)


def renew(store, folder):
    """A new version of `first`."""
    data = write_rows(folder / "new.jsonl", 60, word="metal")
    run = update.prepare(store, update.Request("first", [data], accept_regression=WHY), Silent())
    return learn.execute(store, run, Silent())
