"""What a process that Ray has begun somewhere is told, so that it finds the same store."""

import contextlib
import json
from pathlib import Path
from typing import Any

import lamina.core.errors as errors
from lamina.core.errors import LaminaError, UsageError
from lamina.core.files import TEMP_PREFIX
from lamina.core.version import __version__
from lamina.store.layout import Store


def told(store: Store) -> dict[str, Any]:
    """Plain values from which `store_of` finds the store."""
    return {"store": str(store.root), "version": __version__}


def store_of(given: dict[str, Any], seen: Path) -> Store:
    """The store as this machine sees it, which must have `seen`.

    Raises UsageError where it does not, or where lamina is another version here.
    """
    if given["version"] != __version__:
        raise UsageError(
            f"a machine of the cluster has lamina {__version__}, and {given['version']} was asked",
            hint="install the same version on all machines",
        )
    if not seen.exists():
        raise UsageError(
            f"a machine of the cluster does not see {seen}",
            hint="they share the store: a folder that all machines mount at the same place",
        )
    return Store.open(Path(given["store"]))


def text_of(error: LaminaError) -> str:
    """An error as a line of text, for `error_of` in another process."""
    said = {"message": error.message, "faults": error.faults, "hint": error.hint}
    return json.dumps({"kind": type(error).__name__, **said})


def error_of(text: str) -> LaminaError:
    """The error that `text_of` told of, of the same kind."""
    said = json.loads(text)
    kind = getattr(errors, said["kind"], LaminaError)
    error: LaminaError = kind(said["message"], faults=said["faults"], hint=said["hint"])
    return error


class Notes:
    """A folder in which those who wait and those who work leave word; what a kill leaves of it,
    `lamina gc` sweeps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def new(cls, store: Store, name: str) -> "Notes":
        """An empty one."""
        folder = store.cache_dir / "ray" / f"{TEMP_PREFIX}{name}"
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder)

    def leave(self, name: str, text: str = "") -> None:
        """Leave word, also where the folder has been swept."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text, encoding="utf-8")

    def read(self, name: str) -> str | None:
        """Word that was left, None where there is none."""
        with contextlib.suppress(OSError):
            return (self.folder / name).read_text(encoding="utf-8")
        return None

    def take_back(self, name: str) -> None:
        """Remove word."""
        (self.folder / name).unlink(missing_ok=True)
