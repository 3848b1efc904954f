"""`lamina merge`: what several people trained over the same parent, as one layer over it.

The stacks that went in stay as they are. The new layer carries the exams, the rehearsal sets and
the marks of seen rows of all layers that were merged; its certificate says how much of each one's
gain is left.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lamina.core.digest import short
from lamina.core.errors import CheckError, UsageError
from lamina.core.evidence import CERTIFICATE_TYPE, CertificateEvidence, Kept
from lamina.core.licences import combine
from lamina.core.manifests import Descriptor
from lamina.core.names import Name
from lamina.core.report import Reporter
from lamina.exams.report import Matrix, matrix, render_matrix
from lamina.exams.runner import ExamResult
from lamina.export.parity import Parity, compare
from lamina.flows import landing, runs
from lamina.flows.contributions import Contribution, contributions, versions_of_one_layer
from lamina.flows.examine import sit
from lamina.flows.inventory import certificate_lines
from lamina.flows.joined import land_computed
from lamina.flows.licensing import check, works_in
from lamina.flows.merge_loss import loss_over, rows_of
from lamina.flows.modality import probes_of, sayings
from lamina.flows.naming import new_name
from lamina.flows.questions import carried
from lamina.flows.suiting import check_talks
from lamina.lowrank.attach import fold_into
from lamina.lowrank.maths import LayerFactors
from lamina.stack.combine.method import Merged, Method, Options
from lamina.stack.combine.registry import METHODS, method_named
from lamina.stack.compile import Compiled, compile_stack, unpacked
from lamina.stack.resolve import ResolvedStack, resolve
from lamina.store.layout import Store


@dataclass(frozen=True, eq=False)
class _Plan:
    """A merge that can be done."""

    parent: ResolvedStack
    parts: tuple[Contribution, ...]
    method: Method
    weights: tuple[float, ...]
    density: float | None
    seed: int
    examples: tuple[str, ...]


def merge(
    store: Store,
    texts: Sequence[str],
    *,
    method: str,
    name: str,
    reporter: Reporter,
    weights: Sequence[float] = (),
    density: float | None = None,
    examples: Sequence[str] = (),
    seed: int | None = None,
    override: str | None = None,
    despite: str | None = None,
    author: str | None = None,
) -> dict[str, Any]:
    """Merge the top layers of several stacks over their common parent, and move `name` there.

    `weights`: one a stack, 1 by default. Can be run again when killed. Raises UsageError,
    WrongParentError naming both parents, UnknownNameError, DataError, CheckError when an exact
    merge answers otherwise or a licence forbids it (`despite`: the reason for going on), and
    GateError; the layer is kept then.
    """
    began = time.monotonic()
    chosen = method_named(method)
    _check(chosen, texts, weights, density, seed, examples)
    target = new_name(store, name)
    parent, parts = contributions(store, [resolve(store, text) for text in texts])
    if chosen.needs_examples:
        others = ", ".join(each.name for each in METHODS.values() if not each.needs_examples)
        check_talks(parent, "learning weights", f"--method {others}")
    for one, two in versions_of_one_layer(store, parts):
        reporter.say(
            f"{one.label} and {two.label} are versions of one layer: a sum adds what they share "
            "twice; --method average does not"
        )
    works = works_in(
        store, [layer for part in parts for layer in part.layers], file=f"the merge {target}"
    )
    why = check(combine(works, "combine"), "this merge", reporter, despite=despite)
    plan = _Plan(
        parent=parent,
        parts=parts,
        method=chosen,
        weights=tuple(weights) or (1.0,) * len(parts),
        density=density,
        seed=seed or 0,
        examples=tuple(examples),
    )
    merged, expected = _merged(store, plan, reporter)
    layer, stack = _land(store, plan, merged, target, author)
    table, kept = _examined(store, plan, stack, target, reporter)
    if not store.evidence(layer.digest, CERTIFICATE_TYPE, CertificateEvidence):
        parity = _parity(store, plan, stack, expected)
        certificate = _certificate(plan, merged, parity, kept, began)
        certificate = certificate.model_copy(update={"despite": why})
        store.put_evidence(CERTIFICATE_TYPE, certificate, layer)
    named = landing.gate_and_name(
        store, layer, stack, parent, target, reporter, override=override, author=author
    )
    return _result(store, plan, merged, named, table)


def _result(
    store: Store, plan: _Plan, merged: Merged, named: landing.Named, table: Matrix
) -> dict[str, Any]:
    certificates = store.evidence(named.layer.digest, CERTIFICATE_TYPE, CertificateEvidence)
    return {
        "layer": named.layer.digest,
        "stack": named.stack.digest,
        "name": str(named.name),
        "method": plan.method.name,
        "parent": plan.parent.digest,
        "merged": [
            {
                "stack": part.stack.digest,
                "label": part.label,
                "layers": [layer.digest for layer in part.layers],
                "weight": weight,
            }
            for part, weight in zip(plan.parts, merged.weights, strict=True)
        ],
        "certificate": certificates[-1].model_dump(mode="json"),
        "matrix": table,
        "metrics": named.examination.to_json(),
    }


def render(result: Mapping[str, Any]) -> str:
    """`merge`'s result for people."""
    parts = " + ".join(f"{each['weight']:.3g} x {each['label']}" for each in result["merged"])
    return "\n".join(
        [
            f"{result['name']} is @{short(result['stack'])}: {parts}",
            *certificate_lines(result["certificate"]),
            "",
            render_matrix(result["matrix"]),
        ]
    )


