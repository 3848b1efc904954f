import pytest

from lamina.store.layout import Store


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")
