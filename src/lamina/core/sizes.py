"""Numbers of bytes as people write them."""

import re

from lamina.core.errors import UsageError

UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([a-z]+)", re.ASCII | re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of `2GB`, `1.5 GiB`, `800 MB`: a number, at most one space, a unit.

    B, kB, MB, GB, TB count in thousands, KiB, MiB, GiB, TiB in 1024s; upper and lower case are
    one. Raises UsageError for everything else, and for less than one byte.
    """
    match = _SIZE.fullmatch(text)
    unit = UNITS.get(match[2].upper()) if match else None
    found = round(float(match[1]) * unit) if match and unit else 0
    if found < 1:
        raise UsageError(
            f"{text!r} is no size of memory", hint="a number and a unit: 2GB, 1.5 GiB, 800 MB"
        )
    return found


def size_text(size: float) -> str:
    """`1.6 GB`, `22 GB`, `380 MB`: two digits that count."""
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if size >= unit:
            value = size / unit
            return f"{value:.1f} {name}" if value < 9.95 else f"{value:.0f} {name}"
    return f"{size / 1000:.0f} kB"
