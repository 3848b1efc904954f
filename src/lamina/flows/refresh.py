"""`lamina refresh`: bring a stack up to date with its layers' new versions. Like make, for models.

Bottom up: a layer that has a new version gives way to it; what stands above is carried over to the
new parents by the ladder, whose first rung examines the layer as it is. So layers that still pass
are kept, and only those that fail are corrected or trained again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lamina.core.errors import UsageError
from lamina.core.manifests import StackConfig, StackedLayer
from lamina.core.names import Name, parse_reference
from lamina.core.rates import Rates
from lamina.core.report import Reporter
from lamina.flows.descent import cost_of
from lamina.flows.ladder.carry import KEEP, Carried
from lamina.flows.ladder.distil import SHARE_WARM
from lamina.flows.ladder.registry import up_to
from lamina.flows.ladder.rung import Move, heed, typed
from lamina.flows.landing import Named
from lamina.flows.lineage import Lineage, moved_on
from lamina.flows.naming import on_record
from lamina.flows.rebase import carried_or_refused, name_top, prefix
from lamina.stack.resolve import ResolvedStack, of_config, of_descriptor, resolve
from lamina.store.layout import Store

EXAM_TOKENS_A_QUESTION = 300
"""About what a question with its answer takes, in tokens read."""
FORWARD_SPEED = 3.0
"""A forward pass is about three times as fast as a training step."""


RETUNE = SHARE_WARM
"""What correcting a layer costs, beside training it."""
ANEW = "train it anew over the new parents"


@dataclass(frozen=True)
class Step:
    """One layer of a stack that is to be refreshed."""

    name: str
    layer: str
    """The layer as it stands."""
    newest: str
    """Its newest version."""
    action: str
    """'keep', 'replace' (its new version stands on the same parents) or 'carry'."""
    examine_seconds: float = 0.0
    """About what examining it costs."""
    retune_seconds: float = 0.0
    """What is added, about and at most short of retraining, if it fails as it is."""
    retrain_seconds: float | None = None
    """What training it anew took."""

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {**self.__dict__}


@dataclass(frozen=True, eq=False)
class Refreshed:
    """A plan, and what came of it."""

    plan: tuple[Step, ...]
    carried: tuple[Carried, ...] = ()
    named: Named | None = None
    """None for a dry run, or when all was current."""

    @property
    def current(self) -> bool:
        """Nothing was stale."""
        return all(step.action == "keep" for step in self.plan)

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "current": self.current,
            "plan": [step.to_json() for step in self.plan],
            "layers": [layer.to_json() for layer in self.carried],
            "name": str(self.named.name) if self.named else None,
            "stack": self.named.stack.digest if self.named else None,
            "metrics": self.named.examination.to_json() if self.named else None,
        }

    def render(self) -> str:
        """For people."""
        if self.current:
            return "everything is current"
        lines = [price(self.plan)]
        lines += [layer.render() for layer in self.carried]
        if self.named:
            lines += [self.named.examination.render(), str(self.named.name)]
        return "\n".join(lines)


def price(plan: Sequence[Step]) -> str:
    """The plan and what it may cost, for people."""
    lines = []
    for step in plan:
        line = f"  {step.name}: {step.action}"
        if step.action == "carry":
            line += f", examining about {step.examine_seconds:.0f} s"
            line += f", tuning if it fails about {step.retune_seconds:.0f} s"
        if step.retrain_seconds:
            line += f" (training it took {step.retrain_seconds:.0f} s)"
        lines.append(line)
    least = sum(step.examine_seconds for step in plan)
    most = least + sum(step.retune_seconds for step in plan)
    return "\n".join([*lines, f"about {least:.0f} to {most:.0f} s in all"])


def refresh(
    store: Store,
    text: str,
    reporter: Reporter,
    should_stop: Callable[[], bool],
    *,
    dry_run: bool = False,
    keep: float = KEEP,
    at_most: str | None = None,
    override: str | None = None,
    author: str | None = None,
    rates: Rates | None = None,
) -> Refreshed:
    """Refresh the stack that a name points at, and move the name if the gate passes.

    Raises UsageError for a digest or a base, GateError, TrainInterrupted. Stopped anywhere, it goes
    on where it was when it is typed again.
    """
    reference = parse_reference(text)
    stack = resolve(store, text, force=True)
    if not isinstance(reference, Name) or not stack.layers:
        raise UsageError(
            f"{text} is no name of a stack", hint="refresh moves a name: see `lamina status`"
        )
    if moved_on(store, reference):
        raise UsageError(
            f"{text} is an older version, and stays what it is",
            hint=f"refresh what the name means now: lamina refresh {reference.name}",
        )
    rungs, name = up_to(at_most), Name(reference.name)
    plan = plan_of(store, stack)
    if dry_run:
        return Refreshed(plan)
    if all(step.action == "keep" for step in plan):
        if not on_record(store, stack, name):
            name_top(store, stack, name, reporter, override=override, author=author)
        return Refreshed(plan)
    reporter.say(price(plan))
    share = None if keep == KEEP else keep
    how = {"--keep": share, "--at-most": at_most, "--author": author}
    command = typed("refresh", text, {**how, "--accept-regression": override})

    def carried_over(old: ResolvedStack, onto: ResolvedStack) -> Carried:
        move = Move(
            store=store,
            old=old,
            onto=onto,
            supersede=True,
            command=command,
            reporter=reporter,
            should_stop=should_stop,
            rates=rates,
        )
        return carried_or_refused(move, rungs, keep, override, ANEW)

    onto, carried = _rebuilt(store, stack, plan, carried_over)
    heed(should_stop, command)
    named = name_top(store, onto, name, reporter, override=override, author=author, carried=carried)
    return Refreshed(plan, carried, named)


def _rebuilt(
    store: Store,
    stack: ResolvedStack,
    plan: Sequence[Step],
    carried_over: Callable[[ResolvedStack, ResolvedStack], Carried],
) -> tuple[ResolvedStack, tuple[Carried, ...]]:
    """The stack that a plan leads to, and the layers that were carried."""
    onto = _empty(store, stack)
    carried: list[Carried] = []
    for index, step in enumerate(plan):
        if step.action == "carry":
            carried.append(carried_over(_standing(store, stack, index, step), onto))
            onto = carried[-1].stack
        else:
            item = StackedLayer(layer=step.newest, weight=stack.layers[index].weight)
            onto = _with(store, onto, item, stack.label)
    return onto, tuple(carried)


def plan_of(store: Store, stack: ResolvedStack) -> tuple[Step, ...]:
    """What a refresh would do with each layer, lowest first, and what that may cost."""
    lineage = Lineage.of(store)
    steps: list[Step] = []
    parents: tuple[StackedLayer, ...] | None = ()  # None once a carried layer has no digest yet
    for item, layer in zip(stack.config.layers, stack.layers, strict=True):
        newest = lineage.newest(item.layer)
        top = of_descriptor(store, store.describe(newest), label=layer.config.name, force=True)
        fits = parents is not None and top.config.layers[:-1] == parents
        action = ("keep" if newest == item.layer else "replace") if fits else "carry"
        cost = cost_of(store, top.layers[-1]) or cost_of(store, layer)
        questions = sum(exam.rows for exam in top.layers[-1].config.exams)
        speed = FORWARD_SPEED * cost.tokens_per_second if cost else 1000.0
        seconds = cost.seconds if cost else None
        moves = action == "carry"
        steps.append(
            Step(
                name=layer.config.name,
                layer=item.layer,
                newest=newest,
                action=action,
                examine_seconds=2 * questions * EXAM_TOKENS_A_QUESTION / speed if moves else 0.0,
                retune_seconds=RETUNE * (seconds or 0.0) if moves else 0.0,
                retrain_seconds=seconds,
            )
        )
        if moves:
            parents = None
        elif parents is not None:
            parents = (*parents, StackedLayer(layer=newest, weight=item.weight))
    return tuple(steps)


def _empty(store: Store, stack: ResolvedStack) -> ResolvedStack:
    return of_config(store, StackConfig(base=stack.config.base), label=stack.label)


def _with(store: Store, onto: ResolvedStack, item: StackedLayer, label: str) -> ResolvedStack:
    config = onto.config.model_copy(update={"layers": (*onto.config.layers, item)})
    return of_config(store, config, label=label, force=True)


def _standing(store: Store, stack: ResolvedStack, index: int, step: Step) -> ResolvedStack:
    """The stack whose top is the layer to carry: as it stands, or as its new version was made."""
    if step.newest == step.layer:
        return prefix(store, stack, index + 1)
    return of_descriptor(store, store.describe(step.newest), label=step.name, force=True)
