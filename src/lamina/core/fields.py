"""Grammar and bounds of fields in manifests and configs, which strangers may have written."""

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, StringConstraints

from lamina.core.errors import UsageError
from lamina.core.names import Name

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_MODULE = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
MAX_RANK = 16384
"""Highest rank of an update that is read."""
MAX_NEW_TOKENS = 32768
"""Longest answer that an exam may ask for."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
MediaType = Annotated[str, StringConstraints(pattern="^[!-~][ -~]{0,254}$")]


def layer_name(text: str) -> str:
    """A layer is called as a stack could be. Raises ValueError."""
    try:
        return Name(text).name
    except UsageError as error:
        raise ValueError(error.message) from None


def module_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of linears: dotted words. Raises ValueError."""
    for name in names:
        if len(name) > 300 or not _MODULE.fullmatch(name):
            raise ValueError(f"{name[:100]!r} is no module's name")
    return names


def check_file_names(titles: Sequence[str]) -> None:
    """Refuse titles that are no plain file names (they become files), or that come twice.

    Raises ValueError.
    """
    strange = next((title for title in titles if not _FILE_NAME.fullmatch(title)), None)
    if strange is not None:
        raise ValueError(f"{strange[:100]!r} is no plain file name")
    if len(set(titles)) != len(titles):
        raise ValueError("two blobs have the same file name")
