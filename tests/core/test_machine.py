"""What the machine says of memory, read from folders that look like Linux's."""

import numpy as np
import pytest

from lamina.core import machine

GB = 10**9


@pytest.fixture
def linux(tmp_path, monkeypatch):
    """Writes files of /proc and /sys; without any there is nothing to read."""
    names = {
        "STATUS": "status", "MEMINFO": "meminfo", "OWN_GROUP": "cgroup", "GROUPS": "groups",
    }  # fmt: skip
    for name, file in names.items():
        monkeypatch.setattr(machine, name, tmp_path / file)

    def write(**files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_DOT_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


MEMINFO = "MemTotal:  24000000 kB\nMemFree:  1000 kB\nMemAvailable:   20000000 kB\nHugePages: 0\n"


def test_this_process_and_machine():
    before = machine.resident()
    block = np.ones(30_000_000)  # 240 MB
    assert machine.resident() - before > 200_000_000
    assert machine.peak() >= machine.resident() - 10_000_000
    del block
    assert machine.resident() > 10_000_000
    assert machine.free() is None or machine.free() > 0


def test_without_limits_it_is_what_is_available(linux):
    linux(meminfo=MEMINFO, cgroup="0::/user.slice/app\n")
    assert machine.free() == 20_000_000 * 1024
    linux(groups__user_DOT_slice__app__memory_DOT_max="max\n")
    assert machine.free() == 20_000_000 * 1024


def test_nobody_says(linux):
    assert machine.free() is None
    assert machine.resident() == machine.peak()
    linux(meminfo="MemAvailable: much\n", status="VmRSS:\n", cgroup="what\n")
    assert machine.free() is None


def test_a_containers_limit_counts_and_so_does_one_above_it(linux):
    linux(
        meminfo=MEMINFO,
        cgroup="0::/a/b\n",
        groups__a__b__memory_DOT_max="max\n",
        groups__a__memory_DOT_max=f"{4 * GB}\n",
        groups__a__memory_DOT_current=f"{3 * GB}\n",
        groups__a__memory_DOT_stat=f"anon 1\ninactive_file {GB // 2}\n",
    )
    assert machine.free() == 3 * GB // 2
    linux(groups__a__memory_DOT_current=f"{9 * GB}\n")
    assert machine.free() == 0


def test_inside_a_container_the_limit_is_at_the_root(linux):
    linux(
        meminfo=MEMINFO,
        cgroup="0::/\n",
        groups__memory_DOT_max=f"{2 * GB}\n",
        groups__memory_DOT_current=f"{GB}\n",
    )
    assert machine.free() == GB


def test_version_1(linux):
    linux(
        meminfo=MEMINFO,
        cgroup="9:name=systemd:/\n4:memory:/box\n1:cpu:/\n",
        groups__memory__memory_DOT_limit_in_bytes="9223372036854771712\n",
        groups__memory__memory_DOT_usage_in_bytes="1\n",
        groups__memory__box__memory_DOT_limit_in_bytes=f"{3 * GB}\n",
        groups__memory__box__memory_DOT_usage_in_bytes=f"{2 * GB}\n",
    )
    assert machine.free() == GB


def test_a_machine_has_one_number(linux, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "BOOT", tmp_path / "boot_id")
    unnamed = machine.number()
    found = []
    for text in ("one\n", "one", "another"):
        linux(boot_id=text)
        found.append(machine.number())
    assert found[0] == found[1] != found[2]
    assert unnamed not in found
    assert all(0 <= each < 2**62 for each in found)
