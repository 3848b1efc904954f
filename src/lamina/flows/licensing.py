"""The licences of a stack's base, layers and data, and what they say to joining or sharing them."""

from collections.abc import Iterable, Sequence

from lamina.core.errors import CheckError
from lamina.core.licences import NO_ADVICE, Act, Licensed, Stated, combine, read
from lamina.core.manifests import Credit, LayerConfig
from lamina.core.report import Reporter
from lamina.flows.credit import credits_of
from lamina.stack.resolve import ResolvedLayer, ResolvedStack
from lamina.store.layout import Store

_JOINED = ("squashed", "merged")
"""Origins of a layer that is one file of several works."""


def works_in(
    store: Store, layers: Sequence[ResolvedLayer], *, file: str | None = None
) -> list[Stated]:
    """`works_of` the layers as they are in the store."""
    return works_of([(each.config, credits_of(store, each.config)) for each in layers], file=file)


def works_of(
    layers: Iterable[tuple[LayerConfig, Sequence[Credit]]], *, file: str | None = None
) -> list[Stated]:
    """Layers, the layers whose work is in them, and their data where its licence is another one.

    `file`: what joins them all. A layer that was computed from others is a file that joins these.
    """
    found: list[Stated] = []
    for config, credits in layers:
        joins = file or (f"layer {config.name}" if config.origin in _JOINED else None)
        inside = [
            Stated("layer", credit.name or credit.layer, credit.licence, credit.author, joins)
            for credit in credits
        ]
        known = {terms for work in inside for way in read(work.licence) for terms in way}
        own = {terms for way in read(config.licence) for terms in way}
        if not inside or not own <= known:
            found.append(Stated("layer", config.name, config.licence, config.author, joins))
        found += inside
        data = config.data.licence if config.data else None
        if data and data != config.licence:
            found.append(Stated("data", f"of {config.name}", data, None, joins))
    return found


def licences_of(
    store: Store,
    stack: ResolvedStack,
    act: Act = "share",
    *,
    file: str | None = None,
    merged: bool = False,
) -> Licensed:
    """What a stack carries: its base's licence and those of all works in its layers.

    `file`: what joins all layers; `merged`: the base is in it as well.
    """
    base = _base(store, stack, file if merged else None)
    return combine([base, *works_in(store, stack.layers, file=file)], act)


def check(found: Licensed, what: str, reporter: Reporter, *, despite: str | None) -> str | None:
    """Say what to look at; stop where a licence forbids it, unless a reason is given.

    Returns the reason where it was needed, for the record. Raises CheckError.
    """
    for text in found.doubts:
        reporter.say(f"licences: {text}")
    if not found.forbidden:
        return None
    if not despite:
        raise CheckError(
            f"a licence forbids {what}",
            faults=found.forbidden,
            hint=f'with leave from its author: --despite "why" ({NO_ADVICE})',
        )
    for text in found.forbidden:
        reporter.say(f"licences: {text}; going on: {despite}")
    return despite


def _base(store: Store, stack: ResolvedStack, file: str | None) -> Stated:
    names = [name for name, base in store.bases().items() if base.digest == stack.base.digest]
    return Stated("base", min(names, default="(unnamed)"), stack.base_config.licence, file=file)
