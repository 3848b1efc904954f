"""What a finished training becomes: a layer with all that it carries, its stack, and its cost."""

import platform
import resource
import sys
from collections.abc import Callable

import torch

from lamina.bases import families
from lamina.bases.quantised import weight_bytes
from lamina.core.manifests import (
    COST_TYPE,
    JSONL_TYPE,
    SAFETENSORS_TYPE,
    CostEvidence,
    Credit,
    DataFingerprint,
    Descriptor,
    LayerConfig,
)
from lamina.core.report import Reporter
from lamina.core.version import __version__
from lamina.data.provenance import content_digest
from lamina.flows import credit, landing, rehearsal, runs, seen_rows
from lamina.flows.questions import keep_private
from lamina.stack.compile import Compiled
from lamina.stack.resolve import ResolvedStack
from lamina.store.layout import Store
from lamina.tokens.mask import EncodeReport
from lamina.train.job import Outcome


def land(
    store: Store,
    run: runs.Run,
    spec: runs.RunSpec,
    compiled: Compiled,
    outcome: Outcome,
    counts: EncodeReport,
    reporter: Reporter,
    should_stop: Callable[[], bool],
) -> tuple[Descriptor, ResolvedStack]:
    """Put the layer, its stack and its cost into the store."""
    config, blobs = layer_object(store, run, spec, compiled, outcome, counts, reporter, should_stop)
    layer, stack = landing.land(store, config, blobs, label=spec.name, force=spec.force)
    cost = cost_of(outcome, compiled, sum(b.size for b in blobs if b.mediaType == SAFETENSORS_TYPE))
    store.put_evidence(COST_TYPE, cost, layer)
    return layer, stack


def layer_object(
    store: Store,
    run: runs.Run,
    spec: runs.RunSpec,
    compiled: Compiled,
    outcome: Outcome,
    counts: EncodeReport,
    reporter: Reporter,
    should_stop: Callable[[], bool],
) -> tuple[LayerConfig, list[Descriptor]]:
    """The layer's config and payload blobs: a pure function of the work, hence reproducible."""
    recipe = outcome.recipe
    base = compiled.stack.base_config.identity
    modules = tuple(sorted(outcome.factors))
    adapter = landing.adapter_blobs(
        store,
        outcome.factors,
        rank=recipe.rank,
        alpha=recipe.alpha_value,
        scaling=recipe.scaling,
        target_modules=families.target_modules(compiled.linears, modules),
        base=base,
    )
    train_rows = run.rows(runs.TRAIN_ROWS)
    kind, travelling = rehearsal.make(
        store, run, spec, compiled, outcome.factors, reporter, should_stop
    )
    config = LayerConfig(
        name=spec.layer_name or spec.name,
        base=base,
        parents=compiled.stack.config.layers,
        rank=recipe.rank,
        alpha=recipe.alpha_value,
        scaling=recipe.scaling,
        modules=modules,
        parameters=sum(f.parameters for f in outcome.factors.values()),
        recipe=recipe,
        data=DataFingerprint(
            content=content_digest(train_rows),
            rows=len(train_rows),
            tokens=counts.tokens,
            supervised_tokens=counts.supervised_tokens,
            files=spec.files,
            format=spec.format,
            held_out_rows=len(run.rows(runs.HELD_ROWS)),
            duplicates=spec.duplicates,
            skipped=spec.skipped,
            overlong=counts.overlong,
            licence=spec.licence,
        ),
        exams=spec.exams,
        licence=spec.licence,
        author=spec.author,
        origin=spec.origin,
        supersedes=spec.supersedes,
        sources=spec.layer_sources,
        credits=_credits(store, spec),
        rehearsal=kind,
    )
    blobs = [*adapter, *([travelling] if travelling else [])]
    seen = seen_rows.keep(store, run, private=spec.private)
    blobs += [seen] if seen else []
    for index, exam in enumerate(spec.exams):
        data = run.exam_bytes(index)
        if data is None:
            continue
        if exam.private:
            keep_private(store, data)
        else:
            blobs.append(store.put_bytes(data, JSONL_TYPE, title=f"exam-{index}.jsonl"))
    return config, blobs


def _credits(store: Store, spec: runs.RunSpec) -> tuple[Credit, ...] | None:
    """Whose work was in what this was trained on from, or taught by."""
    if not spec.layer_sources:
        return None
    share = 1.0 if spec.origin == "distilled" else None
    return credit.of_sources(store, [(source.layer, share) for source in spec.layer_sources])


def cost_of(outcome: Outcome, compiled: Compiled, layer_bytes: int) -> CostEvidence:
    """What the run took, as measured."""
    progress = outcome.progress
    return CostEvidence(
        created=runs.now().isoformat(),
        seconds=round(progress.seconds, 2),
        steps=progress.step,
        best_step=progress.best_step,
        tokens=progress.tokens,
        tokens_per_second=round(progress.tokens / max(progress.seconds, 1e-9), 1),
        peak_bytes=peak_bytes(),
        loss_before=progress.first_loss,
        loss_after=progress.best_loss,
        hardware=f"{platform.machine()} {platform.system()}, {torch.get_num_threads()} threads",
        versions={
            "lamina": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "kernels": outcome.kernels,
        },
        layer_bytes=layer_bytes,
        base_bytes=weight_bytes(compiled.model),
    )


def peak_bytes() -> int:
    """Peak resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
