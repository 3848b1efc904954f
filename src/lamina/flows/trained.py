"""What a finished training becomes: a layer with all that it carries, its stack, and its cost."""

import platform
import resource
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lamina.bases import families
from lamina.bases.quantised import weight_bytes
from lamina.core import machine
from lamina.core.evidence import COST_TYPE, CostEvidence
from lamina.core.manifests import (
    JSONL_TYPE,
    SAFETENSORS_TYPE,
    Credit,
    DataFingerprint,
    Descriptor,
    LayerConfig,
)
from lamina.core.rates import Rates
from lamina.core.report import Reporter
from lamina.core.version import __version__
from lamina.data.provenance import content_digest
from lamina.flows import credit, landing, rehearsal, runs, seen_rows
from lamina.flows.questions import keep_private
from lamina.plan.work import FORWARD_AND_BACK, useful_flops
from lamina.stack.compile import Compiled
from lamina.stack.resolve import ResolvedStack
from lamina.store.layout import Store
from lamina.tokens.mask import EncodeReport
from lamina.train.job import Outcome

FORWARD = FORWARD_AND_BACK // 2
"""Operations a weight and token of a forward pass."""


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
    size = sum(b.size for b in blobs if b.mediaType == SAFETENSORS_TYPE)
    cost = cost_of(outcome, compiled, size, spec.rates)
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


def cost_of(
    outcome: Outcome, compiled: Compiled, layer_bytes: int, rates: Rates | None = None
) -> CostEvidence:
    """What the run took, as measured, and what that cost at `rates`."""
    progress = outcome.progress
    seconds = round(progress.seconds, 2)
    joules = None if progress.joules is None else round(progress.joules, 1)
    return CostEvidence(
        created=runs.now().isoformat(),
        seconds=seconds,
        steps=progress.step,
        best_step=progress.best_step,
        tokens=progress.tokens,
        tokens_per_second=round(progress.tokens / max(progress.seconds, 1e-9), 1),
        peak_bytes=peak_bytes(),
        loss_before=progress.first_loss,
        loss_after=progress.best_loss,
        hardware=hardware_of(compiled.model)
        + (f", {outcome.workers} workers" if outcome.workers > 1 else ""),
        versions={
            "lamina": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "kernels": outcome.kernels,
        },
        layer_bytes=layer_bytes,
        base_bytes=weight_bytes(compiled.model),
        supervised_tokens=progress.supervised,
        flops=flops_of(outcome, compiled),
        joules=joules,
        metered=progress.metered,
        estimated_joules=rates.estimated_joules(seconds) if rates else None,
        money=rates.money(seconds, joules) if rates else None,
        rates=rates,
    )


def hardware_of(model: nn.Module) -> str:
    """The system, and what a model computes on: the GPU, else the processor and its threads."""
    system = f"{platform.machine()} {platform.system()}"
    some = next(model.parameters(), None)
    if some is not None and some.device.type == "cuda":
        return f"{system}, {torch.cuda.get_device_name(some.device)}"
    return f"{system}, {machine.processor()}, {torch.get_num_threads()} threads"


def flops_of(outcome: Outcome, compiled: Compiled) -> float | None:
    """Useful operations of a run: steps, and the forward passes of evaluations and of rows that
    were only looked at. Below the first trained layer there is no way back. None for a run that
    began before its supervised tokens were counted, and for images, whose linears see each its own
    number of places."""
    progress = outcome.progress
    if progress.supervised is None or compiled.chat is None:
        return None
    sizes = {name: m.in_features * m.out_features for name, m in compiled.linears.items()}
    every = sum(sizes.values())
    below = sum(sizes[name] for name in families.lowest(sizes, outcome.recipe.above))
    config: Any = compiled.model.config
    head = config.vocab_size * config.hidden_size
    steps = useful_flops(every - below, head, progress.tokens, progress.supervised)
    forward = below * progress.tokens + every * (progress.evaluated + progress.looked_at)
    forward += head * progress.evaluated_supervised
    return float(steps + FORWARD * forward)


def peak_bytes() -> int:
    """Peak resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
