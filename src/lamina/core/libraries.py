"""What libraries take from the environment and from nowhere else, told for this process.

Those that it begins are told too. What the user says there already stays. What the user says to
lamina is read elsewhere (`cli.environment`).
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


def tell(settings: Mapping[str, str]) -> None:
    """Set what is not set yet."""
    for name, value in settings.items():
        os.environ.setdefault(name, value)


@contextmanager
def told(settings: Mapping[str, str]) -> Iterator[None]:
    """The same for the length of a block."""
    new = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)
