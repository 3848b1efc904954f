"""A store, a fake engine over it, and the application: in memory, or on a port."""

import contextlib
import threading
from dataclasses import dataclass, replace

import pytest
from starlette.testclient import TestClient

from lamina.flows.hosting import Host
from lamina.store.layout import Store
from lamina.web.app import create_app
from lamina.web.keys import FILE, Keys
from lamina.web.server import Server, bind, url_of
from lamina.web.settings import Settings
from tests.threads import one_thread  # noqa: F401
from tests.web.engine import Fake


@pytest.fixture(scope="session")
def seed_store(tmp_path_factory):
    """Base `pico`, stacks `support` (two layers) and `sales` over it. Never changed."""
    from tests.stacks import new_store, put_stack

    store = new_store(tmp_path_factory.mktemp("web") / "store", layers=1, vocab=400)
    put_stack(store, "support", 2)
    put_stack(store, "sales", 1)
    return store


@pytest.fixture
def store(seed_store, tmp_path):
    """A store of one's own."""
    import shutil

    shutil.copytree(seed_store.root, tmp_path / "store", symlinks=True)
    return Store.open(tmp_path / "store", create=False)


@dataclass
class World:
    """A server's parts, for tests to look into."""

    store: Store
    engine: Fake
    host: Host
    settings: Settings
    records: list
    client: TestClient | None = None
    url: str = ""
    server: Server | None = None

    @property
    def keys(self):
        return Keys(self.settings.keys_file)

    def said(self, *text, **body):
        """A chat's answer as JSON; checks that it was answered."""
        answered = self.chat(*text, **body)
        assert answered.status_code == 200, answered.text
        return answered.json()

    def chat(self, text="the user asks", *, headers=None, **body):
        given = {"model": "support", "messages": [{"role": "user", "content": text}]} | body
        return self.client.post("/v1/chat/completions", json=given, headers=headers)


@pytest.fixture
def make(seed_store, tmp_path):
    """Makes a World: `make(engine, store=…, stacks=…, base=…, **settings)`."""

    def made(engine=None, *, store=seed_store, stacks=(), base=None, **given):
        engine = engine or Fake()
        records = []
        host = Host(store, lambda *_: engine, stacks=stacks, base=base)
        settings = Settings(keys_file=tmp_path / FILE, log=records.append, port=0)
        settings = replace(settings, **given)
        client = TestClient(
            create_app(host, settings), base_url="http://localhost", raise_server_exceptions=False
        )
        return World(store, engine, host, settings, records, client)

    return made


@pytest.fixture
def world(make):
    """A world as it comes."""
    return make()


@pytest.fixture
def serve(make):
    """Makes a World that listens on a free port of this machine: `with serve(…) as world`."""

    @contextlib.contextmanager
    def serving(engine=None, **given):
        world = make(engine, **given)
        bound = bind(world.settings)
        world.url = url_of(bound)
        ready = threading.Event()
        app = create_app(world.host, world.settings)
        world.server = Server(app, world.host, world.settings, ready.set)
        thread = threading.Thread(target=world.server.serve_on, args=(bound,))
        thread.start()
        assert ready.wait(10)
        try:
            yield world
        finally:
            world.server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()

    return serving
