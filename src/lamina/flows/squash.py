"""`lamina squash`: all layers of a stack as one layer over the bare base, certified.

The original stays as it is, so a squash is undone by pointing the name back. The new layer
carries the exams, the rehearsal set and the marks of seen rows of all layers that went into it;
the gate compares it with the original, exam by exam.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lamina.core.digest import short
from lamina.core.errors import CheckError, UsageError
from lamina.core.evidence import (
    CERTIFICATE_TYPE,
    NAMING_TYPE,
    CertificateEvidence,
    Kept,
    NamingEvidence,
)
from lamina.core.licences import combine
from lamina.core.manifests import Descriptor, StackConfig
from lamina.core.names import Name, parse_reference
from lamina.core.report import Reporter
from lamina.exams.report import comparisons
from lamina.export.parity import Parity, compare
from lamina.flows import landing, rehearsal, runs
from lamina.flows.examine import current, sit
from lamina.flows.inventory import certificate_lines
from lamina.flows.joined import land_computed
from lamina.flows.licensing import check, works_in
from lamina.flows.lineage import moved_on
from lamina.flows.modality import probes_of, sayings
from lamina.flows.naming import new_name
from lamina.flows.questions import carried
from lamina.flows.squeeze import PASSES, squeezed
from lamina.gate.verdict import Policy
from lamina.lowrank.maths import LayerFactors
from lamina.lowrank.squash import NOISE, Squashed, discarded_share, relative_error, squash_layers
from lamina.stack.compile import compile_stack, layer_factors
from lamina.stack.resolve import ResolvedStack, over_base, resolve
from lamina.store.layout import Store

METHOD = "squash"
ROUNDING = 2**-8
"""The unit roundoff of bfloat16, in which exams are sat."""


def squash(
    store: Store,
    text: str,
    *,
    rank: int | None = None,
    tolerance: float | None = None,
    passes: int | None = None,
    name: str | None = None,
    reporter: Reporter,
    override: str | None = None,
    despite: str | None = None,
    author: str | None = None,
) -> dict[str, Any]:
    """Squash the stack that `text` means and move `name` (its own by default) to the result.

    At most `rank` a module, or a relative error of `tolerance` a module; exact without either.
    What a `rank` leaves is trained for `passes` over the rehearsal rows (see `squeeze`; None:
    PASSES, 0: never).
    A stack that is one layer of that rank already is named as it is. Can be run again when killed.
    `despite`: the reason for joining what a licence forbids to join.
    Raises UsageError, UnknownNameError, CheckError when an exact squash answers otherwise or a
    licence forbids it, and GateError; the layer is kept then.
    """
    began = time.monotonic()
    limits = _Limits(rank, tolerance, passes)
    limits.check()
    original = resolve(store, text)
    target = _target(store, text, name, original)
    why = _licensed(store, original, reporter, despite)
    before, undo = current(store, target.name), _undo(store, target)
    layer, stack = _made(store, original, target, limits, reporter, author, began, why)
    named = landing.gate_and_name(
        store,
        layer,
        stack,
        original,
        target,
        reporter,
        override=override,
        author=author,
        policy=Policy(rounding=ROUNDING) if limits.exact else None,
    )
    certificates = store.evidence(layer.digest, CERTIFICATE_TYPE, CertificateEvidence)
    return {
        "layer": layer.digest,
        "stack": stack.digest,
        "name": str(named.name),
        "changed": stack.digest != original.digest,
        "layers_before": len(original.layers),
        "parameters": stack.layers[0].config.parameters,
        "parameters_before": sum(item.config.parameters for item in original.layers),
        "certificate": certificates[-1].model_dump(mode="json") if certificates else None,
        "metrics": named.examination.to_json(),
        "undo": undo if stack.digest != before else None,
    }


def render(result: Mapping[str, Any]) -> str:
    """`squash`'s result for people."""
    found = result["certificate"]
    lines = [f"{result['name']} is @{short(result['stack'])}"]
    if result["changed"]:
        count = result["layers_before"]
        lines[0] += (
            f": {count} layer{'s' if count > 1 else ''} squashed into one, "
            f"{result['parameters']:,} parameters (were {result['parameters_before']:,})"
        )
        lines += certificate_lines(found)
    if result["undo"]:
        lines.append(f"undo: {result['undo']}")
    return "\n".join(lines)


