"""Which decoder layer several workers gather next, where none can gather without the others.

Workers go up and down the layers with rows of their own: one has a pass more, one remembers what
lower layers made of its rows. So whoever needs a layer says so and waits until all have said what
they need, or that they need nothing; the layer of who is furthest behind is next. Workers at the
same place thus stay together, and one that is ahead waits for the others to come up.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Wish(NamedTuple):
    """The layer that a worker needs, and how far it has come since all were last together."""

    lap: int
    place: int
    """On the way up the layer; on the way down what is left of it, behind all of those."""
    layer: int


NOTHING = Wish(-1, -1, -1)
"""Of a worker that waits for the others to be done."""


class Course:
    """One worker's way up and down its layers."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self.begin()

    def begin(self) -> None:
        """All are together."""
        self._lap, self._last, self._down = 0, -1, False

    def wish(self, layer: int) -> Wish:
        """What to say to get `layer`, another than the last one."""
        if layer > self._last:
            self._lap += self._down
            self._down = False
        elif layer == self._last - 1:
            self._down = True
        else:  # up again from below, as an evaluation does
            self._lap += 1
            self._down = False
        self._last = layer
        place = 2 * self._layers - layer if self._down else layer
        return Wish(self._lap, place, layer)


def next_of(wishes: Sequence[Wish]) -> int | None:
    """The layer of who is furthest behind; None where nobody needs any."""
    wanted = [wish for wish in wishes if wish != NOTHING]
    return min(wanted).layer if wanted else None
