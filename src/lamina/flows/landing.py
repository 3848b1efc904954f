"""What every verb that makes a layer ends with: its blobs, the layer, its stack, the gate, a name.

Killed anywhere, the verb can be run again: blobs and objects are found by digest, and an unnamed
layer stays a root until its name has moved.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lamina.core.digest import short
from lamina.core.manifests import (
    JSON_TYPE,
    JSONL_TYPE,
    SAFETENSORS_TYPE,
    Descriptor,
    ExamSpec,
    LayerConfig,
    StackedLayer,
)
from lamina.core.names import Name
from lamina.core.recipe import Scaling
from lamina.core.report import Reporter
from lamina.flows.examine import Examination, examine_for_gate
from lamina.flows.naming import name_stack
from lamina.gate.verdict import Policy
from lamina.lowrank import codec
from lamina.lowrank.maths import LayerFactors
from lamina.stack.resolve import ResolvedLayer, ResolvedStack, of_descriptor
from lamina.store.layout import Store


@dataclass(frozen=True)
class Named:
    """A stack that has its name."""

    name: Name
    """With its version."""
    layer: Descriptor
    stack: ResolvedStack
    examination: Examination


def adapter_blobs(
    store: Store,
    factors: LayerFactors,
    *,
    rank: int,
    alpha: float,
    scaling: Scaling,
    target_modules: Sequence[str],
    base: str,
) -> list[Descriptor]:
    """Store a layer's payload, a PEFT adapter."""
    config, weights = codec.encode(
        factors, rank=rank, alpha=alpha, scaling=scaling, target_modules=target_modules, base=base
    )
    return [
        store.put_bytes(config, JSON_TYPE, title=codec.CONFIG_FILE),
        store.put_bytes(weights, SAFETENSORS_TYPE, title=codec.WEIGHTS_FILE),
    ]


def exams_of(
    store: Store, layers: Sequence[ResolvedLayer]
) -> tuple[tuple[ExamSpec, ...], list[Descriptor]]:
    """The exams of several layers as one layer carries them: specs, and the questions' blobs.

    An exam that several carry is taken once. Withheld questions stay withheld.
    """
    specs: list[ExamSpec] = []
    blobs: list[Descriptor] = []
    for layer in layers:
        for index, spec in enumerate(layer.config.exams):
            if spec in specs:
                continue
            found = layer.manifest.blob(f"exam-{index}.jsonl")
            if found is not None:
                data = store.read(found.digest)
                blobs.append(store.put_bytes(data, JSONL_TYPE, title=f"exam-{len(specs)}.jsonl"))
            specs.append(spec)
    return tuple(specs), blobs


def land(
    store: Store,
    config: LayerConfig,
    blobs: Sequence[Descriptor],
    *,
    label: str,
    weight: float = 1.0,
    force: bool = False,
) -> tuple[Descriptor, ResolvedStack]:
    """Store a layer over its parents and the stack that it tops. The layer is kept, unnamed."""
    layer = store.put_layer(config, blobs)
    stacked = (*config.parents, StackedLayer(layer=layer.digest, weight=weight))
    stack = store.put_stack(config.base, stacked)
    return layer, of_descriptor(store, stack, label=label, force=force)


def gate_and_name(
    store: Store,
    layer: Descriptor,
    stack: ResolvedStack,
    beneath: ResolvedStack,
    name: Name,
    reporter: Reporter,
    *,
    override: str | None,
    author: str | None,
    policy: Policy | None = None,
    despite: str | None = None,
) -> Named:
    """Examine a stack whose top is `layer`, and move `name` to it if the gate passes.

    `despite` goes on record with the move.
    Raises GateError; the layer is kept then, and the message says how to name it all the same.
    """
    examination = examine_for_gate(store, stack, beneath, name.name, reporter, policy)
    kept_as = f"@{short(layer.digest)}"
    version = name_stack(
        store,
        stack,
        name,
        examination,
        override=override,
        author=author,
        kept_as=kept_as,
        retry_with=f'lamina tag {kept_as} {name.name} --accept-regression "why"',
        despite=despite,
    )
    store.remove_root(layer.digest)  # the named stack keeps it from here on
    return Named(name.at_version(version), layer, stack, examination)
