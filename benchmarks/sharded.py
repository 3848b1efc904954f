"""A base shared out over two workers beside the same base whole in each; and what memory it takes.

Random weights in llama's shape, as in `benchmarks.large`; two processes on this machine that
torch.distributed joins over the loopback interface, with one thread each, which is the fastest
wire there is and no spare processor to hide it behind.

`bit_exact`: whether both ways give the same factors, over the base and over a layer on it.
`peak_bytes` and `peak_data_bytes`: as in `benchmarks.large`, of the worker that has the most.
`under_limit`: the same with a hard limit on each worker's data (RLIMIT_DATA) that holds its share
and not the base; `whole_ends_with`: what the whole base under that limit comes to.
"""

import json
import os
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, emit, home, parser, say
from benchmarks.large import MIDDLE, SMALL, prepared, train

SHAPE = {"hidden": 1536, "mlp": 4096, "layers": 24, "heads": 24, "keys": 8, "vocab": 32000}
LIMITS = {"base": 1_600_000_000, "middle": 1_000_000_000}
"""Bytes, of which torch, transformers and torch.distributed take about 600 million."""
WORKERS = 2
KEPT = (
    "load_seconds", "step_seconds", "tokens_a_step", "peak_bytes", "peak_data_bytes",
    "gathered_a_step",
)  # fmt: skip


def work(given: Any) -> dict[str, Any]:
    """One worker."""
    import torch
    import torch.distributed as distributed

    from lamina.train.crew import Group

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group(
        "gloo", init_method=f"file://{given.meeting}", rank=given.rank, world_size=WORKERS,
        timeout=timedelta(seconds=600),
    )  # fmt: skip
    found = train(given, crew=Group(), shard=given.shard)
    distributed.destroy_process_group()
    return found


def together(root: Path, on: str, given: Any, *, shard: bool, limit: int = 0) -> dict[str, Any]:
    """What two workers come to; how it ended, where it did not end well."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "benchmarks.sharded", "--home", str(root), "--on", on,
            "--meeting", f"{folder}/meeting", "--limit", str(limit),
            "--steps", str(given.steps), "--tokens", str(given.tokens),
            *(["--shard"] if shard else []), "--rank",
        ]  # fmt: skip
        started = [
            subprocess.Popen(
                [*command, str(rank)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for rank in range(WORKERS)
        ]  # fmt: skip
        ended = [each.communicate() for each in started]
    for process, (_, said) in zip(started, ended, strict=True):
        if process.returncode:
            last = [line.strip() for line in said.splitlines() if line.strip()]
            return {"ended": f"exit {process.returncode}: {' | '.join(last[-3:])[:300]}"}
    found: list[dict[str, Any]] = [json.loads(out.splitlines()[-1]) for out, _ in ended]
    most = {key: max(each[key] for each in found) for key in KEPT}
    rate = round(found[0]["tokens_a_step"] / found[0]["step_seconds"], 1)
    same = len({each["factors"] for each in found}) == 1
    beside = {key: found[0][key] for key in ("parameters", "weights_bytes", "kernels")}
    said_of = {**most, **beside, "tokens_per_second": rate}
    say(f"{on}, {'shared' if shard else 'whole'}: {said_of}")
    return said_of | {"factors": found[0]["factors"] if same else None}


def measure(root: Path, given: Any) -> dict[str, Any]:
    """The row."""
    prepared(root, "small", SMALL, layered=True)
    name, shape = ("middle", MIDDLE) if given.quick else ("base", SHAPE)
    prepared(root, name, shape)
    exact = True
    found: dict[str, dict[str, Any]] = {}
    for on in ("small-layered", name):
        found = {
            way: together(root, on, given, shard=way == "shared") for way in ("whole", "shared")
        }
        for way, each in found.items():
            if "ended" in each:
                raise SystemExit(f"{on}, {way}: {each['ended']}")
        factors = [each.pop("factors") for each in found.values()]
        exact &= factors[0] is not None and factors[0] == factors[1]
    limit = given.limit or LIMITS[name]
    limited = {
        way: together(root, name, given, shard=way == "shared", limit=limit)
        for way in ("shared", "whole")
    }
    return {
        "workers": WORKERS,
        "bit_exact": exact,
        **found,
        "ratio": round(found["shared"]["step_seconds"] / found["whole"]["step_seconds"], 3),
        "limit_bytes": limit,
        "under_limit": limited["shared"].get("ended", "success"),
        "whole_ends_with": limited["whole"].get("ended", "success"),
    }


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__)
    arguments.add_argument("--quick", action="store_true", help="0.2G parameters in place of 0.65G")
    arguments.add_argument("--limit", type=int, default=0, help="bytes of RLIMIT_DATA")
    arguments.add_argument("--steps", type=int, default=3)
    arguments.add_argument("--tokens", type=int, default=256, help="in a step")
    arguments.add_argument("--rank", type=int, help="work in this process")
    arguments.add_argument("--on")
    arguments.add_argument("--meeting")
    arguments.add_argument("--shard", action="store_true")
    arguments.set_defaults(stream="no", device="cpu")
    given = arguments.parse_args()
    if given.rank is not None:
        print(json.dumps(work(given)))
        return
    with home(given.home) as directory:
        root = Path(directory).resolve() / "sharded"
        root.parent.mkdir(parents=True, exist_ok=True)
        emit("sharded", measure(root, given), keep=given.keep)


if __name__ == "__main__":
    main()
