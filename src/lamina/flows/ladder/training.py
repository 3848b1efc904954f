"""Runs that rungs train by: their folder is named by all that decides the result, so that a move
that was stopped goes on where it was."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from lamina.core.manifests import DataFingerprint
from lamina.core.recipe import AS_IT_FITS, Recipe
from lamina.data import seen
from lamina.data.example import Example
from lamina.data.readers.chat import CHAT
from lamina.flows import at_hand, rehearsal, runs, seen_rows
from lamina.flows.descent import trainings
from lamina.flows.ladder.rung import Move
from lamina.flows.questions import exam_bytes
from lamina.stack.resolve import ResolvedLayer
from lamina.store.layout import Store


def opened(store: Store, layer: ResolvedLayer) -> Recipe:
    """The layer's recipe with the length of its schedule open again.

    An update mixes and protects for the factors that it starts from: from there on, the layers
    beneath are rehearsed as by default.
    """
    config = layer.config
    values = (config.recipe or Recipe()).model_dump() | {
        "rank": config.rank,
        "alpha": config.alpha,
        "scaling": config.scaling,
        "steps": None,
        "stop_after": None,
        "warmup_steps": None,
        **AS_IT_FITS,
    }
    if any(each.config.origin == "updated" for each in trainings(store, layer)[0]):
        values |= Recipe().model_dump(include={"rehearsal", "rehearse", "protect", "above"})
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
    data = () if distilled else _data(move)
    spec = runs.RunSpec(
        id=name,
        created=runs.moment(),
        name=layer.config.name,
        on=move.onto.label,
        stack=move.onto.config,
        recipe=recipe(tokens_of(learned)),
        format=data[0].format if data else CHAT.name,
        files=tuple(dict.fromkeys(file for each in data for file in each.files)),
        sources=() if distilled else _sources(move),
        duplicates=0,
        skipped=sum(each.skipped for each in data),
        licence=layer.config.licence,
        author=layer.config.author,
        exams=layer.config.exams,
        private=seen_rows.is_private(layer),
        force=True,
        origin="distilled" if distilled else "trained",
        start=layer.digest if distilled and move.same_shapes else None,
        supersedes=layer.digest if move.supersede else None,
        layer_sources=tuple(move.old.config.layers[-1:]),
        rates=move.rates,
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


def _data(move: Move) -> tuple[DataFingerprint, ...]:
    """What the layer was trained on, newest training first."""
    layers, _ = trainings(move.store, move.layer)
    return tuple(each.config.data for each in layers if each.config.data)


def _sources(move: Move) -> tuple[str, ...]:
    """Where the rows of all of the layer's trainings lie on this machine."""
    if move.data:
        return tuple(str(Path(file).absolute()) for file in move.data)
    layers, _ = trainings(move.store, move.layer)
    found = (at_hand.sources_of(move.store, each.digest) or () for each in layers)
    return tuple(dict.fromkeys(source for some in found for source in some))


def tokens_of(rows: Sequence[Example]) -> int:
    """About how many tokens: four characters each."""
    return max(1, sum(len(str(row.to_json())) for row in rows) // 4)
