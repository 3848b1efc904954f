"""Machines: what they reach, hold, draw and cost an hour. Profiles ship in `hardware.toml`.

A user's own file of the same form changes them, key by key, and adds others. Every key is known:
a misspelt one is an error, not a default.
"""

import tomllib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from lamina.core.errors import UsageError
from lamina.core.values import Value

FILE = "hardware.toml"
THIS = "this"
"""Name of the machine that we run on."""
HOUR = 3600.0
_JOULES = 3.6e6
"""In a kWh."""

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Hardware(Value):
    """A machine. None: not known."""

    title: str
    flops: Rate | None = None
    """Fastest dense bfloat16 products with float32 sums, operations a second."""
    memory_gb: Rate | None = None
    """10^9 bytes that training may take."""
    watts: Amount | None = None
    """While it works."""
    price_per_hour: Amount | None = None
    """Of renting it, in the file's currency; 0 for what is owned."""
    price_per_kwh: Amount | None = None
    """Of its electricity, 0 where the rent includes it; None: the file's."""


class Profiles(Value):
    """A file of them."""

    currency: Annotated[str, Field(min_length=1, max_length=8)]
    price_per_kwh: Amount
    hardware: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,39}$")], Hardware]

    def named(self, name: str) -> Hardware:
        """A machine by its name. Raises UsageError naming those there are."""
        if name not in self.hardware:
            known = ", ".join(sorted(self.hardware))
            raise UsageError(f"no hardware is called {name!r}", hint=f"known: {known}")
        return self.hardware[name]

    def energy_kwh(self, name: str, seconds: float) -> float | None:
        """What so many seconds of work draw; None where nobody says. Raises UsageError."""
        watts = self.named(name).watts
        return None if watts is None else watts * seconds / _JOULES

    def money(self, name: str, seconds: float, kwh: float | None = None) -> float | None:
        """Price per hour x hours + energy x price per kWh, in `currency`; None where neither a
        price per hour nor the energy is known. `kwh`: as measured; None: from the machine's watts.

        Raises UsageError.
        """
        machine = self.named(name)
        energy = self.energy_kwh(name, seconds) if kwh is None else kwh
        if machine.price_per_hour is None and energy is None:
            return None
        per_kwh = self.price_per_kwh if machine.price_per_kwh is None else machine.price_per_kwh
        return (machine.price_per_hour or 0.0) * seconds / HOUR + (energy or 0.0) * per_kwh


def profiles(own: Path | None = None) -> Profiles:
    """The shipped profiles with a user's file on top; `own` need not be there.

    Raises UsageError listing every unknown key and wrong value.
    """
    shipped = _shipped()
    if own is None or not own.exists():
        return Profiles.parse(shipped, FILE)
    try:
        given = tomllib.loads(own.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{own} cannot be read: {error}") from None
    whole = _over(shipped, given)
    _check_machines(whole, str(own))
    return Profiles.parse(whole, str(own))


def _check_machines(whole: dict[str, Any], what: str) -> None:
    """Raise UsageError with the faults of every machine, by its own keys."""
    faults: list[str] = []
    machines = whole["hardware"]
    for name, table in machines.items() if isinstance(machines, dict) else ():
        if not isinstance(table, dict):
            continue
        try:
            Hardware.parse(table, name)
        except UsageError as error:
            faults += [f"hardware.{name}.{fault}" for fault in error.faults]
    if faults:
        raise UsageError(f"{what} is not valid", faults=faults)


@cache
def _shipped_text() -> str:
    return files("lamina.plan").joinpath(FILE).read_text(encoding="utf-8")


def _shipped() -> dict[str, Any]:
    return tomllib.loads(_shipped_text())


def _over(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Tables are joined, everything else is replaced."""
    found = dict(under)
    for key, value in over.items():
        below = found.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = _over(below, value)
        found[key] = value
    return found
