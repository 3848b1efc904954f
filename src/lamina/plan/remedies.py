"""What to change about a training that does not fit into memory, cheapest first."""

from collections.abc import Iterator
from dataclasses import replace

from lamina.plan.memory import Pass, Shapes, Work, predict

PROPOSED = 3
SHORTEST = 64
"""Shortest --max-length that is proposed."""
FEW = ("q_proj", "v_proj")
"""Linears that are proposed instead of all (Hu et al., arXiv:2106.09685, section 5.1)."""
HALVINGS = 5
"""How often a base is halved, at most."""

Plan = tuple[Shapes, Work]


def ways_out(shapes: Shapes, work: Work, resident: int, limit: int) -> list[tuple[str, int]]:
    """What to change and the bytes that are then needed: at most three ways, cheapest first.

    Each is the mildest form of a change that fits. Where fewer fit by themselves, the changes are
    made together, and those that come nearest are named too. `work` is to be the leanest as it is.
    """

    def needed(plan: Plan) -> int:
        return predict(*plan, resident).bytes

    fitting: list[tuple[str, int]] = []
    short: list[tuple[str, int]] = []
    together: Plan = (shapes, work)
    said: list[str] = []
    for kind in (_narrower, _shorter, _lower, _fewer, _smaller):
        tried = [(text, plan) for text, plan in kind(shapes, work)]
        if not tried:
            continue
        sizes = [(text, needed(plan)) for text, plan in tried]
        fit = next((each for each in sizes if each[1] <= limit), None)
        (fitting if fit else short).append(fit or sizes[-1])
        combined = next((each for each in kind(*together) if each[0] == tried[-1][0]), None)
        if combined:
            together, said = combined[1], [*said, combined[0]]
    if len(fitting) < PROPOSED and needed(together) <= limit and len(said) > 1:
        fitting.append((" with ".join(said), needed(together)))
    short.sort(key=lambda each: each[1])
    return [*fitting, *((f"not enough alone, {text}", size) for text, size in short)][:PROPOSED]


def _halved(number: int, least: int) -> Iterator[int]:
    while number // 2 >= least:
        number //= 2
        yield number


def _narrower(shapes: Shapes, work: Work) -> Iterator[tuple[str, Plan]]:
    if work.itemsize == 4:
        yield "dtype bfloat16 in the recipe", (shapes, replace(work, itemsize=2))


def _shorter(shapes: Shapes, work: Work) -> Iterator[tuple[str, Plan]]:
    for length in _halved(work.step.longest, SHORTEST):
        cut = replace(
            work,
            step=_cut(work.step, length),
            evaluation=_cut(work.evaluation, length),
            old=_cut(work.old, length),
        )
        yield f"--max-length {length}", (shapes, cut)


def _cut(at: Pass, length: int) -> Pass:
    """A pass of one row that is no longer than `length`."""
    share = min(1.0, length / max(1, at.tokens))
    return Pass(
        tokens=min(at.tokens, length),
        padded=min(at.padded, length),
        longest=min(at.longest, length),
        supervised=round(at.supervised * share),
    )


def _lower(shapes: Shapes, work: Work) -> Iterator[tuple[str, Plan]]:
    highest = max(each.rank for each in shapes.linears)
    for rank in _halved(highest, 1):
        lower = tuple(replace(each, rank=min(each.rank, rank)) for each in shapes.linears)
        yield f"--rank {rank}", (replace(shapes, linears=lower), work)


def _fewer(shapes: Shapes, work: Work) -> Iterator[tuple[str, Plan]]:
    kept = tuple(
        each if each.name.endswith(FEW) else replace(each, rank=0) for each in shapes.linears
    )
    if any(each.rank for each in kept) and kept != shapes.linears:
        options = " ".join(f"--target {name}" for name in FEW)
        yield options, (replace(shapes, linears=kept), work)


def _smaller(shapes: Shapes, work: Work) -> Iterator[tuple[str, Plan]]:
    """A base with fewer layers: everything but the resident part shrinks along."""
    for halving in range(1, HALVINGS + 1):
        share = 2**halving
        layers = max(1, shapes.layers // share)
        count = max(1, len(shapes.linears) * layers // shapes.layers)
        small = replace(
            shapes,
            parameters=shapes.parameters // share,
            layers=layers,
            trained_layers=max(1, shapes.trained_layers // share),
            linears=shapes.linears[-count:],
        )
        if any(each.rank for each in small.linears):
            millions = small.parameters / 1e6
            yield f"a base of {millions:.3g} million parameters", (small, work)
