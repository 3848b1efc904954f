"""What is merged: the layers that each of several stacks has above the parent common to all."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from lamina.core.digest import short
from lamina.core.errors import UsageError, WrongParentError
from lamina.core.manifests import StackConfig
from lamina.flows.descent import kin
from lamina.lowrank.maths import Factors, compose
from lamina.stack.compile import layer_factors
from lamina.stack.resolve import ResolvedLayer, ResolvedStack, of_config
from lamina.store.layout import Store


@dataclass(frozen=True)
class Contribution:
    """What one stack has above the common parent."""

    stack: ResolvedStack
    layers: tuple[ResolvedLayer, ...]
    """Lowest first, at least one."""

    @property
    def label(self) -> str:
        """How the user called its stack."""
        return self.stack.label

    @property
    def top(self) -> ResolvedLayer:
        """Its highest layer."""
        return self.layers[-1]

    def factors(self, store: Store) -> dict[str, Factors]:
        """Its layers as one, with the weights that they have in the stack. Exact."""
        return compose([layer_factors(store, layer) for layer in self.layers])


def contributions(
    store: Store, stacks: Sequence[ResolvedStack]
) -> tuple[ResolvedStack, tuple[Contribution, ...]]:
    """The common parent, and what each stack has above it.

    Raises WrongParentError naming both parents where two stacks stand on different bases or on
    different versions of a layer, and UsageError for a stack that has nothing of its own.
    """
    _check_bases(stacks)
    height = _common(stacks)
    config = StackConfig(base=stacks[0].config.base, layers=stacks[0].config.layers[:height])
    beneath = stacks[0].layers[height - 1].config.name if height else _base_name(store, stacks[0])
    parent = of_config(store, config, label=f"{beneath} (parent)", force=True)
    empty = [stack.label for stack in stacks if len(stack.layers) == height]
    if empty:
        raise UsageError(
            f"{', '.join(empty)}: nothing to merge, the other stacks stand on it or are the same",
            hint="give stacks with a layer of their own over a common parent: lamina list",
        )
    parts = tuple(Contribution(stack, stack.layers[height:]) for stack in stacks)
    _check_parents(store, parts)
    return parent, parts


def versions_of_one_layer(
    store: Store, parts: Sequence[Contribution]
) -> list[tuple[Contribution, Contribution]]:
    """Pairs whose top layers are versions of one layer: what these share would be added twice."""
    return [
        (one, two)
        for one, two in combinations(parts, 2)
        if kin(store, one.top) & kin(store, two.top)
    ]


def _common(stacks: Sequence[ResolvedStack]) -> int:
    """How many layers all stacks have in common, from the bottom up."""
    height = 0
    for each in zip(*(stack.config.layers for stack in stacks), strict=False):
        if len(set(each)) > 1:
            break
        height += 1
    return height


def _check_bases(stacks: Sequence[ResolvedStack]) -> None:
    if len({stack.config.base for stack in stacks}) == 1:
        return
    raise WrongParentError(
        "these stacks stand on different bases",
        faults=[f"{stack.label} stands on base @{short(stack.config.base)}" for stack in stacks],
        hint=f"carry one over first: lamina rebase {stacks[1].label} --onto-base NAME --as NAME",
    )


def _check_parents(store: Store, parts: Sequence[Contribution]) -> None:
    """Refuse two stacks of which one stands on a version of a layer that the other has too."""
    faults, hint = [], ""
    for one, two in combinations(parts, 2):
        if one.layers == two.layers:
            raise UsageError(f"{one.label} and {two.label} are the same layers")
        found = _twice(store, one, two)
        if found is not None:
            mine, other = found
            faults += [_stands_on(one, mine), _stands_on(two, other)]
            hint = _rebase(one, mine, two, other)
    if faults:
        raise WrongParentError(
            "these stacks stand on different parents",
            faults=list(dict.fromkeys(faults)),
            hint=f"carry one over to the other's parent first: {hint}",
        )


def _rebase(one: Contribution, mine: ResolvedLayer, two: Contribution, other: ResolvedLayer) -> str:
    """The command that puts both over one parent."""
    if other == two.top:
        return f"lamina rebase {one.label} --onto {two.label}"
    onto = one.label if mine == one.top else f"@{short(one.stack.layers[-2].digest)}"
    return f"lamina rebase {two.label} --onto {onto}"


def _twice(
    store: Store, one: Contribution, two: Contribution
) -> tuple[ResolvedLayer, ResolvedLayer] | None:
    """A layer beneath a top, and what the other has of it: the same layer or another version."""
    for mine in one.layers:
        for other in two.layers:
            if mine == one.top and other == two.top:
                continue  # the contributions themselves
            if mine.config.name == other.config.name or (kin(store, mine) & kin(store, other)):
                return mine, other
    return None


def _stands_on(part: Contribution, layer: ResolvedLayer) -> str:
    what = "is" if layer == part.top else "stands on"
    return f"{part.label} {what} {layer.config.name} @{short(layer.digest)}"


def _base_name(store: Store, stack: ResolvedStack) -> str:
    names = [name for name, base in store.bases().items() if base.digest == stack.base.digest]
    return names[0] if names else f"base @{short(stack.config.base)}"
