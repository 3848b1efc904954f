"""Quantised bases beside the plain one: weights, memory, speed and held-out loss of a training.

The same rows, recipe and steps on the base in bfloat16, in nf4 and in int8, each in a process of
its own, one after the other. `weights_bytes`: the base's weights as they are in memory while it
trains. `peak_bytes`: the peak resident set of the process, libraries included; `over_idle_bytes`:
that less the resident set before the base was loaded. `tokens_per_second`: the median of the steps
after the first; `generated_per_second`: tokens of one greedy answer. Losses are nats a supervised
token on held-out rows, before the first step and after the last; `loss_untrained_vs_plain` and
`loss_trained_vs_plain` are their differences to the plain base's.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import BASE, ROOT, Log, emit, home, parser, say

KINDS = ("plain", "nf4", "int8")
FILE = "train_gsm8k.jsonl"
MAX_LENGTH = 512
NEW_TOKENS = 48


def measure(name: str, given: Any) -> dict[str, Any]:
    """Train on one base in this process."""
    import torch

    from benchmarks.squash import memory
    from lamina.bases import families
    from lamina.bases.quantised import weight_bytes
    from lamina.bases.sample import generate
    from lamina.core.recipe import Recipe
    from lamina.data.read import read
    from lamina.stack.compile import compile_stack
    from lamina.stack.resolve import resolve
    from lamina.store.layout import Store
    from lamina.tokens.mask import encode_all
    from lamina.train.events import EventLog
    from lamina.train.loop import Job, train

    store = Store.open(given.home)
    examples = list(read([str(given.data / FILE)]).examples)[: given.rows]
    torch.zeros(1).add_(1)
    idle, began = memory("VmRSS"), time.perf_counter()
    compiled = compile_stack(store, resolve(store, name))
    loading = time.perf_counter() - began
    encoded = encode_all(examples, compiled.format, max_length=MAX_LENGTH, overlong="truncate").rows
    held = max(2, len(encoded) // 10)
    recipe = Recipe(
        lr=5e-4, steps=given.steps, batch_tokens=given.batch_tokens, rehearsal=0.0, protect=0.0,
        eval_every=given.steps, patience=None,
    )  # fmt: skip
    events: list[dict[str, Any]] = []
    with home(None) as directory:
        job = Job(
            model=compiled.model, linears=families.select(compiled.linears, recipe.targets),
            rows=encoded[:-held], eval_rows=encoded[-held:], recipe=recipe,
            pad_id=compiled.pad_id, directory=directory, resume_with="",
        )  # fmt: skip
        outcome = train(job, EventLog(None, events.append))
    peak = memory("VmHWM")
    prompt = list(encoded[0].ids[:64])
    began = time.perf_counter()
    answer = generate(
        compiled.model, [prompt], max_new_tokens=NEW_TOKENS, stop_ids=[], pad_id=compiled.pad_id
    )[0]
    generating = time.perf_counter() - began
    speeds = [e["tokens_per_second"] for e in events if e["event"] == "step"]
    losses = [e["loss"] for e in events if e["event"] == "eval"]
    return {
        "weights_bytes": weight_bytes(compiled.model),
        "load_seconds": round(loading, 2),
        "peak_bytes": peak,
        "over_idle_bytes": peak - idle,
        "tokens_per_second": round(statistics.median(speeds[1:] or speeds), 1),
        "generated_per_second": round(len(answer) / generating, 1),
        "loss_untrained": round(losses[0], 4),
        "loss_trained": round(losses[-1], 4),
        "kernels": outcome.kernels,
    }


def child(name: str, given: Any) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.quantised", "--one", name]
    for option in ("home", "data", "rows", "steps", "batch_tokens"):
        command += [f"--{option.replace('_', '-')}", str(getattr(given, option))]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, data=True)
    arguments.add_argument("--quick", action="store_true", help="a few small steps")
    arguments.add_argument("--rows", type=int, default=400)
    arguments.add_argument("--steps", type=int, default=24)
    arguments.add_argument("--batch-tokens", type=int, default=1024)
    arguments.add_argument("--one", help="measure one base of the store, in this process")
    given = arguments.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given)))
        return
    if given.quick:
        given.rows, given.steps, given.batch_tokens = 24, 2, 256
    with home(given.home) as directory:
        from lamina.flows.bases import ensure, pull
        from lamina.store.layout import Store

        given.home = Path(directory).resolve()
        store = Store.open(given.home)
        ensure(store, BASE, Log())
        names = {"plain": BASE} | {kind: f"{BASE}-{kind}" for kind in KINDS[1:]}
        for kind in KINDS[1:]:
            pull(store, BASE, names[kind], Log(), quantise=kind)
        found = {}
        for kind, name in names.items():
            found[kind] = child(name, given)
            say(f"{kind}: {found[kind]}")
    plain = found["plain"]
    for kind in KINDS[1:]:
        each = found[kind]
        each["weights_vs_plain"] = round(each["weights_bytes"] / plain["weights_bytes"], 4)
        each["speed_vs_plain"] = round(each["tokens_per_second"] / plain["tokens_per_second"], 3)
        for when in ("untrained", "trained"):
            difference = each[f"loss_{when}"] - plain[f"loss_{when}"]
            each[f"loss_{when}_vs_plain"] = round(difference, 4)
    row = {
        **found,
        "rows": f"{given.rows} of {FILE}",
        "steps": given.steps,
        "batch_tokens": given.batch_tokens,
    }
    emit("quantised", row, keep=given.keep)


if __name__ == "__main__":
    main()
