"""Wheels as carriers of data: downloaded by pip, read as zip files, never installed."""

import fnmatch
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from lamina.core.digest import CHUNK_BYTES, digest_file
from lamina.core.errors import BaseError
from lamina.core.files import atomic_write, atomic_writer

Progress = Callable[[str], None]

MAX_MEMBER_BYTES = 16 << 30
MAX_RATIO = 200
"""Largest allowed uncompressed / compressed size: beyond it a member is a zip bomb."""
_RATIO_FREE_BYTES = 1 << 20
# What zipfile raises for a damaged, encrypted or exotic member.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError)
_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?)(?:==(?P<version>[A-Za-z0-9][\w.!+-]*))?",
    re.ASCII,
)
_TOLD = ("Downloading ", "Using cached ", "Processing ")


def silent(_: str) -> None:
    """A progress that says nothing."""


def download_wheel(distribution: str, into: Path, *, progress: Progress = silent) -> Path:
    """The wheel of `name` or `name==version` from the package index that pip is set up for.

    Runs this interpreter's `pip download --no-deps --only-binary :all:` (no code of the package
    runs) and moves the wheel into `into`, with its sha256 beside it. A wheel that is already there
    and matches its sha256 is reused; one that does not match is fetched anew.
    Raises BaseError.
    """
    match = _REQUIREMENT.fullmatch(distribution)
    if match is None:
        raise BaseError(
            f"{distribution!r} is no requirement for one wheel", hint="write name or name==version"
        )
    there = _already(match["name"], match["version"], into)
    if there is not None:
        progress(f"{there.name}: already downloaded")
        return there
    into.mkdir(parents=True, exist_ok=True)
    progress(f"{distribution}: asking the package index")
    with tempfile.TemporaryDirectory(dir=into, prefix=".tmp-pip-") as temp:
        _run_pip(distribution, Path(temp), progress)
        found = sorted(Path(temp).glob("*.whl"))
        if len(found) != 1:
            raise BaseError(f"pip left {len(found)} wheels for {distribution}, not one")
        _check_zip(found[0])
        wheel = into / found[0].name
        digest = digest_file(found[0])
        found[0].replace(wheel)
        atomic_write(_stamp(wheel), digest.encode())
    progress(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB downloaded")
    return wheel


def wheel_version(wheel: Path) -> str:
    """The version in a wheel's file name."""
    return wheel.name.split("-")[1]


def members(wheel: Path, pattern: str) -> tuple[str, ...]:
    """Names of the files in the wheel that match a glob pattern (case matters), sorted.

    Raises BaseError when the file is no zip.
    """
    with _open(wheel) as archive:
        return tuple(
            sorted(
                info.filename
                for info in archive.infolist()
                if not info.is_dir() and fnmatch.fnmatchcase(info.filename, pattern)
            )
        )


def read_member(wheel: Path, pattern: str, out: Path, *, max_bytes: int = MAX_MEMBER_BYTES) -> Path:
    """Write the one member that matches `pattern` to the file `out`, atomically, and return `out`.

    Only the caller names the target, so no path inside the archive can lead elsewhere.
    Raises BaseError as `copy_member` does.
    """
    with atomic_writer(out) as target:
        copy_member(wheel, pattern, target, max_bytes=max_bytes)
    return out


def copy_member(
    wheel: Path, pattern: str, target: IO[bytes], *, max_bytes: int = MAX_MEMBER_BYTES
) -> None:
    """Append the bytes of the one member that matches `pattern` to an open file.

    Raises BaseError when no member or several match, or it is larger than `max_bytes`, a zip bomb,
    encrypted or damaged.
    """
    found = members(wheel, pattern)
    if len(found) != 1:
        raise BaseError(
            f"{wheel.name} has {len(found)} files that match {pattern!r}, not one",
            faults=found or members(wheel, "*"),
            hint="narrow the pattern" if found else "the list shows what the wheel has",
        )
    with _open(wheel) as archive:
        info = archive.getinfo(found[0])
        _check_size(wheel, info, max_bytes)
        try:
            with archive.open(info) as member:
                shutil.copyfileobj(member, target, CHUNK_BYTES)
        except _DAMAGE as error:
            raise BaseError(
                f"{wheel.name}: {info.filename} cannot be read: {error}",
                hint=f"delete {wheel} and pull again",
            ) from error


def _already(name: str, version: str | None, into: Path) -> Path | None:
    """A finished download of this distribution whose bytes still match their stamp."""
    normal = re.sub(r"[-_.]+", "-", name).lower()
    for wheel in sorted(into.glob("*.whl"), reverse=True):
        parts = wheel.name.split("-")
        if re.sub(r"[-_.]+", "-", parts[0]).lower() != normal:
            continue
        if version is not None and parts[1] != version:
            continue
        stamp = _stamp(wheel)
        if stamp.is_file() and stamp.read_text() == digest_file(wheel):
            return wheel
    return None


def _stamp(wheel: Path) -> Path:
    return wheel.with_name(wheel.name + ".sha256")


def _run_pip(distribution: str, dest: Path, progress: Progress) -> None:
    """Run pip, passing on what it says about downloads. Raises BaseError with pip's own reason."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--progress-bar", "off", "--disable-pip-version-check"]
    command += ["--dest", str(dest), distribution]
    said: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                said.append(line.strip())
                if said[-1].startswith(_TOLD):
                    progress(said[-1])
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise _pip_failed(distribution, said)


def _pip_failed(distribution: str, said: list[str]) -> BaseError:
    if any("No module named pip" in line for line in said):
        return BaseError(
            f"{distribution} cannot be downloaded: this Python has no pip",
            hint=f"run `{sys.executable} -m ensurepip`, or give a local directory or .gguf file",
        )
    reasons = [line for line in said if line.startswith(("ERROR", "WARNING"))]
    return BaseError(
        f"pip could not download {distribution}",
        faults=(reasons or said)[-4:],
        hint="check the name, the network and pip's index settings (`pip config list`), then pull "
        "again; what is already downloaded is kept",
    )


def _open(wheel: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(wheel)
    except (zipfile.BadZipFile, OSError) as error:
        raise BaseError(
            f"{wheel} is not a readable wheel: {error}", hint="delete it and pull again"
        ) from error


def _check_zip(wheel: Path) -> None:
    """Read every member against its CRC. Raises BaseError naming the first bad one."""
    with _open(wheel) as archive:
        for info in archive.infolist():
            _check_size(wheel, info, MAX_MEMBER_BYTES)
        try:
            bad = archive.testzip()
        except _DAMAGE as error:
            bad = str(error)
    if bad is not None:
        raise BaseError(f"{wheel.name}: {bad} is damaged", hint="pull again")


def _check_size(wheel: Path, info: zipfile.ZipInfo, max_bytes: int) -> None:
    packed = max(info.compress_size, 1)
    bomb = info.file_size > _RATIO_FREE_BYTES and info.file_size / packed > MAX_RATIO
    if info.file_size > max_bytes or bomb:
        raise BaseError(
            f"{wheel.name}: {info.filename} would unpack to {info.file_size} bytes "
            f"from {info.compress_size}; the limit is {max_bytes} bytes and {MAX_RATIO}:1",
            hint="this is no ordinary wheel; do not use it",
        )
