"""What commands print: JSON or plain tables on stdout, sentences and progress on stderr."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from lamina.core.plain import escaped_json, shown, shown_in_line


def print_json(value: Any) -> None:
    """One JSON document on stdout; what a terminal would obey is escaped in it."""
    escape = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    text = json.dumps(value, indent=2, ensure_ascii=escape)
    sys.stdout.write(escaped_json(text) + "\n")


def print_text(text: str) -> None:
    """Text on stdout; control characters of strangers are written out, not obeyed."""
    encoding = sys.stdout.encoding or "utf-8"
    line = shown(text).rstrip("\n").encode(encoding, "backslashreplace").decode(encoding)
    sys.stdout.write(line + "\n")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell; a cell stays on its line."""
    lines = [list(header), *([shown_in_line(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def size(count: float) -> str:
    """Bytes for people: 19.6 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
