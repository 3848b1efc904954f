"""Rung 3: a short training on what the old stack says.

The rows are the layer's rehearsal set and questions in its manner, written and answered by the old
stack (SSR, arXiv:2403.01244; Trans-LoRA, arXiv:2405.17258): text, so base, shape and tokenizer may
differ. Where the shapes agree, training starts from the layer's own factors.
"""

from lamina.core.recipe import Recipe
from lamina.data.example import Example
from lamina.flows import learn, rehearsal
from lamina.flows.descent import cost_of
from lamina.flows.ladder.rung import Move, Moved
from lamina.flows.ladder.training import opened, run_of, tokens_of
from lamina.flows.synthesis import write_rows
from lamina.stack.compile import compile_stack

LEAST_WRITTEN, MOST_WRITTEN = 32, 192
"""Rows that the old stack writes beside the rehearsal set."""
SHARE_WRITTEN = 0.1
"""Tokens in them, as a share of the tokens that the layer was trained on."""
COST_OF_WRITING = 2.0
"""Writing a token costs about this many times what training on it does."""
SHARE_WARM, SHARE_FRESH = 0.15, 0.35
"""Tokens trained on, as a share of what the layer was trained on: warm and from scratch."""
LEAST_EPOCHS, MOST_EPOCHS = 0.5, 6.0
UNKNOWN_EPOCHS = 3.0
"""Passes where it isn't on record how long the layer was trained."""


def distil(move: Move) -> Moved | str:
    """Costs the writing of some rows and a short training."""
    rows = rehearsal.of_layers(move.store, [move.layer])
    if not rows:
        return "the layer carries no rehearsal set to ask by"
    run = run_of(move, "distil", lambda: _rows(move, rows), lambda taught: _recipe(move, taught))
    layer, stack = learn.landed(move.store, run, move.reporter, move.should_stop)
    return Moved(layer, stack)


def _rows(move: Move, rows: tuple[Example, ...]) -> tuple[Example, ...]:
    """The rehearsal set and what the old stack writes; each question once."""
    teacher = compile_stack(move.store, move.old)
    written = write_rows(
        teacher,
        rows,
        _written(move, rows),
        forbidden=rows,
        seed=0,
        reporter=move.reporter,
        stop=move.should_stop,
    )
    return (*rows, *written)


def _written(move: Move, rows: tuple[Example, ...]) -> int:
    """How many rows to write."""
    cost = cost_of(move.store, move.layer)
    if cost is None:
        return MOST_WRITTEN
    a_row = tokens_of(rows) / len(rows)
    return round(min(MOST_WRITTEN, max(LEAST_WRITTEN, SHARE_WRITTEN * cost.tokens / a_row)))


def _recipe(move: Move, taught: int) -> Recipe:
    """The layer's own recipe, as short as the record of its training allows."""
    recipe = opened(move.store, move.layer)
    share = SHARE_WARM if move.same_shapes else SHARE_FRESH
    cost = cost_of(move.store, move.layer)
    epochs = UNKNOWN_EPOCHS if cost is None else share * cost.tokens / taught
    return recipe.model_copy(
        update={"epochs": round(min(MOST_EPOCHS, max(LEAST_EPOCHS, epochs)), 2)}
    )
