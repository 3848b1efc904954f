"""Run a fuzz target under atheris for some seconds, from seeds, with limits on memory and time."""

import argparse
import resource
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

RSS_MB = 2048
"""libFuzzer stops with a fault when the process takes so much more than it began with. (Its peak
includes that of the process that started it, such as a test run that loaded models.)"""
INPUT_SECONDS = 20
"""And when one input takes longer."""


def fuzz(
    function: Callable[[bytes], object], seeds: Iterable[bytes], *, max_len: int = 4096
) -> None:
    """Feed `function` until the time is over; exits with 0 if only LaminaError came out of it."""
    import atheris

    from lamina.core.errors import LaminaError

    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="keep what was found here, for another run")
    parser.add_argument("input", nargs="*", help="inputs to run once, instead")
    given = parser.parse_args()

    def one(data: bytes) -> None:
        try:
            function(data)
        except LaminaError:
            return

    if given.input:
        for path in given.input:
            one(Path(path).read_bytes())
        return
    with tempfile.TemporaryDirectory() as scratch:
        corpus = given.corpus or Path(scratch) / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds):
            (corpus / f"seed{number}").write_bytes(seed)
        began_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        flags = {
            "max_total_time": given.seconds,
            "rss_limit_mb": RSS_MB + began_mb,
            "timeout": INPUT_SECONDS,
            "max_len": max_len,
            "print_final_stats": 1,
            "artifact_prefix": f"{Path.cwd()}/",
        }
        atheris.Setup(
            [sys.argv[0], *(f"-{key}={value}" for key, value in flags.items()), str(corpus)], one
        )
        atheris.Fuzz()
