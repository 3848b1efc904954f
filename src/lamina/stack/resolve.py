"""From what a user types to a stack: base, layers, weights, all by digest.

A name or digest of a stack means that stack; a base's name means the stack of no layers over it;
a layer's digest means the stack that it was trained as the top of.
"""

from dataclasses import dataclass

from lamina.core.digest import short
from lamina.core.errors import UnknownNameError, UsageError, WrongParentError
from lamina.core.manifests import (
    BASE_TYPE,
    LAYER_TYPE,
    STACK_TYPE,
    BaseConfig,
    Descriptor,
    ImageManifest,
    LayerConfig,
    StackConfig,
    StackedLayer,
)
from lamina.core.names import Name, parse_reference
from lamina.store.layout import Store


@dataclass(frozen=True)
class ResolvedLayer:
    """A layer in a stack, with what its manifest says."""

    digest: str
    weight: float
    config: LayerConfig
    manifest: ImageManifest


@dataclass(frozen=True)
class ResolvedStack:
    """A stack with everything it names read and checked."""

    descriptor: Descriptor
    config: StackConfig
    base: Descriptor
    base_config: BaseConfig
    layers: tuple[ResolvedLayer, ...]
    label: str
    """How the user called it."""

    @property
    def digest(self) -> str:
        """The stack's own digest."""
        return self.descriptor.digest

    @property
    def draws(self) -> bool:
        """Whether it makes images; else it talks."""
        return self.base_config.draws


def resolve(store: Store, text: str, *, force: bool = False) -> ResolvedStack:
    """The stack that `text` means. `force` lets a layer stand on parents it was not trained on.

    Raises UnknownNameError, WrongParentError, StoreError.
    """
    reference = parse_reference(text)
    try:
        descriptor = store.resolve(reference)
    except UnknownNameError:
        known = sorted({*store.names(), *store.bases()})
        if not isinstance(reference, Name) or reference.name in known:
            raise
        raise UnknownNameError(
            f"nothing is called {reference.name!r}",
            hint=f"known: {', '.join(known)}"
            if known
            else "start with: lamina base pull smollm2-135m",
        ) from None
    return of_descriptor(store, descriptor, label=text, force=force)


def of_descriptor(
    store: Store, descriptor: Descriptor, *, label: str, force: bool = False
) -> ResolvedStack:
    """The stack behind a base's, layer's or stack's descriptor."""
    manifest = store.manifest(descriptor.digest)
    if manifest.artifactType == BASE_TYPE:
        return over_base(store, descriptor, label=label)
    if manifest.artifactType == LAYER_TYPE:
        top = store.config(manifest, LayerConfig)
        whole = (*top.parents, StackedLayer(layer=descriptor.digest))
        return of_config(store, StackConfig(base=top.base, layers=whole), label=label, force=force)
    if manifest.artifactType != STACK_TYPE:
        raise UsageError(f"{label} is no stack, layer or base but {manifest.artifactType}")
    return of_config(store, store.config(manifest, StackConfig), label=label, force=force)


def of_config(
    store: Store, config: StackConfig, *, label: str, force: bool = False
) -> ResolvedStack:
    """The stack of a base and layers, whether or not its manifest is in the store.

    Writes nothing: `Store.put_stack` does, before something is recorded about it or it is named.
    """
    base = store.find_base(config.base)
    descriptor = store.describe_stack(config.base, config.layers)
    layers = tuple(_layer(store, item) for item in config.layers)
    stack = ResolvedStack(descriptor, config, base, _base_config(store, base), layers, label)
    if not force:
        check_parents(stack)
    return stack


def over_base(store: Store, base: Descriptor, *, label: str) -> ResolvedStack:
    """The stack of no layers over a base."""
    identity = _base_config(store, base).identity
    return of_config(store, StackConfig(base=identity), label=label)


def check_parents(stack: ResolvedStack) -> None:
    """Refuse layers that stand on another base or on other layers than they were trained on."""
    faults = []
    for index, layer in enumerate(stack.layers):
        if layer.config.base != stack.config.base:
            faults.append(
                f"layer {layer.config.name} ({short(layer.digest)}) was trained on base "
                f"{layer.config.base}, this stack has base {stack.config.base}"
            )
        trained_on = [(p.layer, p.weight) for p in layer.config.parents]
        stands_on = [(b.digest, b.weight) for b in stack.layers[:index]]
        if trained_on != stands_on:
            faults.append(
                f"layer {layer.config.name} ({short(layer.digest)}) was trained over "
                f"{_describe(trained_on)}, here it stands over {_describe(stands_on)}"
            )
    if faults:
        raise WrongParentError(
            f"{stack.label} puts layers where they were not trained",
            faults=faults,
            hint="`lamina rebase` carries a layer over properly; --force overrides, and records it",
        )


def _describe(layers: list[tuple[str, float]]) -> str:
    return "[" + ", ".join(f"{digest} x {weight:g}" for digest, weight in layers) + "]"


def _layer(store: Store, item: StackedLayer) -> ResolvedLayer:
    manifest = store.manifest(item.layer)
    return ResolvedLayer(item.layer, item.weight, store.config(manifest, LayerConfig), manifest)


def _base_config(store: Store, base: Descriptor) -> BaseConfig:
    return store.config(store.manifest(base.digest), BaseConfig)
