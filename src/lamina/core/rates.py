"""What a machine's time and electricity cost, as configured when a run began."""

from typing import Annotated

from pydantic import Field

from lamina.core.values import Value

_HOUR, _KWH = 3600.0, 3.6e6
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Rates(Value):
    """Prices and watts of one hardware profile. None: not configured."""

    hardware: Annotated[str, Field(max_length=40)]
    """The profile's name."""
    currency: Annotated[str, Field(min_length=1, max_length=8)]
    per_hour: Amount | None = None
    per_kwh: Amount | None = None
    watts: Amount | None = None

    def estimated_joules(self, seconds: float) -> float | None:
        """The profile's watts for so long: an estimate, never a measurement."""
        return None if self.watts is None else self.watts * seconds

    def money(self, seconds: float, joules: float | None) -> float | None:
        """Price per hour x hours + energy x price per kWh.

        None where nothing is priced. `joules` None: the estimate's, where there is one.
        """
        energy = self.estimated_joules(seconds) if joules is None else joules
        power = None if energy is None or self.per_kwh is None else energy / _KWH * self.per_kwh
        if self.per_hour is None and power is None:
            return None
        return (self.per_hour or 0.0) * seconds / _HOUR + (power or 0.0)
