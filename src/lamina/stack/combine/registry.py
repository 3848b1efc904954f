"""Every merge method by its name."""

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from lamina.core.errors import UsageError
from lamina.stack.combine.average import AVERAGE
from lamina.stack.combine.concat import CONCAT
from lamina.stack.combine.dare import DARE
from lamina.stack.combine.knots import KNOTS
from lamina.stack.combine.learned import LEARNED
from lamina.stack.combine.method import Method
from lamina.stack.combine.ties import TIES

METHODS: Mapping[str, Method] = MappingProxyType(
    {method.name: method for method in (CONCAT, AVERAGE, TIES, DARE, KNOTS, LEARNED)}
)


def method_named(name: str) -> Method:
    """The method of this name. Raises UsageError listing those there are."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        raise UsageError(
            f"unknown merge method {name!r}",
            hint=(f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(METHODS)}",
        )
    return METHODS[name]
