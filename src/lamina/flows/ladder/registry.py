"""The rungs, cheapest first."""

from lamina.core.errors import UsageError
from lamina.core.manifests import Rung as RungName
from lamina.flows.ladder.copy import copy
from lamina.flows.ladder.distil import distil
from lamina.flows.ladder.project import project
from lamina.flows.ladder.retrain import retrain
from lamina.flows.ladder.rung import Rung

RUNGS: dict[RungName, Rung] = {
    "copy": copy,
    "project": project,
    "distil": distil,
    "retrain": retrain,
}


def up_to(name: str | None) -> tuple[RungName, ...]:
    """The rungs from the cheapest to this one; all for None. Raises UsageError."""
    names = tuple(RUNGS)
    if name is None:
        return names
    if name not in names:
        raise UsageError(f"no rung {name!r}", hint=f"the rungs are {', '.join(names)}")
    return names[: names.index(name) + 1]
