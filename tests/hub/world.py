"""Pushes to a stand-in of the Hub."""

from lamina.flows.hub import push
from lamina.share.hub import HubPlace
from tests.flows.world import Said


def place(hub, name="org/agent", revision=None):
    return HubPlace(name, revision, hub.endpoint)


def pushed(hub, store, text="second", name="org/agent", revision=None, **options):
    """What `push` says, and what it told people."""
    said = Said()
    return push(store, text, place(hub, name, revision), said, **options), said
