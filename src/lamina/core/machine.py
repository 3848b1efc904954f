"""What memory this process has and what the machine has left."""

import contextlib
import hashlib
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")
OWN_STAT = Path("/proc/self/stat")
UPTIME = Path("/proc/uptime")
CPUINFO = Path("/proc/cpuinfo")
BOOT = Path("/proc/sys/kernel/random/boot_id")
MEMINFO = Path("/proc/meminfo")
GROUPS = Path("/sys/fs/cgroup")
"""Where control groups are: their limits count, wherever the process is in the tree."""
OWN_GROUP = Path("/proc/self/cgroup")
UNLIMITED = 1 << 60
"""Control groups say "no limit" by a huge number."""


def resident() -> int:
    """Bytes of this process that are in memory now; where the system does not say, at most so far.

    Linux: VmRSS of /proc/self/status, proc(5).
    """
    found = _fields(STATUS).get("VmRSS")
    return peak() if found is None else found


def peak() -> int:
    """Bytes of this process that were in memory at once, at most so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def age() -> float:
    """Seconds since this process began; 0 where the system does not say. proc(5), field 22."""
    words = "".join(_lines(OWN_STAT)).rpartition(")")[2].split()
    up = "".join(_lines(UPTIME)).split()
    if len(words) < 20 or not up:
        return 0.0
    return max(0.0, float(up[0]) - int(words[19]) / os.sysconf("SC_CLK_TCK"))


def processor() -> str:
    """What the processor calls itself; its kind (x86_64, arm64) where nobody says.

    Linux: `model name` of /proc/cpuinfo; macOS: machdep.cpu.brand_string.
    """
    for line in _lines(CPUINFO):
        name, _, rest = line.partition(":")
        if name.strip() in ("model name", "Model", "Hardware") and rest.strip():
            return " ".join(rest.split())
    if sys.platform == "darwin":
        asked = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True)
            return " ".join(said.stdout.split()) or platform.machine()
    return platform.machine()


def number() -> int:
    """A number of this machine's own (below 2^62), the same in all its processes until it is begun
    again; Linux: of its boot_id, random(4), also in containers. Elsewhere of its name."""
    text = "".join(_lines(BOOT)).strip() or platform.node()
    return int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)


def free() -> int | None:
    """Bytes that can still be taken without something being killed, None where nobody says.

    What the machine has available, what the process's own limits (RLIMIT_DATA, RLIMIT_AS) leave,
    and each control group over it (a container's limit, version 1 or 2); the least of them. Caches
    that the system would give up count as free.
    """
    available = _fields(MEMINFO).get("MemAvailable")
    left = [group for folder in _groups() if (group := _left_in(folder)) is not None]
    left += _left_of_limits() + ([] if available is None else [available])
    return max(0, min(left)) if left else None


def _left_of_limits() -> list[int]:
    left, taken = [], _fields(STATUS)
    for limit, used in (("RLIMIT_DATA", "VmData"), ("RLIMIT_AS", "VmSize")):
        soft, _ = resource.getrlimit(getattr(resource, limit))
        if soft != resource.RLIM_INFINITY and used in taken:
            left.append(soft - taken[used])
    return left


def _groups() -> list[Path]:
    """The folders of the control groups that this process is in, up to their roots."""
    found: list[Path] = []
    for line in _lines(OWN_GROUP):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers not in ("", "memory"):
            continue
        root = GROUPS / controllers
        folder = root / path.strip("/")
        found += [each for each in (folder, *folder.parents) if each.is_relative_to(root)]
    return found or [GROUPS]


def _left_in(folder: Path) -> int | None:
    """What a group's limit leaves, None without a limit."""
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        most, taken = _number(folder / limit), _number(folder / used)
        if most is not None and taken is not None and most < UNLIMITED:
            words = (line.split() for line in _lines(folder / "memory.stat"))
            reclaimable = next((int(w[1]) for w in words if len(w) == 2 and w[0] == cache), 0)
            return max(0, most - taken + reclaimable)
    return None


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _fields(path: Path) -> dict[str, int]:
    """Bytes by name of a file of `Name: 123 kB` lines."""
    found = {}
    for line in _lines(path):
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            found[name] = int(words[0]) * 1024
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
