"""A run's old rows: those of the layer's own older versions, and those of the layers beneath."""

from collections.abc import Sequence

from lamina.core.recipe import Recipe
from lamina.flows import runs
from lamina.train.lesson import Row
from lamina.train.rehearse import Pool, Taught


def pools_of(spec: runs.RunSpec, older: Sequence[Row], parents: Sequence[Row]) -> tuple[Pool, ...]:
    """Both, each with its share and what it teaches.

    An update's recipe is about the first. The others keep the share that a new layer gives them,
    and teach what the stack says of them.
    """
    recipe = spec.recipe
    taught: Taught = "labels" if recipe.rehearse == "labels" else "stack"
    by: dict[str, Taught] = {"updated": "stack", "distilled": "parents"}
    share = recipe.rehearsal
    if spec.origin == "updated":
        share = min(share, Recipe().rehearsal)
    return (
        Pool(older, recipe.rehearsal, taught),
        Pool(parents, share, by.get(spec.origin, taught)),
    )
