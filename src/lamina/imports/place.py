"""An adapter put over a base: every name, shape and number checked, then factors.

What is a low-rank sum stays exact. DoRA and whole weights of linears become the nearest low-rank
update, with its error. Whole tensors that equal the base's are dropped; others are refused, or
left out where that is asked for.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lamina.core.errors import LayerError
from lamina.core.fields import MAX_RANK
from lamina.imports.adapter import MERGE_FIRST, WORDS, Adapter, Pair, Stored, shown
from lamina.imports.base import Beneath, same_numbers
from lamina.lowrank.maths import Factors, concat
from lamina.lowrank.nearest import Nearest, Noise, dora, nearest, rounding


@dataclass(frozen=True)
class How:
    """What the user asked for where a file is no plain low-rank sum."""

    fold_dora: bool = False
    rank: int | None = None
    tolerance: float | None = None
    ignore_rest: bool = False


@dataclass(frozen=True, eq=False)
class Placed:
    """A layer, ready to be stored."""

    factors: dict[str, Factors]
    """By the base's module names."""
    nearest: dict[str, Nearest]
    """Modules that were approximated, those too of which nothing was kept."""
    left_out: tuple[str, ...]
    """What differs from the base and is not in the layer, one sentence each."""
    equal: tuple[str, ...]
    """Whole tensors that the base has too."""

    @property
    def error(self) -> float | None:
        """Relative Frobenius norm of what was left out of the approximated modules; None where
        none was."""
        if not self.nearest:
            return None
        norm = math.hypot(*(part.norm for part in self.nearest.values()))
        left = math.hypot(*(part.discarded for part in self.nearest.values()))
        return left / norm if norm else 0.0

    @property
    def noise(self) -> float:
        """Share of the difference that rounding alone is expected to be, 0 where not known."""
        norm = math.hypot(*(part.norm for part in self.nearest.values()))
        noise = math.hypot(*(part.noise for part in self.nearest.values()))
        return noise / norm if norm else 0.0

    @property
    def exact(self) -> bool:
        """Nothing was approximated or left out."""
        return not self.nearest and not self.left_out


@dataclass(eq=False)
class _Work:
    """What `place` gathers on its way."""

    base: Beneath
    how: How
    progress: Callable[[int, int], None]
    faults: list[str] = field(default_factory=list)
    terms: dict[str, list[Factors]] = field(default_factory=dict)
    nearest: dict[str, Nearest] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    equal: list[str] = field(default_factory=list)

    def refuse(self, name: str, why: str) -> None:
        """Something that a layer cannot hold: a fault, or left out where that is asked for."""
        (self.left_out if self.how.ignore_rest else self.faults).append(f"{shown(name)}: {why}")


def place(
    adapter: Adapter, base: Beneath, how: How, progress: Callable[[int, int], None]
) -> Placed:
    """The layer that an adapter is over a stack. One tensor of the base is in memory at a time.

    Raises LayerError listing every fault: names and shapes that are not the base's before any
    number is read, then what is no finite number, then what a layer cannot hold.
    """
    work = _Work(base, how, progress)
    pairs = _named(adapter, work)
    _check_packed(adapter, pairs, base)
    _raise(adapter, work)
    for module, pair in pairs.items():
        _take_pair(module, pair, work)
    for number, (name, tensor) in enumerate(adapter.rest.items(), 1):
        _take_whole(name, tensor, work)
        progress(number, len(adapter.rest))
    _raise(adapter, work)
    factors = {module: _joined(terms) for module, terms in sorted(work.terms.items())}
    if not factors:
        raise LayerError(
            f"nothing of the {WORDS[adapter.kind]} differs from the stack",
            hint="it is the same model, or its difference is rounding (--rank N keeps it)",
        )
    return Placed(factors, work.nearest, tuple(work.left_out), tuple(work.equal))


def _named(adapter: Adapter, work: _Work) -> dict[str, Pair]:
    """Pairs by the base's names; names and shapes that do not fit go into the faults."""
    found: dict[str, Pair] = {}
    for name, pair in adapter.pairs.items():
        module = work.base.linears.find(name)
        faults = _shape_faults(name, pair)
        if module is None:
            _take_elsewhere(name, work)
            continue
        if module in found:
            faults.append(f"{shown(name)}: another name is {module} already")
        if not faults:
            wanted, given = work.base.shapes[module], (pair.b_OR.shape[0], pair.a_RI.shape[1])
            if given != wanted:
                faults.append(f"{module}: the layer is for {given}, the base has {wanted}")
            for extra in (pair.magnitude_O, pair.bias_O):
                if extra is not None and math.prod(extra.shape) != wanted[0]:
                    faults.append(f"{module}: {extra.shape} numbers for {wanted[0]} outputs")
        work.faults += faults
        found[module] = pair
    return found


def _take_elsewhere(name: str, work: _Work) -> None:
    """A pair of a module that takes no layers: the head, or nothing of the base."""
    head = work.base.tensor_name(f"{name}.weight") is not None
    if head:
        work.refuse(
            name,
            "a layer touches the decoder's linears only, not the head or the embeddings; "
            f"{MERGE_FIRST} with --ignore-rest, or pull it as a base of its own",
        )
    else:
        work.faults.append(f"{shown(name)}: the base has no such linear")


