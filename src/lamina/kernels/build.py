"""Compiling the C++ here for this machine, once: the library is kept under the digest of its
sources, the compiler and the flags, in the user's cache."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from lamina.core.digest import digest_json
from lamina.core.version import __version__

SOURCES = tuple(Path(__file__).with_name(name) for name in ("cpu.cpp", "decode.cpp", "product.cpp"))
HEADERS = (Path(__file__).with_name("simd.h"),)
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-shared")
COMPILERS = ("c++", "g++", "clang++")
SECONDS = 120


class Unavailable(Exception):
    """Why there is no native library here, in words."""


def directory() -> Path:
    """Where compiled libraries are kept."""
    return Path.home() / ".cache" / "lamina" / "kernels"


@cache
def library() -> ctypes.CDLL:
    """The library for this machine, compiled where it is not there yet.

    Raises Unavailable: another kind of processor, no compiler, a folder that cannot be written.
    """
    if not suits():
        raise Unavailable("the processor has no AVX-512 BF16")
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise Unavailable(f"no C++ compiler (looked for {', '.join(COMPILERS)})")
    try:
        path = directory() / f"{_key(compiler)}.so"
        if not path.exists():
            _compile(compiler, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"the native kernels did not compile: {error}") from error


def suits() -> bool:
    """Whether this processor multiplies bfloat16 in its own units."""
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(check and check())


def _key(compiler: str) -> str:
    said = subprocess.run([compiler, "--version"], capture_output=True, timeout=SECONDS, check=True)
    cpu = Path("/proc/cpuinfo")
    flags = next((x for x in cpu.read_text().splitlines() if x.startswith("flags")), "")
    texts = [path.read_text() for path in (*SOURCES, *HEADERS)]
    parts = [texts, said.stdout.decode(), list(FLAGS), flags, __version__]
    return digest_json(parts).removeprefix("sha256:")[:16]


def _compile(compiler: str, path: Path) -> None:
    """Compile beside the target and move it there, so that it appears whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, made = tempfile.mkstemp(dir=path.parent, suffix=".so")
    os.close(handle)
    try:
        command = [compiler, *FLAGS, *map(str, SOURCES), "-o", made]
        subprocess.run(command, capture_output=True, timeout=SECONDS, check=True)
        os.replace(made, path)
    finally:
        Path(made).unlink(missing_ok=True)
