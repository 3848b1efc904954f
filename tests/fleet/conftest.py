import pytest

from tests.fleet.hosts import Hosts, why_not
from tests.flows.world import write_rows
from tests.stacks import new_store


@pytest.fixture(scope="session")
def hosts():
    """Two hosts with a Ray cluster over both."""
    if why := why_not():
        pytest.skip(why)
    pytest.importorskip("ray", reason="needs lamina[ray]")
    with Hosts() as made:
        yield made


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A store with a pico base, and rows beside it."""
    folder = tmp_path_factory.mktemp("store")
    store = new_store(folder / "store")
    write_rows(folder / "rows.jsonl", 60)
    return store
