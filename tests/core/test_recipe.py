"""Recipes as they are written down and read."""

from lamina.core.recipe import Recipe


def test_no_patience_is_written_down():
    for given in (None, 0):
        found = Recipe(patience=given)
        assert found.patience == 0
        assert Recipe.parse(found.to_bytes(), "it") == found
    assert Recipe().patience == 4
