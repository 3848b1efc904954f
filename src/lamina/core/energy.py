"""Joules that the machine's own counters say were drawn; None where there are none to read.

Processors: Linux' powercap interface (Documentation/power/powercap/powercap.rst): energy_uj of
each RAPL package, and of its memory where that is a zone of its own. GPUs: NVML's total energy,
where the optional `pynvml` is installed. Counters are of the machine, so whatever else ran
meanwhile is in them. Nothing is guessed: where one part of what works has no counter, there is no
sum.
"""

import importlib
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

POWERCAP = Path("/sys/class/powercap")
POLL_SECONDS = 20.0
"""Counters start again at a few hundred kilojoules: minutes apart at full load, so they are read in
between."""
_MICRO, _MILLI = 1e-6, 1e-3


class Reading(NamedTuple):
    """What was drawn since the meter began."""

    joules: float | None
    source: str
    """The counters, or why there is no sum."""


class Counter(NamedTuple):
    """One counter of joules that only grows, but for starting again at `wrap`."""

    name: str
    read: Callable[[], float]
    """Joules. Raises OSError, ValueError."""
    wrap: float | None
    """Joules at which it starts again; None: never."""


class Meter:
    """Adds up what some counters count from now on."""

    def __init__(self, counters: Mapping[str, Counter], missing: str = "") -> None:
        """`missing`: why there is no sum, whatever these say; '' where nothing is missing."""
        self._counters = dict(counters)
        self._missing = missing or ("" if counters else "no counter of energy can be read")
        self._last: dict[str, float] = {}
        self._joules = 0.0
        self._polled = time.monotonic()
        if not self._missing:
            self._poll()

    @classmethod
    def of_machine(
        cls, gpu: str | None = None, powercap: Path = POWERCAP, nvml: Any | None = None
    ) -> "Meter":
        """Over this machine's packages and, where one works, its GPU (by UUID).

        `nvml`: a module like pynvml; None: that, where it is installed.
        """
        counters, missing = _packages(powercap)
        if gpu is not None:
            try:
                counters["gpu"] = _gpu(gpu, nvml or importlib.import_module("pynvml"))
            except ImportError:
                missing = "the GPU's energy needs pynvml: pip install nvidia-ml-py"
            except Exception as error:  # NVML's errors have a base of their own
                missing = f"the GPU's energy cannot be read: {error}"
        return cls(counters, missing)

    def poll(self) -> None:
        """Read the counters if that was a while ago; cheap enough for every step."""
        if not self._missing and time.monotonic() - self._polled > POLL_SECONDS:
            self._poll()

    def reading(self) -> Reading:
        """The sum by now."""
        if not self._missing:
            self._poll()
        if self._missing:
            return Reading(None, self._missing)
        return Reading(self._joules, " + ".join(self._counters))

    def _poll(self) -> None:
        self._polled = time.monotonic()
        for name, counter in self._counters.items():
            try:
                now = counter.read()
            except Exception as error:
                self._missing = f"{name}: {error}"
                return
            grown = now - self._last.get(name, now)
            if grown < 0:
                if counter.wrap is None:
                    self._missing = f"{name} went back"
                    return
                grown += counter.wrap
            self._joules += grown
            self._last[name] = now


def _packages(powercap: Path) -> tuple[dict[str, Counter], str]:
    """Counters of packages and their memory, and why there is no sum where one cannot be read."""
    found: dict[str, Counter] = {}
    for zone in sorted(powercap.glob("intel-rapl:*")):  # AMD's too, under this name
        try:
            name = (zone / "name").read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        inside = zone.name.count(":") > 1
        if not (name.startswith("package") or (inside and name == "dram")):
            continue  # cores are inside their package, psys holds them all
        try:
            wrap = _number(zone / "max_energy_range_uj") * _MICRO
            _number(zone / "energy_uj")
        except (OSError, ValueError) as error:
            return {}, f"the processor's energy cannot be read: {error}"
        unique = f"{name} of {zone.parent.name if inside else zone.name}" if name in found else name
        found[unique] = Counter(unique, partial(_microjoules, zone / "energy_uj"), wrap)
    return found, "" if found else "the processor has no counter of energy that can be read"


def _microjoules(path: Path) -> float:
    return _number(path) * _MICRO


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


def _gpu(uuid: str, nvml: Any) -> Counter:
    nvml.nvmlInit()
    handle = nvml.nvmlDeviceGetHandleByUUID(uuid)

    def read() -> float:
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) * _MILLI

    read()
    return Counter("gpu", read, None)
