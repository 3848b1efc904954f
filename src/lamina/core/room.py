"""How much memory this process may still take."""

import contextlib
import resource
from pathlib import Path

_MEMINFO, _OWN_GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup")
_STATUS = Path("/proc/self/status")
_GROUPS = Path("/sys/fs/cgroup")
_ENDLESS = 1 << 60
"""Control groups without a limit say a number beyond this, or a word."""


def at_hand() -> int | None:
    """Bytes that can still be taken: what the machine has available, and what is left under the
    process's own limits (RLIMIT_DATA, RLIMIT_AS) and its control groups' (a container's); the least
    of them. None where the system says nothing."""
    found = [_field(_MEMINFO, "MemAvailable"), *_left_of_limits(), *_left_in_groups()]
    known = [each for each in found if each is not None]
    return max(0, min(known)) if known else None


def _left_of_limits() -> list[int | None]:
    left: list[int | None] = []
    for limit, used in (("RLIMIT_DATA", "VmData"), ("RLIMIT_AS", "VmSize")):
        soft, _ = resource.getrlimit(getattr(resource, limit))
        taken = _field(_STATUS, used)
        if soft != resource.RLIM_INFINITY and taken is not None:
            left.append(soft - taken)
    return left


def _left_in_groups() -> list[int | None]:
    """Of every memory group over this process; caches that would be given up count as left."""
    left: list[int | None] = []
    for line in _text(_OWN_GROUPS).splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers not in ("", "memory"):
            continue
        root = _GROUPS / controllers
        folder = root / path.strip("/")
        for each in (folder, *folder.parents):
            if each.is_relative_to(root):
                left.append(_left_in(each))
    return left


def _left_in(folder: Path) -> int | None:
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        most, taken = _text(folder / limit).strip(), _text(folder / used).strip()
        if most.isdigit() and taken.isdigit() and int(most) < _ENDLESS:
            words = [line.split() for line in _text(folder / "memory.stat").splitlines()]
            return int(most) - int(taken) + sum(int(w[1]) for w in words if w[:1] == [cache])
    return None


def _field(path: Path, name: str) -> int | None:
    """Bytes of a line `name: 123 kB`."""
    for line in _text(path).splitlines():
        key, _, rest = line.partition(":")
        if key == name and rest.split()[1:] == ["kB"]:
            return 1024 * int(rest.split()[0])
    return None


def _text(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8")
    return ""
