"""What every benchmark shares: arguments, a throw-away store, and the row it prints."""

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
BASE = "smollm2-135m"


def parser(description: str | None, *, data: bool = False) -> argparse.ArgumentParser:
    """Arguments that all benchmarks take."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--keep", action="store_true", help="append the row to benchmarks/results")
    result.add_argument("--home", type=Path, help="store to work in (default: a temporary one)")
    if data:
        default = ROOT.parent / "shared" / "data"
        result.add_argument("--data", type=Path, default=default, help="folder of the data sets")
    return result


@contextlib.contextmanager
def home(given: Path | None) -> Iterator[Path]:
    """The store's folder: the one given, or a temporary one."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="lamina-bench-") as directory:
        yield Path(directory)


def hardware() -> dict[str, Any]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    model = next(
        (line.split(":")[1].strip() for line in text.splitlines() if "model name" in line), ""
    )
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "bf16": "avx512_bf16" in text or "amx_bf16" in text,
    }


def versions(*packages: str) -> dict[str, str]:
    """Installed versions."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("lamina", "torch", "transformers", *packages):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def emit(name: str, row: dict[str, Any], *, keep: bool) -> None:
    """Print the row as the last line of stdout; append it to the results when asked."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    full = {
        "benchmark": name,
        **row,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit,
        "hardware": hardware(),
        "versions": versions("peft"),
    }
    line = json.dumps(full)
    if keep:
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / f"{name}.jsonl").open("a") as handle:
            handle.write(line + "\n")
    sys.stdout.flush()
    print(line)


def say(text: str) -> None:
    """Progress on stderr."""
    print(text, file=sys.stderr, flush=True)


class Log:
    """A reporter that writes sentences, and every tenth step, to stderr."""

    def say(self, text: str) -> None:
        """Pass a sentence on."""
        say(text)

    def event(self, event: Any) -> None:
        """Show evaluations and every tenth step."""
        kind = event["event"]
        if kind == "eval" or (kind == "step" and event["step"] % 10 == 0):
            say(" ".join(f"{k}={v}" for k, v in event.items() if k not in ("event", "time")))


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median wall time of `work`."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
