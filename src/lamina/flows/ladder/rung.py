"""What every rung is given, and what it gives back."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lamina.bases import pipeline_files, shell
from lamina.core.digest import digest_json
from lamina.core.errors import TrainInterrupted
from lamina.core.manifests import Descriptor, StackedLayer
from lamina.core.rates import Rates
from lamina.core.report import Reporter
from lamina.stack.compile import base_directory
from lamina.stack.resolve import ResolvedLayer, ResolvedStack
from lamina.store.layout import Store


@dataclass(frozen=True, eq=False)
class Move:
    """One layer on its way to other parents."""

    store: Store
    old: ResolvedStack
    """The stack whose top is the layer, as it was."""
    onto: ResolvedStack
    """The new parents."""
    supersede: bool
    """Whether the result is a new version of the layer, or another layer beside it."""
    command: str
    """What a person types to go on after an interruption."""
    reporter: Reporter
    should_stop: Callable[[], bool]
    data: Sequence[str] = ()
    """Files of the layer's own data, if somebody has them."""
    rates: Rates | None = None
    """What the machine costs, for the cost on record."""

    @property
    def layer(self) -> ResolvedLayer:
        """The layer as it was."""
        return self.old.layers[-1]

    @property
    def same_shapes(self) -> bool:
        """Whether both bases have the layer's linears alike, so that factors fit as they are."""
        if self.old.config.base == self.onto.config.base:
            return True
        shapes_of = pipeline_files.module_shapes if self.old.draws else shell.linear_shapes
        ours, theirs = (
            shapes_of(base_directory(self.store, stack.base)) for stack in (self.old, self.onto)
        )
        modules = self.layer.config.modules
        return all(name in theirs and ours.get(name) == theirs[name] for name in modules)

    @property
    def same_tokens(self) -> bool:
        """Whether both bases cut text into the same tokens."""
        return self.old.base_config.tokenizer == self.onto.base_config.tokenizer

    @property
    def lineage(self) -> dict[str, object]:
        """Config fields that say where the moved layer comes from."""
        return {
            "supersedes": self.layer.digest if self.supersede else None,
            "sources": (StackedLayer(layer=self.layer.digest),),
        }

    def key(self, rung: str) -> str:
        """Twelve hex digits over all that decides what a rung makes."""
        parts = [rung, self.old.digest, self.onto.digest, self.supersede, list(self.data)]
        return digest_json(parts).removeprefix("sha256:")[:12]


@dataclass(frozen=True, eq=False)
class Moved:
    """A layer over its new parents, landed and unnamed."""

    layer: Descriptor
    stack: ResolvedStack


def heed(should_stop: Callable[[], bool], command: str) -> None:
    """Raise TrainInterrupted, saying how to go on, when somebody asked to stop."""
    if should_stop():
        raise TrainInterrupted(
            "stopped between two examinations; nothing is lost", hint=f"go on with: {command}"
        )


def typed(verb: str, stack: str, options: Mapping[str, object]) -> str:
    """The command with those of its options that are given; a sequence gives one several times."""
    words = ["lamina", verb, stack]
    for option, value in options.items():
        for each in value if isinstance(value, list | tuple) else (value,):
            words += [] if each is None else [option, str(each)]
    return shlex.join(words)


class Rung(Protocol):
    """Tries to carry a layer. Returns the reason, in words, where it does not apply."""

    def __call__(self, move: Move) -> Moved | str:
        """Land the layer over `move.onto`, or say why this rung is not for it."""
        ...