# -- what is asked ---------------------------------------------------------------------------------


def _check(
    method: Method,
    texts: Sequence[str],
    weights: Sequence[float],
    density: float | None,
    seed: int | None,
    examples: Sequence[str],
) -> None:
    """Raise UsageError listing every option that this merge cannot use."""
    faults = []
    if len(texts) < 2:
        faults.append("there is nothing to merge one stack with: give two or more")
    if weights and len(weights) != len(texts):
        faults.append(f"--weight is given {len(weights)} times for {len(texts)} stacks")
    if not all(abs(weight) < float("inf") for weight in weights):
        faults.append("--weight: give finite numbers")
    if density is not None and not 0 < density <= 1:
        faults.append(f"--density {density:g}: give a share above 0, at most 1")
    unused = {
        "--density": (density is not None and method.density is None, "density"),
        "--seed": (seed is not None and not method.seeded, "seeded"),
        "--examples": (bool(examples) and not method.needs_examples, "needs_examples"),
    }
    for option, (is_unused, field) in unused.items():
        if is_unused:
            users = ", ".join(m.name for m in METHODS.values() if getattr(m, field))
            faults.append(f"{option} means nothing to {method.name}; it is for {users}")
    if faults:
        raise UsageError("this merge cannot be done", faults=faults)


# -- the layer -------------------------------------------------------------------------------------


def _merged(store: Store, plan: _Plan, reporter: Reporter) -> tuple[Merged, list[Tensor]]:
    """The merged update, and the logits that the method's exact result gives, in float32."""

    def progress(done: int, total: int) -> None:
        unit = "steps" if plan.method.needs_examples else "linears"
        text = f"merging by {plan.method.name}: {done}/{total} {unit}"
        reporter.event({"event": "examining", "text": text, "last": done == total})

    layers = [part.factors(store) for part in plan.parts]
    options = Options(density=plan.density, seed=plan.seed, progress=progress)
    if plan.method.needs_examples:
        rows = rows_of(store, plan.parts, plan.examples)
        with loss_over(store, plan.parent, layers, rows, reporter) as loss:
            options = replace(options, loss_and_gradients=loss)
            merged = plan.method.function(layers, plan.weights, options)
        exact = unpacked(compile_stack(store, plan.parent, dtype=torch.float32))
    else:
        exact = unpacked(compile_stack(store, plan.parent, dtype=torch.float32))

        def add(module: str, delta_OI: Tensor) -> None:
            linear = exact.linears[module]
            linear.weight = nn.Parameter(linear.weight.data + delta_OI, requires_grad=False)

        merged = plan.method.function(layers, plan.weights, replace(options, exact=add))
    _fold_exactly(plan.method, exact, layers, merged)
    return merged, _logits(store, plan, exact)


def _fold_exactly(
    method: Method, parent: Compiled, layers: Sequence[LayerFactors], merged: Merged
) -> None:
    """Fold what the method says into the parent; a sum term by term, as it is defined."""
    if method.result == "sum":
        for layer, weight in zip(layers, merged.weights, strict=True):
            weighted = {name: part.weighted(weight) for name, part in layer.items()}
            fold_into(parent.linears, weighted)
    elif method.result == "low-rank":
        fold_into(parent.linears, merged.factors)


