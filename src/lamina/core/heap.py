"""What the C library holds of freed memory, given back to the system."""

import ctypes
from functools import cache
from typing import Any


def give_back() -> None:
    """Return freed pages in the middle of the heap (glibc's malloc_trim(3)); else does nothing.

    Worth it after a phase whose blocks differ from the next one's, such as loading.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # Windows has no library of that kind
        return None
