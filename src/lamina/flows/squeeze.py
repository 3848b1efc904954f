"""After a cut to a lower rank: what is left learns, in a few passes, to say what the stack says.

Each linear was cut as is best for it alone; what the cuts do to each other is made up for by a
short training at the lower rank (LoRA-Squeeze, arXiv:2602.10993, whose squeezed adapters are
tuned a little further). It needs no labels and nobody's data: the rows are the rehearsal sets of
the stack's layers, and what is learned of their answers is the stack's own distribution.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from lamina.core.recipe import Recipe
from lamina.core.report import Reporter
from lamina.data.example import Example
from lamina.lowrank.maths import Factors, LayerFactors
from lamina.stack.compile import compile_stack
from lamina.stack.resolve import ResolvedStack, over_base
from lamina.store.layout import Store
from lamina.tokens.mask import encode_all
from lamina.train.events import EventLog
from lamina.train.job import Job
from lamina.train.loop import train
from lamina.train.teach import sayings

PASSES = 3
"""Passes over the rows, unless somebody asks for others."""
_RECIPE = Recipe(lr=3e-4, batch_tokens=1024, rehearsal=0.0, protect=0.0, patience=0)


def squeezed(
    store: Store,
    stack: ResolvedStack,
    cut: LayerFactors,
    rows: Sequence[Example],
    passes: int,
    reporter: Reporter,
) -> dict[str, Factors]:
    """`cut`, factors over the stack's base, trained to say what the stack says of `rows`.

    Ranks and scales stay. Deterministic. Raises TrainError.
    """
    recipe = _RECIPE.model_copy(update={"epochs": float(passes)})
    reporter.say(f"{passes} passes over {len(rows)} rows, to say what {stack.label} says")
    original = compile_stack(store, stack)
    encoded = encode_all(
        rows, original.format, max_length=recipe.max_length, overlong="truncate"
    ).rows
    said = sayings(original.model, encoded, recipe.batch_tokens, original.pad_id)
    del original
    compiled = compile_stack(store, over_base(store, stack.base, label="the base"))
    with tempfile.TemporaryDirectory(prefix="lamina-squeeze-") as directory:
        job = Job(
            model=compiled.model,
            linears={name: compiled.linears[name] for name in cut},
            rows=encoded,
            eval_rows=(),
            recipe=recipe,
            pad_id=compiled.pad_id,
            directory=Path(directory),
            resume_with="",
            start=cut,
            said=said,
        )
        return train(job, EventLog(None, reporter.event)).factors
