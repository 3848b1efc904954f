"""Rung 4: train the layer again from its recipe, where somebody has all of its data."""

from lamina.data.read import read
from lamina.flows import at_hand, learn
from lamina.flows.ladder.rung import Move, Moved
from lamina.flows.ladder.training import opened, run_of


def retrain(move: Move) -> Moved | str:
    """Costs what the layer cost, its updates with it. Raises DataError for unreadable files."""
    store, config = move.store, move.layer.config
    if config.data is None or config.recipe is None:
        return "it has no recipe to train it by again"
    given = read(move.data, skip_bad=True).examples if move.data else None
    rows, whole = at_hand.all_rows(store, move.layer, given)
    if not whole and given is not None:
        return "the files given are not all of its data"
    if not whole:
        return "not all of its data is at hand; give it with --data"
    run = run_of(move, "retrain", lambda: rows, lambda _: opened(store, move.layer))
    layer, stack = learn.landed(store, run, move.reporter, move.should_stop)
    return Moved(layer, stack)
