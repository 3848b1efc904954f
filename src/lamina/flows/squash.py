"""`lamina squash`: all layers of a stack as one layer over the bare base, certified.

The original stays as it is, so a squash is undone by pointing the name back. The new layer
carries the exams, the rehearsal set and the marks of seen rows of all layers that went into it;
the gate compares it with the original, exam by exam.
"""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lamina.core.digest import short
from lamina.core.errors import CheckError, UsageError
from lamina.core.manifests import (
    CERTIFICATE_TYPE,
    NAMING_TYPE,
    CertificateEvidence,
    Descriptor,
    Kept,
    NamingEvidence,
    StackConfig,
)
from lamina.core.names import Name, parse_reference
from lamina.core.report import Reporter
from lamina.exams.report import comparisons
from lamina.export.parity import Parity, compare, logits_of
from lamina.flows import landing, runs
from lamina.flows.adapters import PROBE
from lamina.flows.examine import current, sit
from lamina.flows.inventory import certificate_lines
from lamina.flows.joined import land_computed
from lamina.flows.lineage import moved_on
from lamina.flows.naming import new_name
from lamina.flows.questions import carried, probe_prompts
from lamina.gate.verdict import Policy
from lamina.lowrank.squash import Squashed, discarded_share, squash_layers
from lamina.stack.compile import Compiled, compile_stack, layer_factors
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
    name: str | None = None,
    reporter: Reporter,
    override: str | None = None,
    author: str | None = None,
) -> dict[str, Any]:
    """Squash the stack that `text` means and move `name` (its own by default) to the result.

    At most `rank` a module, or a relative error of `tolerance` a module; exact without either.
    A stack that is one layer of that rank already is named as it is. Can be run again when killed.
    Raises UsageError, UnknownNameError, CheckError when an exact squash answers otherwise, and
    GateError; the layer is kept then.
    """
    began = time.monotonic()
    _check(rank, tolerance)
    original = resolve(store, text)
    target = _target(store, text, name, original)
    before, undo = current(store, target.name), _undo(store, target)
    layer, stack = _made(store, original, target, rank, tolerance, reporter, author, began)
    named = landing.gate_and_name(
        store,
        layer,
        stack,
        original,
        target,
        reporter,
        override=override,
        author=author,
        policy=Policy(rounding=ROUNDING) if rank is None and tolerance is None else None,
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


def _check(rank: int | None, tolerance: float | None) -> None:
    faults = []
    if rank is not None and tolerance is not None:
        faults.append("--rank and --tolerance both say how much to keep: give one of them")
    if rank is not None and rank < 1:
        faults.append(f"--rank {rank}: the lowest rank is 1")
    if tolerance is not None and not 0 < tolerance < 1:
        faults.append(f"--tolerance {tolerance:g}: give a share between 0 and 1, such as 0.1")
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


# -- the layer -------------------------------------------------------------------------------------


def _made(
    store: Store,
    original: ResolvedStack,
    name: Name,
    rank: int | None,
    tolerance: float | None,
    reporter: Reporter,
    author: str | None,
    began: float,
) -> tuple[Descriptor, ResolvedStack]:
    """The squashed layer and its stack, certified and unnamed; the original's where it is that."""
    parts = _squashed(store, original, rank, tolerance, reporter)
    if _is_one_already(original, parts):
        reporter.say(f"{original.label} is one layer of that rank already")
        return store.describe(original.layers[0].digest), original
    layer, stack = _land(store, original, name, parts, author)
    if not store.evidence(layer.digest, CERTIFICATE_TYPE, CertificateEvidence):
        exact = rank is None and tolerance is None
        certificate = _certificate(store, original, stack, parts, reporter, began, exact=exact)
        store.put_evidence(CERTIFICATE_TYPE, certificate, layer)
    return layer, stack


def _squashed(
    store: Store,
    stack: ResolvedStack,
    rank: int | None,
    tolerance: float | None,
    reporter: Reporter,
) -> dict[str, Squashed]:
    def progress(done: int, total: int) -> None:
        text = f"squashing {stack.label}: {done}/{total} linears"
        reporter.event({"event": "examining", "text": text, "last": done == total})

    layers = [layer_factors(store, layer) for layer in stack.layers]
    return squash_layers(layers, rank=rank, tolerance=tolerance, progress=progress)


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
            f"the squash of {original.label} is not the stack it was made from: logits differ by "
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
    asked = [(PROBE, ()), *probe_prompts(store, original)]

    def answers(compiled: Compiled) -> list[Tensor]:
        return logits_of(compiled.model, [compiled.format.prompt_ids(*each) for each in asked])

    expected = answers(compile_stack(store, original, dtype=torch.float32))
    found = answers(compile_stack(store, stack, dtype=torch.float32))
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
