"""`lamina rebase`: carry a stack's layers to another parent or another base, layer by layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lamina.core.digest import short
from lamina.core.errors import GateError, UsageError
from lamina.core.manifests import Rung, StackedLayer
from lamina.core.names import Name, parse_reference
from lamina.core.report import Reporter
from lamina.flows.ladder.carry import KEEP, Carried, carry
from lamina.flows.ladder.registry import up_to
from lamina.flows.ladder.rung import Move
from lamina.flows.landing import Named, gate_and_name
from lamina.flows.naming import new_name
from lamina.flows.succession import ancestors
from lamina.stack.resolve import ResolvedLayer, ResolvedStack, of_config, resolve
from lamina.store.layout import Store


@dataclass(frozen=True)
class Request:
    """What `lamina rebase` was asked to do."""

    stack: str
    onto: str
    name: str | None = None
    keep: float = KEEP
    at_most: str | None = None
    """Dearest rung to try."""
    data: Sequence[str] = ()
    override: str | None = None
    author: str | None = None


@dataclass(frozen=True, eq=False)
class Rebased:
    """A stack over other parents, and how each layer got there."""

    named: Named
    layers: tuple[Carried, ...]

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "name": str(self.named.name),
            "stack": self.named.stack.digest,
            "layers": [layer.to_json() for layer in self.layers],
            "metrics": self.named.examination.to_json(),
        }

    def render(self) -> str:
        """For people."""
        lines = [layer.render() for layer in self.layers]
        return "\n".join([*lines, self.named.examination.render(), f"{self.named.name}"])


def rebase(
    store: Store, request: Request, reporter: Reporter, should_stop: Callable[[], bool]
) -> Rebased:
    """Carry the layers of `stack` that `onto` lacks over to it, and move the name.

    A layer of which `onto` holds a newer version stays behind. Raises GateError when a layer keeps
    too little on every rung, or the whole stack fails the gate; UsageError, TrainInterrupted.
    """
    rungs = up_to(request.at_most)
    stack, onto = resolve(store, request.stack, force=True), resolve(store, request.onto)
    name = _name(store, request, stack, onto)
    moving = to_move(store, stack, onto)
    command = f"lamina rebase {request.stack} --onto {request.onto}"
    carried: list[Carried] = []
    for index in moving:
        move = Move(
            store=store,
            old=prefix(store, stack, index + 1),
            onto=onto,
            supersede=_supersedes(request, name, stack, onto),
            command=command,
            reporter=reporter,
            should_stop=should_stop,
            data=request.data,
        )
        carried.append(carried_or_refused(move, rungs, request.keep, request.override))
        onto = carried[-1].stack
    named = name_top(
        store,
        onto,
        name,
        reporter,
        override=request.override,
        author=request.author,
        carried=carried,
    )
    return Rebased(named, tuple(carried))


def prefix(store: Store, stack: ResolvedStack, layers: int) -> ResolvedStack:
    """The stack of the lowest `layers` layers."""
    config = stack.config.model_copy(update={"layers": stack.config.layers[:layers]})
    return of_config(store, config, label=f"{stack.label}[{layers}]", force=True)


def carried_or_refused(
    move: Move, rungs: Sequence[Rung], keep: float, override: str | None
) -> Carried:
    """Carry one layer; raise GateError when no rung is good enough and nobody overrides."""
    found = carry(move, rungs, keep)
    move.reporter.say(found.render())
    if not found.passed and not override:
        raise GateError(
            f"{found.name} lost too much on its way to {move.onto.label}",
            faults=[f"{found.evidence.rung}: kept most", *(f"{r}: {w}" for r, w in _why(found))],
            hint=f"the best is kept as @{short(found.layer.digest)}; ask for less with "
            '--keep, give the data with --data, or override with --accept-regression "why"',
        )
    return found


def _why(found: Carried) -> Sequence[tuple[str, str]]:
    kept = [f"{k.exam}: {k.metric} {k.before:.3f} to {k.after:.3f}" for k in found.evidence.exams]
    return [*found.evidence.tried, (found.evidence.rung, "; ".join(kept))]


def name_top(
    store: Store,
    stack: ResolvedStack,
    name: Name,
    reporter: Reporter,
    *,
    override: str | None,
    author: str | None,
    carried: Sequence[Carried] = (),
) -> Named:
    """Pass the gate with a stack and move the name; then nothing but it keeps the carried layers.

    Raises GateError.
    """
    top = store.describe(stack.layers[-1].digest)
    beneath = prefix(store, stack, len(stack.layers) - 1)
    named = gate_and_name(
        store, top, stack, beneath, name, reporter, override=override, author=author
    )
    for each in carried:
        store.remove_root(each.layer.digest)
    return named


# -- what moves where ----------------------------------------------------------------------------


def to_move(store: Store, stack: ResolvedStack, onto: ResolvedStack) -> list[int]:
    """Places of the layers that are carried: all that `onto` neither has nor has a newer one of.

    Raises UsageError when there are none.
    """
    has = {layer.digest for layer in onto.layers}
    has |= {old for layer in onto.layers for old in ancestors(store, layer)}
    has |= {source.layer for layer in onto.layers for source in _carried_from(layer)}
    moving = [i for i, layer in enumerate(stack.layers) if layer.digest not in has]
    if not moving or stack.digest == onto.digest:
        raise UsageError(
            f"{onto.label} has every layer of {stack.label} already, or newer versions of them",
            hint="see: lamina log --graph",
        )
    if onto.layers and _stands_on(stack, onto):
        raise UsageError(f"{stack.label} stands on {onto.label} already")
    return moving


def _carried_from(layer: ResolvedLayer) -> tuple[StackedLayer, ...]:
    return layer.config.sources if layer.config.origin in ("carried", "distilled") else ()


def _stands_on(stack: ResolvedStack, onto: ResolvedStack) -> bool:
    beneath = onto.config.layers
    return stack.config.base == onto.config.base and stack.config.layers[: len(beneath)] == beneath


def _name(store: Store, request: Request, stack: ResolvedStack, onto: ResolvedStack) -> Name:
    reference = parse_reference(request.stack)
    if request.name is not None:
        return new_name(store, request.name)
    if not stack.layers:
        raise UsageError(f"{request.stack} is a base: it has no layer to carry")
    if stack.config.base != onto.config.base or not isinstance(reference, Name):
        raise UsageError(
            "the result needs a name of its own",
            hint=f"lamina rebase {request.stack} --onto {request.onto} --as NAME",
        )
    return Name(reference.name)


def _supersedes(request: Request, name: Name, stack: ResolvedStack, onto: ResolvedStack) -> bool:
    """Carried under its own name, over its own base, a layer is a new version of itself."""
    reference = parse_reference(request.stack)
    own = isinstance(reference, Name) and reference.name == name.name
    return own and stack.config.base == onto.config.base
