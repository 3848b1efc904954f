import base64
import json

import pytest

from lamina.share.wire import Access, Patience
from lamina.store.layout import Store
from tests.share import registries

QUICK = Patience(attempts=8, first_seconds=0.01, most_seconds=0.1, silent_seconds=20)


@pytest.fixture(scope="session")
def registry(tmp_path_factory):
    """A real registry; each test takes a repository of its own."""
    if registries.PROGRAM is None:
        pytest.skip("docker-registry is not installed (apt-get install docker-registry)")
    with registries.running(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def place(registry, request):
    """A repository of this test's own, as `oci://…:latest`."""
    word = "".join(c if c.isalnum() else "-" for c in request.node.name.lower()).strip("-")
    word = "-".join(part for part in word.split("-") if part)
    return registry.place(f"test/{word}")


@pytest.fixture
def home(tmp_path):
    return Store.open(tmp_path / "mine")


@pytest.fixture
def away(tmp_path):
    return Store.open(tmp_path / "theirs")


@pytest.fixture
def access():
    return Access(patience=QUICK)


def config_with(path, host, secret):
    """A docker config that knows `user:password` for one host."""
    packed = base64.b64encode(secret.encode()).decode()
    path.write_text(json.dumps({"auths": {host: {"auth": packed}}}))
    return path
