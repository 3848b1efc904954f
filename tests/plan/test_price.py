"""Ways to the same model side by side."""

import pytest

from lamina.flows.update import REHEARSAL
from lamina.plan.hardware import profiles
from lamina.plan.laws import APPROACH_1
from lamina.plan.price import (
    OLD_SHARE,
    RESIDENT,
    Amount,
    Price,
    flops_of,
    full_memory,
    priced,
    ratios,
    scratch_tokens,
    work_of,
)
from lamina.plan.time import Interval
from lamina.plan.work import ADAM_BYTES, EXAMPLES, architecture

LLAMA = architecture(EXAMPLES["llama2-7b"])


def price(way: str, flops: int, seconds: Interval | None, machine: str = "h100") -> Price:
    return priced(
        way, trainable=1, bytes=2, memory=3, tokens=4, flops=flops, seconds=seconds,
        profiles=profiles(), machine=machine,
    )  # fmt: skip


def test_constants_are_those_of_the_code() -> None:
    assert OLD_SHARE == REHEARSAL


def test_the_optimum_is_chinchillas_table() -> None:
    """Hoffmann et al., arXiv:2203.15556, table 3: about 20 tokens a parameter at 7 billion."""
    tokens = scratch_tokens(LLAMA)
    assert tokens == round(APPROACH_1.optimal_for(LLAMA.parameters).tokens)
    assert 20 <= tokens / LLAMA.parameters < 20.6
    assert flops_of("scratch", LLAMA, Amount(1, 1)) == pytest.approx(
        6 * LLAMA.parameters * tokens, rel=0.03
    )  # C = 6 N D, the embedding's table aside


def test_a_layer_is_at_most_two_thirds_of_full_fine_tuning() -> None:
    every, half = Amount(1000, 1000), Amount(1000, 500)
    assert 3 * flops_of("layer", LLAMA, every) == 2 * flops_of("full", LLAMA, every)
    assert flops_of("layer", LLAMA, half) < flops_of("layer", LLAMA, every)
    assert flops_of("full", LLAMA, half) == flops_of("full", LLAMA, every)
    assert flops_of("layer", LLAMA, every, above=0.5) < 0.55 * flops_of("layer", LLAMA, every)


def test_an_update_costs_its_rows() -> None:
    amount = Amount(1_000_000, 400_000)
    assert amount.share(0.2) == Amount(200_000, 80_000)
    assert amount.share(1e-9) == Amount(1, 1)
    whole, part = (flops_of("layer", LLAMA, each) for each in (amount, amount.share(0.2)))
    assert whole == 5 * part


def test_full_training_keeps_sixteen_bytes_a_parameter() -> None:
    work = work_of(2048, 1024, 0.5)
    found = full_memory(LLAMA, LLAMA.shapes(1), work)
    assert found > RESIDENT + ADAM_BYTES * LLAMA.parameters
    more = full_memory(LLAMA, LLAMA.shapes(1), work_of(4096, 1024, 0.5))
    assert more > found


def test_energy_and_money_come_with_the_time() -> None:
    found = price("layer", 1, Interval(3600.0, 7200.0))
    assert found.kwh == pytest.approx((0.7, 1.4))
    assert found.money == pytest.approx((2.99, 5.98))
    assert found.to_json()["minutes"] == [60.0, 120.0]
    unknown = price("layer", 1, Interval(3600.0, 3600.0), "this")
    assert unknown.kwh is None
    assert unknown.money is None
    assert price("layer", 1, None).to_json()["minutes"] is None


@pytest.mark.parametrize("machine", ["h100", "this"])
@pytest.mark.parametrize("seconds", [Interval(10.0, 40.0), None])
def test_ratios_are_of_what_is_known(machine: str, seconds: Interval | None) -> None:
    of = {
        way: price(way, flops, None if seconds is None else seconds.times(flops), machine)
        for way, flops in (("layer", 5), ("update", 1), ("full", 9), ("scratch", 1000))
    }
    assert ratios(of) == pytest.approx({"layer": 5, "update": 1, "full": 9, "scratch": 1000})
