"""Energy as a machine's counters tell it, read from folders and modules that look like them."""

import os
import sys

import pytest

from lamina.core import energy
from lamina.core.energy import Meter

WRAP = 262_143_328_850
"""max_energy_range_uj of a real package."""


class Zone:
    """One powercap zone."""

    def __init__(self, folder, name, microjoules=0):
        self.folder = folder
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text(f"{WRAP}\n")
        self.set(microjoules)

    def set(self, microjoules):
        (self.folder / "energy_uj").write_text(f"{microjoules}\n")


@pytest.fixture
def powercap(tmp_path):
    return tmp_path / "powercap"


class Nvml:
    """As pynvml: total energy in millijoules."""

    def __init__(self, millijoules=0):
        self.millijoules, self.asked = millijoules, []

    def nvmlInit(self):  # noqa: N802
        self.asked.append("init")

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        self.asked.append(uuid)
        return self

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802
        assert handle is self
        if self.millijoules is None:
            raise RuntimeError("Not Supported")
        return self.millijoules


def test_packages_and_memory_are_added_and_nothing_is_counted_twice(powercap):
    package = Zone(powercap / "intel-rapl:0", "package-0", 5_000_000)
    second = Zone(powercap / "intel-rapl:1", "package-1", 7_000_000)
    dram = Zone(powercap / "intel-rapl:0:1", "dram", 1_000_000)
    for name in ("intel-rapl:2", "intel-rapl-mmio:0"):
        Zone(powercap / name, "psys" if name.endswith("2") else "package-0", 0)
    core = Zone(powercap / "intel-rapl:0:0", "core", 0)
    meter = Meter.of_machine(powercap=powercap)
    assert meter.reading() == (0.0, "package-0 + dram + package-1")
    package.set(8_500_000)
    second.set(9_000_000)
    dram.set(1_250_000)
    core.set(99_000_000)
    assert meter.reading().joules == pytest.approx(3.5 + 2.0 + 0.25)


def test_a_counter_that_starts_again_is_followed(powercap, monkeypatch):
    package = Zone(powercap / "intel-rapl:0", "package-0", WRAP - 2_000_000)
    meter = Meter.of_machine(powercap=powercap)
    package.set(3_000_000)
    assert meter.reading().joules == pytest.approx(5.0)
    package.set(WRAP - 1)  # two rounds: seen because it is read in between
    meter.poll()
    assert meter.reading().joules == pytest.approx(WRAP * 1e-6 + 2.0, rel=1e-9)
    monkeypatch.setattr(energy, "POLL_SECONDS", -1.0)
    package.set(1_000_000)
    meter.poll()
    package.set(WRAP - 1)
    meter.poll()
    package.set(1_000_000)
    assert meter.reading().joules == pytest.approx(2 * WRAP * 1e-6 + 3.0, rel=1e-9)


def test_without_counters_there_is_no_sum(powercap):
    found = Meter.of_machine(powercap=powercap).reading()
    assert found.joules is None
    assert "no counter" in found.source


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_counter_that_only_root_may_read_gives_no_sum(powercap):
    zone = Zone(powercap / "intel-rapl:0", "package-0")
    (zone.folder / "energy_uj").chmod(0)
    assert Meter.of_machine(powercap=powercap).reading().joules is None


@pytest.mark.parametrize("text", ["", "many", None])
def test_a_counter_that_cannot_be_read_gives_no_sum_rather_than_a_part(powercap, text):
    Zone(powercap / "intel-rapl:0", "package-0", 5)
    other = Zone(powercap / "intel-rapl:1", "package-1", 5)
    meter = Meter.of_machine(powercap=powercap)
    if text is None:
        (other.folder / "energy_uj").unlink()
    else:
        (other.folder / "energy_uj").write_text(text)
    found = meter.reading()
    assert found.joules is None
    assert "package-1" in found.source
    other.set(6)
    assert meter.reading().joules is None  # nor afterwards: what went by is not known
    assert Meter.of_machine(powercap=powercap).reading().joules == 0.0


def test_a_gpu_is_added_to_the_processor(powercap):
    package = Zone(powercap / "intel-rapl:0", "package-0")
    nvml = Nvml(1000)
    meter = Meter.of_machine("GPU-1", powercap, nvml)
    assert nvml.asked == ["init", "GPU-1"]
    nvml.millijoules = 251_000
    package.set(50_000_000)
    assert meter.reading() == (pytest.approx(300.0), "package-0 + gpu")


def test_a_gpu_without_its_counter_gives_no_sum(powercap, monkeypatch):
    Zone(powercap / "intel-rapl:0", "package-0")
    found = Meter.of_machine("GPU-1", powercap, Nvml(None)).reading()
    assert found.joules is None
    assert "Not Supported" in found.source
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as where it is not installed
    found = Meter.of_machine("GPU-1", powercap).reading()
    assert found.joules is None
    assert "nvidia-ml-py" in found.source


def test_this_machine_says_something():
    found = Meter.of_machine().reading()
    assert found.source
    assert found.joules is None or found.joules >= 0
