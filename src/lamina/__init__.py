"""lamina: version control and continuous improvement for small open language models.

A model is a base plus a stack of low-rank layers. `import lamina` is cheap; the verbs load what
they need when they are first used.
"""

from typing import TYPE_CHECKING, Any

from lamina.core.version import __version__

if TYPE_CHECKING:
    from lamina.api import Stack, accept, load, merge, pull, review
    from lamina.core.recipe import Recipe

__all__ = ["Recipe", "Stack", "__version__", "accept", "load", "merge", "pull", "review"]

_HOMES = {
    "Recipe": "lamina.core.recipe",
    "Stack": "lamina.api",
    "accept": "lamina.api",
    "load": "lamina.api",
    "merge": "lamina.api",
    "pull": "lamina.api",
    "review": "lamina.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import lamina` stays instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lamina' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
