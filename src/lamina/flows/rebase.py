"""`lamina rebase`: carry a stack's layers to another parent or another base, layer by layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lamina.core.digest import short
from lamina.core.errors import GateError, UsageError
from lamina.core.manifests import Rung
from lamina.core.names import Name, parse_reference
from lamina.core.rates import Rates
from lamina.core.report import Reporter
from lamina.flows.descent import kin
from lamina.flows.ladder.carry import KEEP, Carried, carry
from lamina.flows.ladder.registry import up_to
from lamina.flows.ladder.rung import Move, heed, typed
from lamina.flows.landing import Named, gate_and_name
from lamina.flows.lineage import moved_on
from lamina.flows.naming import new_name
from lamina.flows.suiting import check_alike
from lamina.stack.resolve import ResolvedStack, of_config, resolve
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
    rates: Rates | None = None
    """What the machine costs, for the cost on record."""


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
    check_alike(stack, onto, "layers are carried from images to images, or from text to text")
    name = _name(store, request, stack, onto)
    moving = to_move(store, stack, onto)
    command = _command(request)
    own = _is_own(request, name, stack, onto)
    carried: list[Carried] = []
    for index in moving:
        move = Move(
            store=store,
            old=prefix(store, stack, index + 1),
            onto=onto,
            supersede=own and index == len(stack.layers) - 1,
            command=command,
            reporter=reporter,
            should_stop=should_stop,
            data=request.data,
            rates=request.rates,
        )
        anew = "give its data with --data"
        carried.append(carried_or_refused(move, rungs, request.keep, request.override, anew))
        onto = carried[-1].stack
    heed(should_stop, command)
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
    move: Move, rungs: Sequence[Rung], keep: float, override: str | None, anew: str
) -> Carried:
    """Carry one layer; raise GateError when no rung is good enough and nobody overrides.

    `anew`: what the command offers to whoever wants the layer trained again.
    """
    found = carry(move, rungs, keep)
    move.reporter.say(found.render())
    if not found.passed and not override:
        what = "lost too much" if found.lost else "harms an exam beneath it"
        less = "ask for less with --keep, " if found.lost else ""
        rung = found.evidence.rung
        raise GateError(
            f"{found.name} {what} on its way to {move.onto.label}",
            faults=[
                *(f"{tried}: {why}" for tried, why in found.evidence.tried),
                *(f"{rung}, which kept most: {why}" for why in found.reasons),
            ],
            hint=f"the best is kept as @{short(found.layer.digest)}; {less}{anew}, "
            'or override with --accept-regression "why"',
        )
    return found


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
    has = {digest for layer in onto.layers for digest in kin(store, layer)}
    moving = [i for i, layer in enumerate(stack.layers) if layer.digest not in has]
    if not moving or stack.digest == onto.digest:
        raise UsageError(
            f"{onto.label} has every layer of {stack.label} already, or newer versions of them",
            hint="see: lamina log --graph",
        )
    if onto.layers and _stands_on(stack, onto):
        raise UsageError(f"{stack.label} stands on {onto.label} already")
    return moving


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
    if moved_on(store, reference):
        raise UsageError(
            f"{reference.name} has moved on from {reference}",
            hint=f"lamina rebase {reference} --onto {request.onto} --as NAME, "
            f"or rebase the newest: lamina rebase {reference.name} --onto {request.onto}",
        )
    return Name(reference.name)


def _command(request: Request) -> str:
    return typed(
        "rebase",
        request.stack,
        {
            "--onto": request.onto,
            "--as": request.name,
            "--keep": None if request.keep == KEEP else request.keep,
            "--at-most": request.at_most,
            "--data": request.data,
            "--author": request.author,
            "--accept-regression": request.override,
        },
    )


def _is_own(request: Request, name: Name, stack: ResolvedStack, onto: ResolvedStack) -> bool:
    """Under its own name, over its own base, the top layer is a new version of itself.

    The layers beneath are not: other stacks stand on them, and may stay where they are.
    """
    reference = parse_reference(request.stack)
    own = isinstance(reference, Name) and reference.name == name.name
    return own and stack.config.base == onto.config.base