# -- what is asked ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Limits:
    """How much of the update is kept."""

    rank: int | None
    tolerance: float | None
    passes: int | None

    @property
    def exact(self) -> bool:
        """Nothing but rounding is left out."""
        return self.rank is None and self.tolerance is None

    def check(self) -> None:
        """Raise UsageError with every fault."""
        rank, tolerance, passes = self.rank, self.tolerance, self.passes
        faults = []
        if rank is not None and tolerance is not None:
            faults.append("--rank and --tolerance both say how much to keep: give one of them")
        if rank is not None and rank < 1:
            faults.append(f"--rank {rank}: the lowest rank is 1")
        if tolerance is not None and not 0 < tolerance < 1:
            faults.append(f"--tolerance {tolerance:g}: give a share between 0 and 1, such as 0.1")
        if passes is not None and passes < 0:
            faults.append(f"--passes {passes}: 0 leaves the cut as it is")
        if passes and rank is None:
            faults.append(f"--passes {passes}: only what --rank cuts is trained")
        if faults:
            raise UsageError("this squash cannot be done", faults=faults)


def _target(store: Store, text: str, name: str | None, stack: ResolvedStack) -> Name:
    """The name that moves. Raises UsageError where there is nothing to squash, or no name."""
    if not stack.layers:
        raise UsageError(
            f"{text} is a bare base: there is no layer to squash",
            hint="give a stack: lamina list",
        )
    if name is not None:
        return new_name(store, name)
    reference = parse_reference(text)
    if not isinstance(reference, Name):
        raise UsageError(f"{text} has no name to move", hint="give one with --as NAME")
    if moved_on(store, reference):
        raise UsageError(
            f"{reference.name} has moved on from {text}", hint="name the result with --as NAME"
        )
    return Name(reference.name)


def _undo(store: Store, name: Name) -> str | None:
    """The command that points a name back at what it means now; None for a name not yet given."""
    now = current(store, name.name)
    versions = [
        known
        for tag, target in store.names().get(name.name, {}).items()
        if target.digest == now and (known := Name(name.name, tag).version) is not None
    ]
    if now is None or not versions:
        return None
    version = max(versions)
    records = store.evidence(now, NAMING_TYPE, NamingEvidence)
    overridden = any(r.override for r in records if (r.name, r.version) == (name.name, version))
    why = ' --accept-regression "as before"' if overridden else ""
    return f"lamina tag {name.at_version(version)} {name.name}{why}"


def _licensed(
    store: Store, stack: ResolvedStack, reporter: Reporter, despite: str | None
) -> str | None:
    """The reason for what a licence forbids, where one was needed. Raises CheckError."""
    if len(stack.layers) < 2:
        return None
    file = f"the squash of {stack.label}"
    found = combine(works_in(store, stack.layers, file=file), "combine")
    return check(found, f"to squash {stack.label}", reporter, despite=despite)


# -- the layer -------------------------------------------------------------------------------------


def _made(
    store: Store,
    original: ResolvedStack,
    name: Name,
    limits: _Limits,
    reporter: Reporter,
    author: str | None,
    began: float,
    despite: str | None,
) -> tuple[Descriptor, ResolvedStack]:
    """The squashed layer and its stack, certified and unnamed; the original's where it is that."""
    layers = [layer_factors(store, layer) for layer in original.layers]
    parts = _squashed(layers, original, limits, reporter)
    if _is_one_already(original, parts):
        reporter.say(f"{original.label} is one layer of that rank already")
        return store.describe(original.layers[0].digest), original
    rows = rehearsal.of_layers(store, original.layers)
    passes = PASSES if limits.passes is None else limits.passes
    if limits.rank is None or not rows or discarded_share(parts) <= NOISE:
        passes = 0
    if passes and original.draws:
        if limits.passes is not None:
            raise UsageError("what a cut costs images is not made up for", hint="--passes 0")
        passes = 0
    if passes:
        cut = {module: part.factors for module, part in parts.items()}
        tuned = squeezed(store, original, cut, rows, passes, reporter)
        parts = _measured(layers, parts, tuned)
    layer, stack = _land(store, original, name, parts, author)
    if not store.evidence(layer.digest, CERTIFICATE_TYPE, CertificateEvidence):
        certificate = _certificate(
            store, original, stack, parts, passes, reporter, began, exact=limits.exact
        ).model_copy(update={"despite": despite})
        store.put_evidence(CERTIFICATE_TYPE, certificate, layer)
    return layer, stack


def _squashed(
    layers: Sequence[LayerFactors], stack: ResolvedStack, limits: _Limits, reporter: Reporter
) -> dict[str, Squashed]:
    def progress(done: int, total: int) -> None:
        text = f"squashing {stack.label}: {done}/{total} linears"
        reporter.event({"event": "examining", "text": text, "last": done == total})

    return squash_layers(layers, rank=limits.rank, tolerance=limits.tolerance, progress=progress)


