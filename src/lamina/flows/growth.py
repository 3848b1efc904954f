"""How far a training's rows are those that the name's layer learned before: then an update is the
cheap way, and a person should hear of it before the minutes are spent."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from lamina.core.manifests import StackedLayer
from lamina.flows import seen_rows
from lamina.stack.resolve import ResolvedStack
from lamina.store.layout import Store

MOSTLY = 0.5
"""Share of the rows that the older layer must have seen for an update to be worth a word."""


@dataclass(frozen=True)
class Growth:
    """Rows beside those that an older layer of the same name has seen."""

    name: str
    known: int
    """Rows that it has seen."""
    new: int
    gone: int
    """Rows that it has seen and that are no longer there."""

    def offer(self, data: Sequence[str]) -> str:
        """What `lamina update` would do with these files."""
        files = " ".join(f"--data {shlex.quote(file)}" for file in data)
        text = (
            f"{self.name} has seen {self.known} of these {self.known + self.new} rows; the other "
            f"{self.new} alone: lamina update {self.name} {files}"
        )
        if self.gone:
            text += (
                f"\n(it would keep what {self.name} learned from {self.gone} rows that are gone, "
                "but for old questions that are answered anew)"
            )
        return text


def growth(
    store: Store,
    older: ResolvedStack,
    beneath: Sequence[StackedLayer],
    name: str,
    marks: frozenset[bytes],
) -> Growth | None:
    """How rows with these marks differ from those that the top of `older` has seen.

    None where an update would not do: another layer, one that learned no rows or stands on other
    parents, nothing new, or mostly new rows.
    """
    top = older.layers[-1] if older.layers else None
    if top is None or top.config.name != name or top.config.parents != tuple(beneath):
        return None
    seen = seen_rows.of_layer(store, top)
    known, new = len(marks & seen), len(marks - seen)
    if not new or known < MOSTLY * len(marks):
        return None
    return Growth(name, known, new, len(seen - marks))