def _logits(store: Store, plan: _Plan, compiled: Compiled) -> list[Tensor]:
    """On the questions of all exams that the merged stacks carry."""
    return sayings(compiled, probes_of(store, *(part.stack for part in plan.parts)))


def _land(
    store: Store, plan: _Plan, merged: Merged, name: Name, author: str | None
) -> tuple[Descriptor, ResolvedStack]:
    sources = [
        (layer, layer.weight * weight)
        for part, weight in zip(plan.parts, merged.weights, strict=True)
        for layer in part.layers
    ]
    return land_computed(
        store,
        merged.factors,
        sources,
        origin="merged",
        name=name,
        parents=plan.parent.config,
        author=author,
    )


# -- what it keeps ---------------------------------------------------------------------------------


def _examined(
    store: Store, plan: _Plan, stack: ResolvedStack, name: Name, reporter: Reporter
) -> tuple[Matrix, tuple[Kept, ...]]:
    """Parent, each contribution alone and the merged stack on every exam of all of them."""
    exams = carried(store, stack.layers)
    parent = sit(store, plan.parent, exams, reporter)
    alone = [sit(store, part.stack, exams, reporter) for part in plan.parts]
    now = sit(store, stack, exams, reporter)
    labels = [plan.parent.label, *(part.label for part in plan.parts), f"{name.name} (merged)"]
    table = matrix(list(zip(labels, [parent, *alone, now], strict=True)), exams)
    kept = [
        found
        for part, own in zip(plan.parts, alone, strict=True)
        for found in _kept(store, part, parent, own, now)
    ]
    return table, tuple(kept)


def _kept(
    store: Store,
    part: Contribution,
    parent: Sequence[ExamResult],
    alone: Sequence[ExamResult],
    now: Sequence[ExamResult],
) -> list[Kept]:
    """A contribution's own exams; over the questions that all three stacks could take."""
    found = []
    three = [{result.exam.key: result for result in results} for results in (parent, alone, now)]
    for exam in carried(store, part.layers):
        sat = [results[exam.key] for results in three if exam.key in results]
        if len(sat) < len(three):
            continue  # its questions are withheld
        rows = [
            items
            for items in zip(*(result.items for result in sat), strict=True)
            if all(item.weight > 0 for item in items)
        ]
        if not rows:
            continue
        was, before, after = (
            sum(items[i].value for items in rows) / sum(items[i].weight for items in rows)
            for i in range(3)
        )
        gain = (before - was) * (1 if exam.scorer.higher_is_better else -1)
        found.append(
            Kept(
                exam=exam.name,
                layer=exam.layer,
                metric=exam.scorer.metric,
                before=before,
                after=after,
                retained=(after - was) / (before - was) if gain > 0 else None,
            )
        )
    return found


def _parity(store: Store, plan: _Plan, stack: ResolvedStack, expected: Sequence[Tensor]) -> Parity:
    """The stack as it was stored beside the method's exact result.

    Raises CheckError where they differ although the method loses nothing.
    """
    found = _logits(store, plan, compile_stack(store, stack, dtype=torch.float32))
    parity = compare(expected, found, torch.float32)
    if plan.method.result != "dense" and not parity.max_rel <= parity.limit:
        store.remove_root(stack.layers[-1].digest)
        raise CheckError(
            f"{stack.label} is not what {plan.method.name} makes: outputs differ by "
            f"{parity.max_rel:.2e}, the limit is {parity.limit:.0e}",
            hint="no name was moved; please report this",
        )
    return parity


def _certificate(
    plan: _Plan, merged: Merged, parity: Parity, kept: tuple[Kept, ...], began: float
) -> CertificateEvidence:
    worst = max(merged.modules, key=lambda module: merged.modules[module].share)
    share = merged.modules[worst].share
    return CertificateEvidence(
        created=runs.now().isoformat(),
        method=plan.method.name,
        rank=max(factors.rank for factors in merged.factors.values()),
        rank_before=max(module.rank_before for module in merged.modules.values()),
        weights=plan.weights,
        density=plan.density if plan.density is not None else plan.method.density,
        seed=plan.seed if plan.method.seeded else None,
        discarded=merged.lost,
        worst_module=worst if share else "",
        worst_discarded=share,
        logits_difference=parity.max_rel,
        probes=parity.prompts,
        exams=kept,
        seconds=round(time.monotonic() - began, 2),
    )
