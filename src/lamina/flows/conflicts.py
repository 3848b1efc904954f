"""`lamina conflicts`: the layers that two stacks do not share, compared update by update."""

from dataclasses import asdict, dataclass
from typing import Any

from lamina.core.errors import UsageError
from lamina.core.report import Reporter
from lamina.lowrank.maths import compose
from lamina.stack.compile import layer_factors
from lamina.stack.interference import Angles, Interference, interference
from lamina.stack.resolve import ResolvedLayer, ResolvedStack, resolve
from lamina.store.layout import Store

AT_RIGHT_ANGLES = 0.1
"""Cosine up to which two updates are called independent: adding equally strong ones then changes
at most a tenth of either along its own direction."""
HEADER = (
    "linear", "cosine", "size a", "size b", "a in b", "b in a", "writes", "reads",
)  # fmt: skip
"""Size: Frobenius norm. a in b: share of a's update in the spaces of b's. Writes and reads: the
angles between column spaces and between row spaces, smallest/mean."""


@dataclass(frozen=True)
class Conflicts:
    """Two stacks' own layers, and how they interfere."""

    stacks: tuple[ResolvedStack, ResolvedStack]
    shared: tuple[ResolvedLayer, ...]
    """Layers that both have beneath; no part of the comparison."""
    own: tuple[tuple[ResolvedLayer, ...], tuple[ResolvedLayer, ...]]
    found: Interference

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        sides = [
            {"stack": stack.digest, "layers": [layer.digest for layer in layers]}
            for stack, layers in zip(self.stacks, self.own, strict=True)
        ]
        return {
            "a": sides[0],
            "b": sides[1],
            "shared": [layer.digest for layer in self.shared],
            **asdict(self.found),
            "meaning": self.meaning(),
        }

    def heading(self) -> str:
        """What is compared with what."""
        a, b = (
            f"{letter} = {stack.label} ({', '.join(layer.config.name for layer in layers)})"
            for letter, stack, layers in zip("ab", self.stacks, self.own, strict=True)
        )
        beneath = ", ".join(layer.config.name for layer in self.shared)
        return f"{a}; {b}" + (f"; left out as shared: {beneath}" if beneath else "")

    def rows(self) -> list[tuple[str, ...]]:
        """One row a linear that both touch, the worst first; columns as in HEADER."""
        return [
            (
                m.module,
                f"{m.cosine:+.3f}",
                f"{m.norm_a:.3g}",
                f"{m.norm_b:.3g}",
                f"{m.overlap_a:.0%}",
                f"{m.overlap_b:.0%}",
                _angles(m.columns),
                _angles(m.rows),
            )
            for m in self.found.modules
        ]

    def meaning(self) -> str:
        """One sentence on what adding the two would do, with the numbers it rests on."""
        found = self.found
        a, b = (stack.label for stack in self.stacks)
        if not found.modules:
            return f"{a} and {b} touch no linear in common: neither changes the other's updates."
        where = f"over {len(found.modules)} linears that both touch"
        alone = len(found.only_a) + len(found.only_b)
        where += f" ({alone} only one of them)" if alone else ""
        cosine = f"cosine {found.cosine:+.3f} {where}"
        if not (found.norm_a and found.norm_b):
            return "One of the two changes nothing: there is nothing to conflict."
        of_a, of_b = (abs(found.inner) / norm**2 for norm in (found.norm_a, found.norm_b))
        if abs(found.cosine) <= AT_RIGHT_ANGLES:
            return (
                f"{a} and {b} are nearly at right angles ({cosine}): adding them keeps both "
                "updates; whether their answers survive, an exam of the merged stack says."
            )
        shares = f"{of_a:.0%} of {a} and {of_b:.0%} of {b}"
        if found.cosine < 0:
            return (
                f"{a} and {b} pull against each other ({cosine}): adding them undoes {shares}; "
                "train one over the other rather than merge them, or expect the gate to object."
            )
        return (
            f"{a} and {b} pull the same way ({cosine}): adding them at full weight does {shares} "
            "twice; merge them with weights below 1."
        )


def compare(store: Store, a: str, b: str, reporter: Reporter) -> Conflicts:
    """The layers that `a` has and `b` has not, beside those that only `b` has.

    Where one stack stands on the other, the layers beneath are compared with those above.
    Raises UsageError for stacks over different bases, without layers, or with the same ones.
    """
    stacks = resolve(store, a), resolve(store, b)
    one, two = (stack.layers for stack in stacks)
    if stacks[0].config.base != stacks[1].config.base:
        raise UsageError(f"{a} and {b} stand on different bases", hint="lamina list shows them")
    if not (one and two):
        raise UsageError(
            f"{a if not one else b} is a bare base: it has no layer to compare",
            hint="give two stacks: lamina list",
        )
    count = _shared(one, two)
    if count == len(one) == len(two):
        raise UsageError(f"{a} and {b} are the same layers", hint="give two different stacks")
    shared: tuple[ResolvedLayer, ...] = ()
    if count == len(one):  # b stands on a
        own = one, two[count:]
    elif count == len(two):
        own = one[count:], two
    else:
        shared, own = one[:count], (one[count:], two[count:])
    factors = [compose([layer_factors(store, layer) for layer in layers]) for layers in own]

    def progress(done: int, total: int) -> None:
        text = f"comparing {a} with {b}: {done}/{total} linears"
        reporter.event({"event": "examining", "text": text, "last": done == total})

    return Conflicts(stacks, shared, own, interference(factors[0], factors[1], progress))


def _shared(one: tuple[ResolvedLayer, ...], two: tuple[ResolvedLayer, ...]) -> int:
    """How many layers two stacks have in common, from the bottom up."""
    count = 0
    for left, right in zip(one, two, strict=False):
        if (left.digest, left.weight) != (right.digest, right.weight):
            break
        count += 1
    return count


def _angles(found: Angles | None) -> str:
    return "-" if found is None else f"{found.smallest:.0f}°/{found.mean:.0f}°"
