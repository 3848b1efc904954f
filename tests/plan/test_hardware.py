"""Machines and prices: shipped profiles, a user's own file, strictness, the sums."""

import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from lamina.core.errors import UsageError
from lamina.plan.hardware import FILE, profiles


def test_the_shipped_machines_have_all_that_a_price_needs() -> None:
    found = profiles()
    assert set(found.hardware) == {"rtx4090", "h100", "m3-max", "laptop", "this"}
    for name, machine in found.hardware.items():
        if name != "this":
            assert None not in (machine.flops, machine.memory_gb, machine.watts)
            assert machine.price_per_hour is not None


def test_every_rate_and_price_has_its_source_above_it() -> None:
    """A comment stands in each shipped machine's table before what it claims."""
    text = files("lamina.plan").joinpath(FILE).read_text(encoding="utf-8")
    assert tomllib.loads(text)["currency"] == "USD"
    for table in text.split("[hardware.")[1:]:
        if "flops" in table:
            assert table.index("#") < table.index("\nflops")
    assert text.index("EIA") < text.index("\nprice_per_kwh")


def own(folder: Path, text: str) -> Path:
    path = folder / FILE
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_of_ones_own_changes_key_by_key_and_adds(tmp_path: Path) -> None:
    path = own(
        tmp_path,
        'currency = "EUR"\n[hardware.h100]\nprice_per_hour = 2.0\n'
        '[hardware.desk]\ntitle = "my desk"\nflops = 1e12\nwatts = 100\nprice_per_hour = 0\n',
    )
    found = profiles(path)
    assert found.currency == "EUR"
    assert found.named("h100").price_per_hour == 2.0
    assert found.named("h100").flops == profiles().named("h100").flops
    assert found.named("desk").title == "my desk"
    assert found.named("laptop") == profiles().named("laptop")


def test_no_file_is_no_fault(tmp_path: Path) -> None:
    assert profiles(tmp_path / FILE) == profiles()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[hardware.h100]\nprice_per_hours = 2.0\n", "did you mean 'price_per_hour'?"),
        ("price_per_kw = 1\n", "did you mean 'price_per_kwh'?"),
        ("[hardware.h100]\nwatts = -1\n", "hardware.h100.watts"),
        ("[hardware.h100]\nflops = 0\n", "hardware.h100.flops"),
        ("[hardware.h100]\nflops = nan\n", "hardware.h100.flops"),
        ("[hardware.desk]\nflops = 1e12\n", "hardware.desk.title"),
        ('[hardware."a b"]\ntitle = "x"\n', "hardware"),
        ("hardware = 3\n", "hardware"),
    ],
)
def test_what_is_not_known_or_cannot_be_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        profiles(own(tmp_path, text))
    assert said in " ".join([str(caught.value), *caught.value.faults])


def test_what_is_no_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        profiles(own(tmp_path, "currency = = 1"))


def test_an_unknown_machine_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        profiles().named("abacus")
    assert "rtx4090" in str(caught.value.hint)


def test_money_is_hours_and_energy(tmp_path: Path) -> None:
    found = profiles(
        own(
            tmp_path,
            "price_per_kwh = 0.5\n"
            '[hardware.rented]\ntitle = "r"\nwatts = 1000\nprice_per_hour = 3\nprice_per_kwh = 0\n'
            '[hardware.owned]\ntitle = "o"\nwatts = 200\nprice_per_hour = 0\n'
            '[hardware.dear]\ntitle = "d"\nwatts = 1000\nprice_per_hour = 3\n'
            '[hardware.silent]\ntitle = "s"\n',
        )
    )
    assert found.energy_kwh("rented", 1800) == pytest.approx(0.5)
    assert found.money("rented", 1800) == pytest.approx(1.5)
    assert found.money("owned", 7200) == pytest.approx(0.4 * 0.5)
    assert found.money("dear", 3600) == pytest.approx(3 + 0.5)
    assert found.money("dear", 3600, kwh=0.2) == pytest.approx(3 + 0.1)  # as measured
    assert found.energy_kwh("silent", 3600) is None
    assert found.money("silent", 3600) is None
    assert found.money("silent", 3600, kwh=2.0) == pytest.approx(1.0)
