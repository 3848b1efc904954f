"""Quantised bases beside the plain one: weights, memory, speed and held-out loss of a training.

The same rows, recipe and steps on the base in bfloat16, in nf4 and in int8, each in a process of
its own. `weights_bytes`: the base's weights as they are in memory while it trains. `peak_bytes`:
the peak resident set of the process, libraries included; `over_idle_bytes`: that less the resident
set before the base was loaded. `tokens_per_second` of training steps and `generated_per_second`,
tokens of a greedy answer: in one process, the bases taking turns so that a noisy machine weighs on
all alike; medians, and medians of the ratios within a turn (`…_vs_plain`). Losses are nats a
supervised token on held-out rows, before the first step and after the last;
`loss_untrained_vs_plain` and `loss_trained_vs_plain` are their differences to the plain base's.
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
    from lamina.core.recipe import Recipe
    from lamina.data.read import read
    from lamina.stack.compile import compile_stack
    from lamina.stack.resolve import resolve
    from lamina.store.layout import Store
    from lamina.tokens.mask import encode_all
    from lamina.train.events import EventLog
    from lamina.train.job import Job
    from lamina.train.loop import train

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
    losses = [e["loss"] for e in events if e["event"] == "eval"]
    return {
        "weights_bytes": weight_bytes(compiled.model),
        "load_seconds": round(loading, 2),
        "peak_bytes": peak,
        "over_idle_bytes": peak - idle,
        "loss_untrained": round(losses[0], 4),
        "loss_trained": round(losses[-1], 4),
        "kernels": outcome.kernels,
    }


def speeds(names: dict[str, str], given: Any) -> dict[str, dict[str, list[float]]]:
    """Seconds of a training step and of an answer on each base, turn by turn."""
    import torch

    from lamina.bases.sample import generate
    from lamina.core.recipe import Recipe
    from lamina.lowrank.attach import Attachment
    from lamina.stack.compile import compile_stack
    from lamina.stack.resolve import resolve
    from lamina.store.layout import Store
    from lamina.tokens.batch import Batch
    from lamina.train.fused import fuse
    from lamina.train.job import fresh_factors
    from lamina.train.objective import token_losses

    store, width = Store.open(given.home), 256
    rows = max(1, given.batch_tokens // width)
    ids = torch.randint(5, 380, (rows, width), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(rows * width).view(rows, width)[:, width // 2 : -1].reshape(-1)
    batch = Batch(
        ids=ids, positions=positions, targets=ids.view(-1)[positions + 1],
        lengths=torch.full((rows,), width), row_of_target=positions // width,
    )  # fmt: skip
    works: dict[str, dict[str, Any]] = {}
    for kind, name in names.items():
        compiled = compile_stack(store, resolve(store, name))
        attachment = Attachment(
            compiled.model, fresh_factors(compiled.linears, Recipe()), compiled.linears
        )
        decoder, why = fuse(compiled.model)
        assert decoder is not None, why

        def step(decoder: Any = decoder, attachment: Any = attachment) -> None:
            attachment.zero_grad()
            token_losses(decoder, batch).mean().backward()

        def answer(compiled: Any = compiled) -> None:
            generate(compiled.model, [ids[0, :64].tolist()], max_new_tokens=NEW_TOKENS, stop_ids=[])

        works[kind] = {"step": step, "answer": answer}
    times = {kind: {what: [] for what in works[kind]} for kind in works}
    for turn in range(given.turns + 1):
        for what in ("step", "answer"):
            for kind, work in works.items():
                began = time.perf_counter()
                work[what]()
                if turn:  # the first is a warm-up
                    times[kind][what].append(time.perf_counter() - began)
    return times


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
    arguments.add_argument("--turns", type=int, default=7, help="of measuring speed")
    arguments.add_argument("--one", help="measure one base of the store, in this process")
    given = arguments.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given)))
        return
    if given.quick:
        given.rows, given.steps, given.batch_tokens, given.turns = 24, 2, 256, 1
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
        times = speeds(names, given)
    tokens = max(1, given.batch_tokens // 256) * 256
    for kind, each in found.items():
        step, answer = (statistics.median(times[kind][what]) for what in ("step", "answer"))
        each["tokens_per_second"] = round(tokens / step, 1)
        each["generated_per_second"] = round(NEW_TOKENS / answer, 1)
    plain = found["plain"]
    for kind in KINDS[1:]:
        each = found[kind]
        each["weights_vs_plain"] = round(each["weights_bytes"] / plain["weights_bytes"], 4)
        for what, key in (("step", "speed_vs_plain"), ("answer", "generation_vs_plain")):
            pairs = zip(times["plain"][what], times[kind][what], strict=True)
            each[key] = round(statistics.median(a / b for a, b in pairs), 3)
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
