"""What ways to the same model take, side by side: a layer, its update, every weight, a new model.

Pure: an architecture, how many tokens, and how fast a machine is; trainable parameters, bytes,
memory, operations, seconds, energy and money out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lamina.plan.hardware import Profiles
from lamina.plan.laws import APPROACH_1
from lamina.plan.memory import Pass, Shapes, Work, predict
from lamina.plan.time import Interval
from lamina.plan.work import ADAM_BYTES, HALF, Architecture, full_flops, useful_flops

CHARACTERS_A_TOKEN = 4
"""Where no tokenizer is at hand: English, as OpenAI's help on tokens says."""
SUPERVISED = 0.5
"""Share of tokens that teach, where no rows are at hand."""
OLD_SHARE = 0.5
"""Of an update's tokens, those of old rows (flows.update.REHEARSAL; a test compares them)."""
RESIDENT = 400_000_000
"""Bytes of a process with torch and transformers and nothing else, as measured."""
WAYS = ("layer", "update", "full", "scratch")


@dataclass(frozen=True)
class Amount:
    """Tokens that go through the model once, epochs counted."""

    tokens: int
    supervised: int

    def share(self, part: float) -> "Amount":
        """A part of them, at least one token."""
        return Amount(max(1, round(part * self.tokens)), max(1, round(part * self.supervised)))


@dataclass(frozen=True)
class Price:
    """What one way takes. None: not known."""

    way: str
    trainable: int
    bytes: int
    """Of what comes out, in 16 bits."""
    memory: int
    tokens: int
    flops: int
    seconds: Interval | None
    kwh: Interval | None
    money: Interval | None

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "way": self.way,
            "trainable": self.trainable,
            "bytes": self.bytes,
            "memory_bytes": self.memory,
            "tokens": self.tokens,
            "flops": self.flops,
            "minutes": _pair(self.seconds, 60),
            "kwh": _pair(self.kwh, 1),
            "money": _pair(self.money, 1),
        }


def _pair(found: Interval | None, unit: float) -> list[float] | None:
    return None if found is None else [found.low / unit, found.high / unit]


def flops_of(way: str, model: Architecture, amount: Amount, above: float = 0.0) -> int:
    """Useful operations. `above`: share of the depth that a layer leaves alone."""
    if way == "scratch":
        return full_flops(model.linears, model.embedding, scratch_tokens(model))
    if way == "full":
        return full_flops(model.linears, model.embedding, amount.tokens)
    share = (model.layers - int(above * model.layers)) / model.layers
    linears = round(model.linears * share)
    return useful_flops(linears, model.embedding, amount.tokens, amount.supervised)


def scratch_tokens(model: Architecture) -> int:
    """Tokens of the compute-optimal run at a model's size: Chinchilla's table."""
    return round(APPROACH_1.optimal_for(model.parameters).tokens)


def full_memory(model: Architecture, shapes: Shapes, work: Work) -> int:
    """Bytes of training every weight with Adam in mixed precision, activations included."""
    found = predict(shapes, work, RESIDENT).parts
    passing = found["kept for the way back"] + found["inside a layer or at the head"]
    return RESIDENT + ADAM_BYTES * model.parameters + passing


def work_of(batch_tokens: int, longest: int, share: float, itemsize: int = HALF) -> Work:
    """A step and an evaluation of so many tokens, in rows of at most `longest`."""
    at = Pass(batch_tokens, batch_tokens, min(longest, batch_tokens), round(share * batch_tokens))
    return Work(itemsize=itemsize, step=at, evaluation=at, exam=at)


def priced(
    way: str,
    *,
    trainable: int,
    bytes: int,
    memory: int,
    tokens: int,
    flops: int,
    seconds: Interval | None,
    profiles: Profiles,
    machine: str,
) -> Price:
    """A way with its energy and money on a machine. Raises UsageError."""

    def each(of: Callable[[str, float], float | None]) -> Interval | None:
        if seconds is None:
            return None
        low, high = of(machine, seconds.low), of(machine, seconds.high)
        return None if low is None or high is None else Interval(low, high)

    return Price(
        way=way,
        trainable=trainable,
        bytes=bytes,
        memory=memory,
        tokens=tokens,
        flops=flops,
        seconds=seconds,
        kwh=each(profiles.energy_kwh),
        money=each(profiles.money),
    )


def ratios(prices: Mapping[str, Price]) -> dict[str, float]:
    """How many updates each way's price would pay for: in money where it is known, else in time,
    else in operations."""
    update = prices["update"]
    found = {}
    for way, price in prices.items():
        if price.money and update.money and update.money.middle > 0:
            found[way] = price.money.middle / update.money.middle
        elif price.seconds and update.seconds:
            found[way] = price.seconds.middle / update.seconds.middle
        else:
            found[way] = price.flops / update.flops
    return found