def _shape_faults(name: str, pair: Pair) -> list[str]:
    faults = []
    for side, stored in (("A", pair.a_RI), ("B", pair.b_OR)):
        if len(stored.shape) != 2:
            faults.append(f"{shown(name)}: {side} has {len(stored.shape)} axes instead of 2")
        elif min(stored.shape) == 0:
            faults.append(f"{shown(name)}: {side} is empty: {stored.shape}")
        elif (stored.dtype[0] in "IU" and stored.dtype[1:].isdigit()) or stored.dtype == "BOOL":
            faults.append(f"{shown(name)}: {side} is {stored.dtype}, no floating-point type")
    if faults:
        return faults
    if pair.a_RI.shape[0] != pair.b_OR.shape[1]:
        faults.append(f"{shown(name)}: A {pair.a_RI.shape} and B {pair.b_OR.shape} differ in rank")
    elif pair.a_RI.shape[0] > MAX_RANK:
        faults.append(f"{shown(name)}: rank {pair.a_RI.shape[0]} is above {MAX_RANK}")
    if not math.isfinite(pair.scale):
        faults.append(f"{shown(name)}: its scale is {pair.scale}")
    return faults


def _check_packed(adapter: Adapter, pairs: Mapping[str, Pair], base: Beneath) -> None:
    """Refuse differences of weights over packed ones: their rounding would be a part of it."""
    whole = [name for name in adapter.rest if base.linear_of(name) is not None]
    directed = [module for module, pair in pairs.items() if pair.magnitude_O is not None]
    if base.packed and (whole or directed):
        raise LayerError(
            f"differences of weights are taken from plain ones, this base's are in {base.packed}",
            faults=map(shown, [*directed, *whole]),
            hint="import it over the plain base, then `lamina rebase NAME --onto-base` this one",
        )


def _take_pair(module: str, pair: Pair, work: _Work) -> None:
    a_RI, b_OR = pair.a_RI.read().float(), pair.b_OR.read().float()
    if not all(bool(torch.isfinite(each).all()) for each in (a_RI, b_OR)):
        work.faults.append(f"{module}: numbers that are not finite")
        return
    if pair.bias_O is not None and bool(pair.bias_O.read().any()):
        work.refuse(
            f"{module}.lora_B.bias",
            "a trained bias, which a layer cannot hold; train with lora_bias=False",
        )
    factors = Factors(a_RI, b_OR, pair.scale)
    if pair.magnitude_O is None:
        work.terms.setdefault(module, []).append(factors)
    elif not work.how.fold_dora:
        work.faults.append(
            f"{module}: DoRA rescales the weight's rows, which is no low-rank sum; --dora fold "
            "takes the nearest one and says what is lost"
        )
    else:
        _fold_dora(module, factors, pair.magnitude_O.read(), work)


def _fold_dora(module: str, factors: Factors, magnitude: Tensor, work: _Work) -> None:
    if not bool(torch.isfinite(magnitude).all()):
        work.faults.append(f"{module}: magnitudes that are not finite")
        return
    update_OI = factors.scale * (factors.b_OR.double() @ factors.a_RI.double())
    try:
        delta_OI = dora(work.base.weight(module), update_OI, magnitude.reshape(-1))
    except LayerError as error:
        work.faults.append(f"{module}: {error.message}")
        return
    _take_difference(module, delta_OI, None, work)


def _take_whole(name: str, stored: Stored, work: _Work) -> None:
    """A whole tensor: the base's own, a linear's new weight, or what a layer cannot hold."""
    own_name = work.base.tensor_name(name)
    if own_name is None:
        work.refuse(name, "the base has no such tensor")
        return
    expected = work.base.files.entries[own_name].shape
    if stored.shape != expected:
        work.faults.append(
            f"{shown(name)}: {stored.shape}, the base has {expected}"
            + ("; were tokens added? They would have no meaning here" if "embed" in name else "")
        )
        return
    found = stored.read()
    module = work.base.linear_of(name)
    if not _finite(found):
        work.faults.append(f"{shown(name)}: numbers that are not finite")
    elif not (module and work.base.terms(module)) and same_numbers(
        found, work.base.files.read(own_name)
    ):
        work.equal.append(name)
    elif module is None:
        work.refuse(name, "differs from the base's, and is no linear of the decoder")
    else:
        delta_OI = found.double() - work.base.weight(module)
        # over layers, tuning began from weights that had been rounded once already
        times = 2 if work.base.terms(module) else 1
        _take_difference(module, delta_OI, rounding(found).times(math.sqrt(times)), work)


def _take_difference(module: str, delta_OI: Tensor, noise: Noise | None, work: _Work) -> None:
    found = nearest(delta_OI, rank=work.how.rank, tolerance=work.how.tolerance, noise=noise)
    if found.norm == 0.0:
        work.equal.append(f"{module}.weight")
        return
    work.nearest[module] = found
    if found.factors is not None:
        work.terms.setdefault(module, []).append(found.factors)


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _joined(terms: list[Factors]) -> Factors:
    return terms[0] if len(terms) == 1 else concat(terms)


def _raise(adapter: Adapter, work: _Work) -> None:
    if work.faults:
        raise LayerError(
            f"the {WORDS[adapter.kind]} cannot be used as a layer over this stack",
            faults=work.faults,
            hint=_hint(adapter, work),
        )


def _hint(adapter: Adapter, work: _Work) -> str | None:
    text = " ".join(work.faults)
    if "--dora" in text:
        return "--dora fold, with --rank N or --tolerance E for how near"
    if "is no linear of the decoder" in text or "cannot hold" in text or "no such tensor" in text:
        return (
            "--ignore-rest leaves these out and says what that costs in logits; a model that needs "
            "them is a base of its own: lamina base pull DIR"
        )
    if "the base has" in text:
        return "was it made on another model? `lamina base list` shows what there is"
    return None
