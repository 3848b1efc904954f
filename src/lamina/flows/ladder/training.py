"""Runs that rungs train by: their folder is named by all that decides the result, so that a move
that was stopped goes on where it was."""

import shutil
from collections.abc import Callable, Sequence

from lamina.core.recipe import Recipe
from lamina.data import seen
from lamina.data.example import Example
from lamina.flows import rehearsal, runs, seen_rows
from lamina.flows.ladder.rung import Move
from lamina.flows.questions import exam_bytes
from lamina.stack.resolve import ResolvedLayer


def opened(layer: ResolvedLayer) -> Recipe:
    """The layer's recipe with the length of its schedule open again and nothing held out."""
    config = layer.config
    values = (config.recipe or Recipe()).model_dump() | {
        "rank": config.rank,
        "alpha": config.alpha,
        "scaling": config.scaling,
        "steps": None,
        "stop_after": None,
        "warmup_steps": None,
        "held_out": 0.0,
    }
    return Recipe.parse(values, f"the recipe of {config.name}")


def run_of(
    move: Move,
    rung: str,
    rows: Callable[[], Sequence[Example]],
    recipe: Callable[[int], Recipe],
) -> runs.Run:
    """The run of this move and rung: the one that was begun, or a new one.

    `rows` gives what it learns from (asked only for a new run), `recipe` how, from the number of
    characters over four in them: about their tokens.
    """
    layer = move.layer
    name = f"{rung}-{layer.config.name}-{move.key(rung)}"
    directory = move.store.runs_dir / name
    if (directory / runs.SPEC).exists():
        begun = runs.Run(directory)
        if begun.result is None or move.store.has(begun.result.layer):
            return begun
        shutil.rmtree(directory)  # what it made was swept
    learned = rows()
    distilled = rung == "distil"
    spec = runs.RunSpec(
        id=name,
        created=runs.now().isoformat(),
        name=layer.config.name,
        on=move.onto.label,
        stack=move.onto.config,
        recipe=recipe(tokens_of(learned)),
        format="chat",
        files=layer.config.data.files if layer.config.data and not distilled else (),
        sources=tuple(move.data),
        duplicates=0,
        skipped=0,
        licence=layer.config.licence,
        author=layer.config.author,
        exams=layer.config.exams,
        private=layer.manifest.blob(seen_rows.FILE) is None,
        force=True,
        origin="distilled" if distilled else "trained",
        start=layer.digest if distilled and move.same_shapes else None,
        supersedes=layer.digest if move.supersede else None,
        layer_sources=tuple(move.old.config.layers[-1:]),
        part_of=move.command,
    )
    return runs.create(
        directory,
        spec,
        learned,
        (),
        [exam_bytes(move.store, layer, index) for index in range(len(layer.config.exams))],
        rehearsal.of_layers(move.store, move.onto.layers),
        travelling=rehearsal.of_layers(move.store, [layer]),
        seen=seen.pack(seen_rows.of_layer(move.store, layer)),
    )


def tokens_of(rows: Sequence[Example]) -> int:
    """About how many tokens: four characters each."""
    return max(1, sum(len(str(row.to_json())) for row in rows) // 4)
