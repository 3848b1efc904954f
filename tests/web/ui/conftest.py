import shutil

import pytest

from lamina.store.layout import Store

pytest.importorskip("fastapi")


@pytest.fixture
def store(made, tmp_path):
    """A copy of the small trained store: `sums` on a pico base, `times` over it."""
    home = shutil.copytree(made, tmp_path / "home", symlinks=True)
    return Store.open(home, create=False)
