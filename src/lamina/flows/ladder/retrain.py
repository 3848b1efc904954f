"""Rung 4: train the layer again from its recipe, where somebody has its data."""

from lamina.core.errors import UsageError
from lamina.data.example import Example
from lamina.data.provenance import content_digest
from lamina.data.read import read
from lamina.data.split import split
from lamina.flows import at_hand, learn
from lamina.flows.ladder.rung import Move, Moved
from lamina.flows.ladder.training import opened, run_of


def retrain(move: Move) -> Moved | str:
    """Costs what the layer cost. Raises UsageError for data that is not the layer's."""
    rows = _given(move) if move.data else at_hand.rows_of(move.store, move.layer)
    if rows is None:
        return "its data is not at hand; give it with --data"
    run = run_of(move, "retrain", lambda: rows, lambda _: opened(move.layer))
    layer, stack = learn.landed(move.store, run, move.reporter, move.should_stop)
    return Moved(layer, stack)


def _given(move: Move) -> tuple[Example, ...] | None:
    """The rows in the files given, if they are the layer's; None for another layer's."""
    config = move.layer.config
    if config.data is None or config.recipe is None:
        raise UsageError(f"{config.name} has no recipe to train it by again")
    found = read(move.data, skip_bad=config.data.skipped > 0)
    rows = split(found.examples, config.recipe.held_out, config.recipe.held_out_max).train
    return rows if content_digest(rows) == config.data.content else None
