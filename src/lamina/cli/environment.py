"""The one place that reads the environment.

LAMINA_HOME    the store's folder (default: the platform's data folder)
LAMINA_AUTHOR  author recorded in the layers you train (default: none)
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lamina.core.errors import UsageError

if TYPE_CHECKING:
    from lamina.store.layout import Store


def home() -> Path:
    """The store's folder. Raises UsageError when there is no home folder to put it in."""
    try:
        return _home()
    except RuntimeError as error:
        raise UsageError(
            f"no place for the store: {error}", hint="set LAMINA_HOME to a folder"
        ) from None


def _home() -> Path:
    given = os.environ.get("LAMINA_HOME")
    if given:
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "lamina"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "lamina"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "lamina"


def author() -> str | None:
    """Who signs as author of new layers."""
    return os.environ.get("LAMINA_AUTHOR") or None


def open_store() -> "Store":
    """The user's store, made on first use."""
    from lamina.store.layout import Store

    return Store.open(home())
