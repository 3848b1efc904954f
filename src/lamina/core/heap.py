"""Memory: what libraries hold without need is given back or kept within bounds; and what is said
where it runs out."""

import contextlib
import ctypes
from collections.abc import Iterator
from functools import cache
from typing import Any

from lamina.core.errors import BaseError, LaminaError
from lamina.core.libraries import tell

CODE = 64
"""Products whose code torch keeps. A step's products have 17 to 33 shapes, and others with every
number of tokens; torch's own bound is 1,024 of them in either of two caches, one to three megabytes
each. Making one again takes 0.3 ms (docs/log.md)."""
CODE_OF_IMAGES = 512
"""The same for images: a step's convolutions and products have some 100 shapes, always those."""

_SHORT = (
    "allocate memory",  # torch's allocators, and ENOMEM
    "not enough memory",
    "out of memory",  # CUDA's
    "bad_alloc",
    "failed to map segment",  # a library that would be loaded just now
)
"""What libraries say, in lower case, where there is no more memory."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of malloc.h."""


def give_back() -> None:
    """Return freed pages in the middle of the heap (glibc's malloc_trim(3)); else does nothing.

    Worth it after a phase whose blocks differ from the next one's, such as loading.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


def is_short(error: BaseException) -> bool:
    """Whether an error, or what it came of, says that memory ran out, whoever raised it."""
    each: BaseException | None = error
    while each is not None:
        said = str(each).lower()
        if isinstance(each, MemoryError) or any(words in said for words in _SHORT):
            return True
        each = each.__cause__ or each.__context__
    return False


@contextlib.contextmanager
def told_where_short() -> Iterator[None]:
    """Where memory runs out in the block, or the function that this decorates, raise a BaseError
    that says what to do."""
    try:
        yield
    except LaminaError:
        raise
    except Exception as error:  # of many parents: see `is_short`
        if not is_short(error):
            raise
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        raise BaseError(
            f"there is not enough memory for this base ({said})",
            hint="free some, or take a smaller base; one that talks can be quantised (lamina base "
            "pull … --quantise nf4), or read as its weights are used (lamina train --stream)",
        ) from error


def bound_code(most: int = CODE) -> None:
    """Bound the code that torch's products (oneDNN, through ideep) keep for each shape they meet.

    Heard by a process that has not multiplied in bfloat16 yet, and by those that it starts. What
    the environment says already stays.
    """
    tell(dict.fromkeys(("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"), str(most)))


def keep_apart(size: int) -> None:
    """From now on blocks of that many bytes come from the system each, and go back to it when they
    are freed (glibc's mallopt(3)); elsewhere nothing changes.

    Worth it where large blocks come and go for as long as the process lives: glibc otherwise moves
    them into its heap after the first, where the holes that they leave add up.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):
        tune = ctypes.CDLL(None).mallopt
        tune(_MMAP_THRESHOLD, size)
        tune(_TRIM_THRESHOLD, 64 << 20)  # as glibc has it by itself once large blocks were freed


@cache
def _trim() -> Any:
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # Windows has no library of that kind
        return None
