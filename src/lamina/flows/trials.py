"""What a sweep asks: one layer to train in many ways, and which ways those are."""

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from lamina.core.errors import UsageError
from lamina.core.names import Name
from lamina.core.recipe import Recipe, ScorerName
from lamina.core.values import Value
from lamina.flows.farm import Job, located

TRIALS = 16
"""How many are drawn where nothing says how many."""
DATA = "data"


class Range(Value):
    """Numbers from `low` to `high`; whole ones where both are."""

    low: float
    high: float
    scale: Literal["log", "linear"] = "log"
    """`log`: each factor is as likely as every other."""

    @model_validator(mode="after")
    def _has_room(self) -> Self:
        if not self.low < self.high or (self.scale == "log" and self.low <= 0):
            raise ValueError("low has to be below high, and above 0 for scale 'log'")
        return self

    def draw(self, chance: random.Random) -> float:
        """One of them, to three digits."""
        if self.scale == "log":
            found = math.exp(chance.uniform(math.log(self.low), math.log(self.high)))
        else:
            found = chance.uniform(self.low, self.high)
        if self.low.is_integer() and self.high.is_integer():
            return int(min(max(round(found), self.low), self.high))
        return min(max(float(f"{found:.3g}"), self.low), self.high)


class Sweep(Job):
    """One layer to train in many ways."""

    data: tuple[str, ...] = ()
    search: dict[str, list[Any] | Range]
    """By key of the recipe, or `data`: the values to try, or a range of them."""
    trials: Annotated[int, Field(ge=2, le=10_000)] | None = None
    """None: all combinations where there are no more than `TRIALS`, else so many."""
    seed: int = 0
    """Of the draw; trainings have the recipe's."""
    choose_by: ScorerName | None = None
    """Scorer of the exam by which the best is chosen; None: one that judges answers, where there
    is one, then the loss."""


def read(text: Mapping[str, Any], folder: Path, source: str) -> Sweep:
    """The sweep of a file in `folder`. Raises UsageError with every fault."""
    sweep = Sweep.parse(dict(text), source)
    Name(sweep.name)
    searched: dict[str, list[Any] | Range] = dict(sweep.search)
    faults = [] if searched else ["search: it names nothing to try"]
    known = {*Recipe.model_fields, DATA}
    faults += [f"search.{key}: no key of a recipe" for key in sorted(set(searched) - known)]
    if DATA in searched:
        mixtures = searched[DATA]
        if not (isinstance(mixtures, list) and all(map(_is_mixture, mixtures))):
            faults.append('search.data: give lists of files: [["a.jsonl"], ["a.jsonl", "b.jsonl"]]')
        else:
            searched[DATA] = [list(located(each, folder)) for each in mixtures]
    elif not sweep.data:
        faults.append("data: no rows to train on")
    for key in sorted(set(searched) & known - {DATA}):
        faults += _faults(sweep, key, searched[key])
    if faults:
        raise UsageError(f"{source} cannot be used", faults=faults)
    exam = tuple(str(folder / each) for each in sweep.exam)
    where = {"data": located(sweep.data, folder), "exam": exam, "search": searched}
    return sweep.model_copy(update=where)


def _is_mixture(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def _faults(sweep: Sweep, key: str, wanted: list[Any] | Range) -> list[str]:
    """What a recipe would say against the values of one key."""
    ends = isinstance(wanted, Range)
    values = [wanted.low, wanted.high] if isinstance(wanted, Range) else wanted
    if not values:
        return [f"search.{key}: it has no values"]
    found = []
    for value in values:
        number = int(value) if ends and float(value).is_integer() else value
        try:
            _recipe(sweep, {key: number})
        except UsageError as error:
            found += [f"search.{key}: {fault}" for fault in error.faults]
    return found


def _recipe(sweep: Sweep, values: Mapping[str, Any]) -> Recipe:
    given = sweep.recipe.model_dump(mode="json", exclude_unset=True)
    return Recipe.parse(given | {k: v for k, v in values.items() if k != DATA}, "the recipe")


def trials_of(sweep: Sweep) -> list[dict[str, Any]]:
    """The combinations to try: all of them, or distinct ones drawn by the sweep's seed."""
    chance, keys = random.Random(sweep.seed), sorted(sweep.search)
    lists = [values for values in sweep.search.values() if isinstance(values, list)]
    most = math.prod(map(len, lists)) if len(lists) == len(keys) else None
    wanted = sweep.trials or TRIALS
    wanted = wanted if most is None else min(wanted, most)
    found: dict[str, dict[str, Any]] = {}
    for _ in range(100 * wanted + 10_000):
        drawn = {
            key: chance.choice(values) if isinstance(values, list) else values.draw(chance)
            for key in keys
            for values in [sweep.search[key]]
        }
        found.setdefault(json.dumps(drawn, sort_keys=True), drawn)
        if len(found) == wanted:
            break
    return list(found.values())


def mixtures(asked: Sweep) -> list[list[str]]:
    """The lists of files that it tries."""
    found = asked.search.get(DATA, [])
    return found if isinstance(found, list) else []


def job_of(asked: Sweep, values: Mapping[str, Any]) -> Job:
    """One combination as a job of its own."""
    fields = {key: getattr(asked, key) for key in Job.model_fields}
    own = {"recipe": _recipe(asked, values), "data": tuple(values.get(DATA, asked.data))}
    return Job(**fields).model_copy(update=own)
