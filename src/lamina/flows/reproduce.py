"""`lamina reproduce`: train a layer again from what it carries, and compare digests."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lamina.core.digest import short
from lamina.core.errors import CheckError, UsageError
from lamina.core.evidence import COST_TYPE, CostEvidence
from lamina.core.files import TEMP_PREFIX
from lamina.core.manifests import LAYER_TYPE
from lamina.core.recipe import Recipe
from lamina.core.report import Reporter
from lamina.data import seen
from lamina.data.example import Example
from lamina.data.provenance import content_digest
from lamina.data.read import read
from lamina.data.split import split
from lamina.flows import at_hand, descent, painting, rehearsal, runs, seen_rows, update
from lamina.flows.job import job_of
from lamina.flows.trained import layer_object
from lamina.stack.compile import DTYPES, compile_stack, device_at_hand
from lamina.stack.resolve import ResolvedLayer, of_descriptor, resolve
from lamina.store.layout import Store
from lamina.train.events import EventLog
from lamina.train.loop import train

_TRAINED = ("trained", "updated")


@dataclass(frozen=True)
class Reproduction:
    """Two digests, and the held-out losses to judge by when they differ."""

    layer: str
    again: str
    loss: float | None
    loss_again: float | None

    @property
    def equal(self) -> bool:
        """The layer came out the same to the byte."""
        return self.layer == self.again

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "layer": self.layer,
            "again": self.again,
            "equal": self.equal,
            "loss": self.loss,
            "loss_again": self.loss_again,
        }

    def render(self) -> str:
        """For people."""
        if self.equal:
            return f"reproduced: {self.layer}"
        return (
            f"not reproduced: {self.layer}\n         now: {self.again}\n"
            f"held-out loss then {self.loss}, now {self.loss_again}\n"
            "Another kind of machine, another number of threads or workers, another version of a "
            "library rounds differently."
        )


def reproduce(
    store: Store,
    text: str,
    data: Sequence[str],
    reporter: Reporter,
    should_stop: Callable[[], bool],
) -> Reproduction:
    """Train the top layer of the stack that `text` means once more.

    Raises UsageError for an imported layer, CheckError when the data is not the layer's data.
    """
    stack = resolve(store, text, force=True)
    if not stack.layers:
        raise UsageError(f"{text} is a base; name a layer or a stack with one on top")
    layer = stack.layers[-1]
    config = layer.config
    if config.recipe is None or config.data is None or config.origin not in _TRAINED:
        raise UsageError(
            f"{config.name} was {config.origin}: nothing of its own to train it from",
            hint=f"see what it was made of: lamina show {text}",
        )
    sources = list(data) or _where_it_lay(store, layer)
    dataset = read(sources, format=config.data.format, skip_bad=config.data.skipped > 0)
    beneath = of_descriptor(
        store, store.put_stack(config.base, config.parents), label=text, force=True
    )
    parts = _parts(store, (*beneath.layers, layer), dataset.examples, config.recipe)
    if content_digest(parts.train) != config.data.content:
        raise CheckError(
            f"these rows are not the ones that {config.name} learned from",
            faults=[
                f"layer: {config.data.rows} rows, {short(config.data.content)}",
                f"given: {len(parts.train)} rows, {short(content_digest(parts.train))}",
                *(f"was {f.name} {f.sha256}" for f in config.data.files),
            ],
            hint="give the layer's own files with --data",
        )
    carried = layer.manifest.blob(rehearsal.FILE) is not None
    spec = runs.RunSpec(
        id=runs.new_id(f"reproduce-{config.name}"),
        created=runs.moment(),
        name=config.name,
        on=text,
        stack=beneath.config,
        recipe=config.recipe,
        format=config.data.format,
        files=config.data.files,
        sources=tuple(sources),
        duplicates=config.data.duplicates,
        skipped=config.data.skipped,
        licence=config.data.licence,
        author=config.author,
        exams=(),
        private=seen_rows.is_private(layer),
        rehearsal_set=config.rehearsal or ("sample" if carried else "none"),
        layer_name=config.name,
        origin=config.origin,
        start=descent.older(config),
        supersedes=config.supersedes,
        layer_sources=config.sources,
    )
    # no run of its own: `collect` sweeps what a kill leaves, and nothing can be resumed into a name
    directory = store.cache_dir / f"{TEMP_PREFIX}{spec.id}"
    run = runs.create(
        directory,
        spec,
        parts.train,
        parts.held_out,
        (),
        parts.rehearsal,
        travelling=parts.travelling,
        seen=seen.pack(parts.seen),
    )
    try:
        compiled = compile_stack(
            store, beneath, dtype=DTYPES[config.recipe.dtype], device=device_at_hand()
        )
        if beneath.draws:
            job, counts = painting.job_of(store, run, spec, compiled, reporter)
        else:
            job, counts = job_of(store, run, spec, compiled)
        job = replace(job, resume_with=f"lamina reproduce {text} (from its start)")
        outcome = train(job, EventLog(None, reporter.event), should_stop)
        again, blobs = layer_object(
            store, run, spec, compiled, outcome, counts, reporter, should_stop
        )
        # these travel as they are: they are cut by hash or handed on, not trained
        kept = {"exams": config.exams, "rehearsal": config.rehearsal, "credits": config.credits}
        again = again.model_copy(update=kept)
        exams = [b for b in layer.manifest.layers if b.title.startswith("exam-")]
        digest = store.put_object(LAYER_TYPE, again, [*blobs, *exams]).digest
    finally:
        shutil.rmtree(run.directory, ignore_errors=True)
    costs = store.evidence(layer.digest, COST_TYPE, CostEvidence)
    loss = costs[-1].loss_after if costs else None
    return Reproduction(layer.digest, digest, loss, outcome.progress.best_loss)


def _parts(
    store: Store, layers: Sequence[ResolvedLayer], rows: Sequence[Example], recipe: Recipe
) -> update.Parts:
    """What the top layer learned from: as it was trained, or as its older version was updated."""
    older = descent.version(store, descent.older(layers[-1].config))
    if older is not None:
        return update.parts_of(store, (*layers[:-1], older), rows, recipe)
    sides = split(rows, recipe.held_out, recipe.held_out_max)
    return update.Parts(
        train=sides.train,
        held_out=sides.held_out,
        rehearsal=rehearsal.of_layers(store, layers[:-1]),
        seen=frozenset(map(seen.mark, sides.unused)),
    )


def _where_it_lay(store: Store, layer: ResolvedLayer) -> list[str]:
    """The data's place on this machine, if the layer was trained here."""
    sources = at_hand.sources_of(store, layer.digest)
    if sources is not None:
        return sources
    raise UsageError(
        f"{layer.config.name} was not trained on this machine",
        hint="give its files with --data: "
        + ", ".join(f.name for f in (layer.config.data.files if layer.config.data else ())),
    )
