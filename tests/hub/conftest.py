"""A stand-in of the Hub, and a store with trained stacks."""

import shutil

import pytest

from lamina.store.layout import Store
from tests.flows.world import FIRST, SECOND, learned
from tests.hub.server import serve
from tests.stacks import new_store
from tests.threads import one_thread  # noqa: F401


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A store with `first`, and `second` over it; not to be changed."""
    root = tmp_path_factory.mktemp("trained")
    store = new_store(root / "store", layers=1)
    learned(store, root, **FIRST)
    learned(store, root, **SECOND)
    return store


@pytest.fixture
def store(trained, tmp_path):
    """A copy of it, free to change."""
    shutil.copytree(trained.root, tmp_path / "store", symlinks=True)
    return Store.open(tmp_path / "store", create=False)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub without Xet, and a token that may write to `org`."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the library's retries
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    with serve() as state:
        yield state
