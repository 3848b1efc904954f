import pytest

from tests.stacks import new_store
from tests.threads import one_thread  # noqa: F401

FAMILIES = {
    "llama": {},
    "qwen3": {"tied": False},
    "gemma3_text": {"sliding_window": 512, "query_pre_attn_scalar": 8},
}


@pytest.fixture(scope="session")
def _stores(tmp_path_factory):
    """A store with a pico base for each family; never changed."""
    root = tmp_path_factory.mktemp("imports")
    return {
        family: new_store(root / family, family=family, **extra)
        for family, extra in FAMILIES.items()
    }


@pytest.fixture
def stores(_stores, tmp_path):
    """Stores of one's own, by family."""
    import shutil

    from lamina.store.layout import Store

    def store(family):
        shutil.copytree(_stores[family].root, tmp_path / f"store-{family}", symlinks=True)
        return Store.open(tmp_path / f"store-{family}", create=False)

    return store


@pytest.fixture
def store(stores):
    return stores("llama")
