"""Settings for libraries never overrule the user's, and go where they were for a block only."""

import os

from lamina.core.libraries import tell, told

NAME, OTHER = "LAMINA_TEST_ONE", "LAMINA_TEST_TWO"


def test_what_is_said_already_stays(monkeypatch):
    monkeypatch.setenv(NAME, "mine")
    monkeypatch.setenv(OTHER, "")
    tell({NAME: "yours"})
    assert os.environ[NAME] == "mine"
    with told({NAME: "yours", OTHER: "too"}):
        assert (os.environ[NAME], os.environ[OTHER]) == ("mine", "")
    assert (os.environ[NAME], os.environ[OTHER]) == ("mine", "")


def test_for_a_block(monkeypatch):
    monkeypatch.delenv(NAME, raising=False)
    with told({NAME: "yours"}):
        assert os.environ[NAME] == "yours"
    assert NAME not in os.environ