def _measured(
    layers: Sequence[LayerFactors], parts: Mapping[str, Squashed], tuned: LayerFactors
) -> dict[str, Squashed]:
    """The parts with other factors, and how far those are from the update."""
    found = {}
    for module, part in parts.items():
        terms = [layer[module] for layer in layers if module in layer]
        away = part.norm * relative_error(terms, [tuned[module]]) if part.norm else 0.0
        found[module] = replace(part, factors=tuned[module], discarded=away)
    return found


def _is_one_already(stack: ResolvedStack, parts: Mapping[str, Squashed]) -> bool:
    """Whether the stack is a single layer, at weight 1, that no module of got any smaller."""
    if len(stack.layers) > 1 or stack.layers[0].weight != 1.0:
        return False
    return all(part.factors.rank == part.rank_before for part in parts.values())


def _land(
    store: Store,
    original: ResolvedStack,
    name: Name,
    parts: Mapping[str, Squashed],
    author: str | None,
) -> tuple[Descriptor, ResolvedStack]:
    return land_computed(
        store,
        {module: part.factors for module, part in parts.items()},
        [(layer, layer.weight) for layer in original.layers],
        origin="squashed",
        name=name,
        parents=StackConfig(base=original.config.base),
        author=author,
    )


# -- the certificate -------------------------------------------------------------------------------


def _certificate(
    store: Store,
    original: ResolvedStack,
    stack: ResolvedStack,
    parts: Mapping[str, Squashed],
    passes: int,
    reporter: Reporter,
    began: float,
    *,
    exact: bool,
) -> CertificateEvidence:
    """Measure what the squash changed. Raises CheckError for an exact one that changed answers."""
    parity = _parity(store, original, stack, reporter)
    if exact and not parity.max_rel <= parity.limit:
        store.remove_root(stack.layers[0].digest)
        raise CheckError(
            f"the squash of {original.label} is not the stack it was made from: outputs differ by "
            f"{parity.max_rel:.2e}, the limit is {parity.limit:.0e}",
            hint="no name was moved; please report this",
        )
    worst = max(parts, key=lambda module: parts[module].share)
    return CertificateEvidence(
        created=runs.now().isoformat(),
        method=METHOD,
        rank=max(part.factors.rank for part in parts.values()),
        rank_before=max(part.rank_before for part in parts.values()),
        discarded=discarded_share(parts),
        worst_module=worst if parts[worst].share else "",
        worst_discarded=parts[worst].share,
        passes=passes,
        logits_difference=parity.max_rel,
        probes=parity.prompts,
        exams=_kept(store, original, stack, reporter, with_gain=not exact),
        seconds=round(time.monotonic() - began, 2),
    )


def _parity(
    store: Store, original: ResolvedStack, stack: ResolvedStack, reporter: Reporter
) -> Parity:
    """Both stacks' logits on the exams' own questions, in float32, one model at a time."""
    reporter.event({"event": "examining", "text": f"comparing the logits of {original.label}"})
    asked = probes_of(store, original)
    expected = sayings(compile_stack(store, original, dtype=torch.float32), asked)
    found = sayings(compile_stack(store, stack, dtype=torch.float32), asked)
    return compare(expected, found, torch.float32)


def _kept(
    store: Store,
    original: ResolvedStack,
    stack: ResolvedStack,
    reporter: Reporter,
    *,
    with_gain: bool,
) -> tuple[Kept, ...]:
    """Every exam on the original and on the squashed stack; what is on record is not asked again.

    With a gain, the bare base sits them too: retained = (after - base) / (before - base).
    """
    exams = carried(store, stack.layers)
    after = sit(store, stack, exams, reporter)
    before = sit(store, original, exams, reporter)
    base: dict[tuple[str, str], float] = {}
    if with_gain:
        bare = sit(store, over_base(store, original.base, label="the base"), exams, reporter)
        base = {(c.exam, c.exam_digest): c.before for c in comparisons(bare, after)}
    return tuple(
        Kept(
            exam=c.exam,
            layer=c.layer,
            metric=c.metric,
            before=c.before,
            after=c.after,
            retained=_retained(base.get((c.exam, c.exam_digest)), c.before, c.after),
        )
        for c in comparisons(before, after)
    )


def _retained(base: float | None, before: float, after: float) -> float | None:
    """Share of the change from base to before that is left after; None where there was none."""
    if base is None or before == base:
        return None
    return (after - base) / (before - base)
