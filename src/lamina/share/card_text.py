"""Other people's words in a model card: always one line, never Markdown, YAML, HTML or shell.

Names, authors, licences, file names and reasons come out of manifests that anybody may have made.
They appear in code spans only, which no Markdown reader looks into (links, mentions and emphasis
are not found there), and in YAML only through a YAML writer.
"""

import re
import shlex
import unicodedata
from collections.abc import Sequence

LONGEST = 200
"""Characters of one value that are shown."""
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that end lines, turn the direction of reading, or cannot be seen."""
_TICKS = re.compile(r"`+")


def one_line(text: str, longest: int = LONGEST) -> str:
    """The text as one visible line: white space becomes one blank, what is unseen U+FFFD."""
    blanks = " ".join(text.split())
    seen = "".join("\ufffd" if unicodedata.category(c) in _UNSEEN else c for c in blanks)
    return seen if len(seen) <= longest else seen[: longest - 1] + "…"


def code(text: str, longest: int = LONGEST) -> str:
    """The text in a code span (CommonMark 6.1); not in a table."""
    line = one_line(text, longest)
    if not line:
        return "(empty)"
    fence = "`" * (max((len(run) for run in _TICKS.findall(line)), default=0) + 1)
    space = " " if line[0] in "` " or line[-1] in "` " else ""
    return f"{fence}{space}{line}{space}{fence}"


def cell(text: str) -> str:
    """The text in a code span inside a table, where a bar would end the cell."""
    return code(text.replace("|", "¦"))


def shell(text: str) -> str:
    """The text as one word of a shell."""
    return shlex.quote(one_line(text))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; cells are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
