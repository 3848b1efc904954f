"""Every row format by its name, and telling which one a file is written in."""

import difflib
from collections.abc import Sequence
from types import MappingProxyType

from lamina.core.errors import UsageError
from lamina.data.readers.alpaca import ALPACA
from lamina.data.readers.chat import CHAT
from lamina.data.readers.completion import COMPLETION
from lamina.data.readers.format import RowFormat, RowValue
from lamina.data.readers.images import IMAGES
from lamina.data.readers.sharegpt import SHAREGPT
from lamina.data.readers.text import TEXT

FORMATS = MappingProxyType(
    {found.name: found for found in (CHAT, SHAREGPT, ALPACA, COMPLETION, IMAGES, TEXT)}
)
"""In the order in which they are tried: a row that fits several is the first of them."""

JOINT = "+"
"""Between the formats of a data set whose files are written in several: `chat+text`."""


def formats_named(name: str | None) -> tuple[RowFormat, ...]:
    """The formats that `chat`, `chat+text` or None (any) allows. Raises UsageError."""
    if name is None:
        return tuple(FORMATS.values())
    unknown = [part for part in name.split(JOINT) if part not in FORMATS]
    if unknown:
        near = [n for part in unknown for n in difflib.get_close_matches(part, FORMATS, n=1)]
        raise UsageError(
            f"unknown data format {name!r}",
            hint=(f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(FORMATS)}",
        )
    return tuple(FORMATS[part] for part in name.split(JOINT))


def detect(rows: Sequence[RowValue], allowed: Sequence[RowFormat] | None = None) -> str | None:
    """Name of the format that most of the first rows fit, None where they fit none."""
    formats = tuple(FORMATS.values()) if allowed is None else allowed
    fits = {found.name: sum(map(found.matches, rows)) for found in formats}
    best = max(fits, key=fits.__getitem__)
    return best if fits[best] else None
