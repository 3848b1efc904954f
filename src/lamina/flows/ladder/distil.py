"""Rung 3: a short training on what the old stack says.

The rows are the layer's rehearsal set and questions in its manner, written and answered by the old
stack (SSR, arXiv:2403.01244; Trans-LoRA, arXiv:2405.17258): text, so base, shape and tokenizer may
differ. Where the shapes agree, training starts from the layer's own factors.
"""

from typing import Any

from lamina.core.recipe import Recipe
from lamina.data.example import Example
from lamina.flows import learn, rehearsal
from lamina.flows.descent import cost_of
from lamina.flows.ladder.rung import Move, Moved
from lamina.flows.ladder.training import opened, run_of, tokens_of
from lamina.flows.synthesis import write_rows
from lamina.stack.compile import compile_stack

SHARE_WARM, SHARE_FRESH = 0.15, 0.25
"""What it may cost, as a share of the tokens that the layer was trained on: warm, from scratch.
Another family's tokens can take twice the time and more, and its base is loaded beside."""
COST_OF_WRITING = 20.0
"""Writing a token costs about this many times what training on it does: it is one step of the whole
model for one token of each row, half of the rows are dropped, and the last to end holds up all."""
PASSES = 5
"""Passes over each row. The rehearsal set comes first; rows are written where it is too small to
spend the budget on in so many."""
LEAST_WRITTEN, MOST_WRITTEN = 24, 192
"""Rows that are written, if any."""
LEAST_EPOCHS, MOST_EPOCHS = 0.5, float(PASSES)
"""More passes learn few rows by heart."""
UNKNOWN_EPOCHS = 3.0
"""Passes where it isn't on record how long the layer was trained."""
FEW_PASSES, FASTER = 2.0, 2.0
"""Up to so many passes from scratch go at this multiple of the layer's rate: rows are not learned
by heart so soon, and the steps are few (docs/log.md)."""
BATCH_TOKENS = 256
"""At most, in a step from scratch: rows are few, and what counts is the number of steps."""


def distil(move: Move) -> Moved | str:
    """Costs the writing of some rows and a short training."""
    if move.old.draws:
        return "image stacks write no captions"
    rows = rehearsal.of_layers(move.store, [move.layer])
    if not rows:
        return "the layer carries no rehearsal set to ask by"
    run = run_of(move, "distil", lambda: _rows(move, rows), lambda taught: _recipe(move, taught))
    layer, stack = learn.landed(move.store, run, move.reporter, move.should_stop)
    return Moved(layer, stack)


def _rows(move: Move, rows: tuple[Example, ...]) -> tuple[Example, ...]:
    """The rehearsal set and what the old stack writes; each question once."""
    count = _written(move, rows)
    if not count:
        return rows
    teacher = compile_stack(move.store, move.old)
    written = write_rows(
        teacher,
        rows,
        count,
        forbidden=rows,
        seed=0,
        reporter=move.reporter,
        stop=move.should_stop,
    )
    return (*rows, *written)


def _written(move: Move, rows: tuple[Example, ...]) -> int:
    """How many rows to write: w tokens of them such that writing them, and PASSES over them and the
    rehearsal set, cost what may be spent; none where that is fewer rows than LEAST_WRITTEN."""
    budget = _budget(move)
    if budget is None:
        return MOST_WRITTEN
    own = tokens_of(rows)
    tokens = (budget - PASSES * own) / (COST_OF_WRITING + PASSES)
    count = round(tokens * len(rows) / own)
    return min(MOST_WRITTEN, count) if count >= LEAST_WRITTEN else 0


def _budget(move: Move) -> float | None:
    """Tokens' worth of training that may be spent; None where no record says what it cost."""
    cost = cost_of(move.store, move.layer)
    share = SHARE_WARM if move.same_shapes else SHARE_FRESH
    return None if cost is None else share * cost.tokens


def _recipe(move: Move, taught: int) -> Recipe:
    """The layer's own recipe, as short as what is left of the budget."""
    recipe = opened(move.store, move.layer)
    budget = _budget(move)
    epochs = UNKNOWN_EPOCHS
    if budget is not None:
        own = tokens_of(rehearsal.of_layers(move.store, [move.layer]))
        epochs = (budget - COST_OF_WRITING * (taught - own)) / taught
    changes: dict[str, Any] = {
        "epochs": round(min(MOST_EPOCHS, max(LEAST_EPOCHS, epochs)), 2),
    }
    if not move.same_shapes:
        changes["batch_tokens"] = min(recipe.batch_tokens, BATCH_TOKENS)
        if changes["epochs"] <= FEW_PASSES:
            changes["lr"] = min(1.0, FASTER * recipe.lr)
    return recipe.model_copy(update=changes)
