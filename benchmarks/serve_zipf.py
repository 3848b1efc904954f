"""A thousand stacks on one server, few of them popular, in memory for a few dozen.

`--stacks` stacks of rank `--rank`, asked by `--clients` clients with Zipf(1.0) popularity, layers
in `--layer-memory` at most, so that they come and go. Every twentieth answer is asked again alone
afterwards: `crossed` counts those that differ.

- `cold_start_s`: from the command to the first answer of /healthz, base loaded; `models_s`: one
  GET /v1/models.
- `first_s`, `gap_s`: to the first token, and between tokens; `first_new_s`, `first_known_s`: to the
  first token of stacks asked for the first time, whose layer is surely on disk, and of the others.
"""

import argparse
import asyncio
import random
import time
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import emit, home, parser, say
from benchmarks.served import (
    Server,
    ask_all,
    metrics,
    percentile,
    prepare,
    questions,
    server,
)
from lamina.core.sizes import parse_size

AGAIN = 20
"""One in so many answers is asked again alone."""
QUICK = {"stacks": 20, "requests": 60, "clients": 6, "layer_memory": "1kB"}


def main() -> None:
    """Prepare, ask, report."""
    arguments = parser(__doc__)
    arguments.add_argument("--stacks", type=int, default=1000)
    arguments.add_argument("--rank", type=int, default=4)
    arguments.add_argument("--requests", type=int, default=600)
    arguments.add_argument("--clients", type=int, default=32)
    arguments.add_argument("--layer-memory", default="256MB")
    arguments.add_argument("--cache-tokens", type=int, default=16384)
    arguments.add_argument("--new", type=int, default=32)
    arguments.add_argument("--quick", action="store_true", help="few stacks, few requests")
    given = arguments.parse_args()
    if given.quick:
        vars(given).update(QUICK)
    with home(given.home) as directory:
        prepare(directory, "zipf", given.stacks, given.rank)
        emit("serve_zipf", measured(directory, given), keep=given.keep)


def measured(directory: Path, given: argparse.Namespace) -> dict[str, Any]:
    """The row."""
    began = time.perf_counter()
    options = ["--layer-memory", given.layer_memory, "--cache-tokens", given.cache_tokens]
    with server(directory, *options) as url:
        cold = time.perf_counter() - began
        say(f"ready after {cold:.1f} s")
        models = median(_models(url) for _ in range(5))
        asked = drawn(given.stacks, given.requests)
        began = time.perf_counter()
        answers = asyncio.run(ask_all(url, asked, given.new, given.clients))
        seconds = time.perf_counter() - began
        resident, found = Server.resident(), metrics(url)
        again = asyncio.run(ask_all(url, asked[::AGAIN], given.new, 1))
    if faults := [answer.fault for answer in (*answers, *again) if answer.fault]:
        raise RuntimeError(f"{len(faults)} answers were lost: {faults[0]}")
    known: set[str] = set()
    first: dict[bool, list[float]] = {True: [], False: []}
    for answer in sorted(answers, key=lambda a: a.began):
        if answer.times:
            first[answer.stack in known].append(answer.first)
        known.add(answer.stack)
    pairs = zip(answers[::AGAIN], again, strict=True)
    return {
        "stacks": given.stacks,
        "asked": len(known),
        "answers": len(answers),
        "crossed": sum(one.text != other.text for one, other in pairs),
        "compared": len(again),
        "cold_start_s": round(cold, 2),
        "models_s": round(models, 3),
        "first_s": _two(first[True] + first[False]),
        "first_new_s": _two(first[False]),
        "first_known_s": _two(first[True]),
        "gap_s": _two([gap for answer in answers for gap in answer.gaps]),
        "tokens_s": round(sum(answer.tokens for answer in answers) / seconds, 1),
        "rss_mb": round(resident / 1e6),
        "layers_loaded": int(found["lamina_engine_layers_loaded"]),
        "layer_mb": round(found["lamina_engine_layer_bytes"] / 1e6, 1),
        "layer_mb_most": round(parse_size(given.layer_memory) / 1e6, 1),
        "layers_evicted": int(found["lamina_engine_layers_evicted"]),
        "cache_tokens": given.cache_tokens,
        "clients": given.clients,
        "rank": given.rank,
        "new": given.new,
    }


def drawn(stacks: int, count: int) -> list[tuple[str, str]]:
    """Stacks by Zipf's law, each with a question."""
    draws = random.Random(0)
    weights = [1 / (place + 1) for place in range(stacks)]
    numbers = draws.choices(range(stacks), weights, k=count)
    texts = questions(64)
    return [(f"zipf{number}", texts[i % len(texts)]) for i, number in enumerate(numbers)]


def _models(url: str) -> float:
    began = time.perf_counter()
    with urllib.request.urlopen(f"{url}/v1/models", timeout=120) as answer:
        answer.read()
    return time.perf_counter() - began


def _two(values: list[float]) -> dict[str, float]:
    return {f"p{share}": round(percentile(values, share / 100), 3) for share in (50, 95)}


if __name__ == "__main__":
    main()
