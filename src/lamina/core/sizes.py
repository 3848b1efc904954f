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


_SPANS = ((365.25 * 86400, "years"), (2 * 86400, "days"), (2 * 3600, "hours"), (120, "minutes"))
_SECONDS = {"years": 365.25 * 86400, "days": 86400, "hours": 3600, "minutes": 60}


def span_text(seconds: float) -> str:
    """`0.4 seconds`, `38 seconds`, `12 minutes`, `3.4 hours`, `131 days`, `1,200 years`."""
    for least, unit in _SPANS:
        if seconds >= least:
            return f"{number_text(seconds / _SECONDS[unit])} {unit}"
    return f"{number_text(seconds)} seconds"


_WORDS = ((1e15, "quadrillion"), (1e12, "trillion"), (1e9, "billion"), (1e6, "million"))


def number_text(number: float) -> str:
    """Two digits that count, and all before the point: `0.0038`, `0.4`, `3.4`, `131`, `15,700`;
    three and a word from a million on: `135 million`."""
    for least, word in _WORDS:
        if number >= least:
            return f"{number / least:.3g} {word}"
    if number >= 10:
        return f"{round(number, -max(0, len(str(int(number))) - 3)):,.0f}"
    return f"{number:.2g}"
