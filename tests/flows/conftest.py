import pytest

from tests.threads import one_thread  # noqa: F401


@pytest.fixture(scope="session")
def _seed_store(tmp_path_factory):
    """A store with the base and two trained stacks, `first` and `second` over it; never changed."""
    from tests.flows.world import FIRST, SECOND, learned
    from tests.stacks import new_store

    root = tmp_path_factory.mktemp("flows")
    store = new_store(root / "store", layers=1)
    learned(store, root, **FIRST)
    learned(store, root, **SECOND)
    return store


@pytest.fixture
def store(_seed_store, tmp_path):
    """A store of one's own with `pico`, `first` and `second`."""
    import shutil

    from lamina.store.layout import Store

    shutil.copytree(_seed_store.root, tmp_path / "store", symlinks=True)
    return Store.open(tmp_path / "store", create=False)
