"""Squash at the size of a 7B model, beside the dense singular value decomposition of a peer.

Synthetic: 8 layers of rank 16 over every linear of Llama-2-7B, squashed exactly. `rel_error`: the
relative Frobenius error of the result over all linears. `peak_over_factors`: (the process' peak
resident set while squashing - its resident set just before + the bytes of the 8 layers' float32
factors) / those bytes; so the layers themselves count as 1, and the result and all workspace are
in it. The peer is what PEFT's `svd` combination computes: dW as a dense float32 matrix and its
full singular value decomposition, measured on one attention linear and multiplied by the number
of linears; a lower bound, as the MLP's are larger.

`ship8_of_64`: a layer trained at rank 64 over the embedded base and squashed to rank 8; the share
of its gain on its loss exam that is left. Null with --synthetic-only.
"""

import contextlib
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import BASE, Log, emit, home, parser, say
from lamina.core.recipe import Recipe
from lamina.flows import learn
from lamina.flows.bases import ensure
from lamina.flows.squash import squash as squash_stack
from lamina.lowrank.maths import Factors
from lamina.lowrank.squash import relative_error, squash, squash_layers
from lamina.store.layout import Store

LAYERS, RANK = 8, 16
HIDDEN, MLP, BLOCKS = 4096, 11008, 32
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (HIDDEN, MLP),
    "mlp.up_proj": (HIDDEN, MLP),
    "mlp.down_proj": (MLP, HIDDEN),
}
"""(in, out) of one block's linears."""
WIDE, NARROW = 64, 8
ROWS = "train_instruction_induction.jsonl"


def random_layer(seed: int, blocks: int) -> dict[str, Factors]:
    """One layer of random factors."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"model.layers.{block}.{name}": Factors(
            torch.randn(RANK, inputs, generator=generator),
            torch.randn(outputs, RANK, generator=generator),
            2.0,
        )
        for block in range(blocks)
        for name, (inputs, outputs) in SHAPES.items()
    }


def memory(field: str) -> int:
    """Bytes of one line of /proc/self/status."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0]) * 1024


def forget_peak() -> None:
    """Start the kernel's peak of the resident set anew."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def synthetic(blocks: int) -> dict[str, Any]:
    """Error, memory and time of the exact squash."""
    layers = [random_layer(seed, blocks) for seed in range(LAYERS)]
    size = 4 * sum(f.parameters for layer in layers for f in layer.values())
    say(f"{LAYERS} layers of {len(layers[0])} linears, {size / 1e9:.2f} GB of factors")
    squash([layers[0]["model.layers.0.self_attn.q_proj"]], rank=None, tolerance=None)  # warm up
    before = memory("VmRSS")
    forget_peak()
    began = time.perf_counter()
    found = squash_layers(layers, rank=None, tolerance=None)
    seconds = time.perf_counter() - began
    peak = memory("VmHWM") - before
    say(f"squashed in {seconds:.1f} s, {peak / 1e9:.2f} GB above the factors")
    missed = [
        part.norm * relative_error([layer[name] for layer in layers], [part.factors])
        for name, part in found.items()
    ]
    return {
        "blocks": blocks,
        "linears": len(found),
        "rank_before": LAYERS * RANK,
        "rank": max(part.rank for part in found.values()),
        "rel_error": math.hypot(*missed) / math.hypot(*(p.norm for p in found.values())),
        "factors_bytes": size,
        "peak_over_factors": round((peak + size) / size, 3),
        "seconds": round(seconds, 2),
    }


def beside_dense(linears: int) -> dict[str, Any]:
    """One attention linear, squashed and by the dense decomposition."""
    terms = [random_layer(seed, 1)["model.layers.0.self_attn.q_proj"] for seed in range(LAYERS)]
    began = time.perf_counter()
    ours = squash(terms, rank=None, tolerance=None)
    seconds = time.perf_counter() - began
    say("dense decomposition of one linear")
    began = time.perf_counter()
    dense_OI = sum((t.scale * (t.b_OR @ t.a_RI) for t in terms), torch.zeros(HIDDEN, HIDDEN))
    u_OO, sigma_O, vh_II = torch.linalg.svd(dense_OI)
    rank = ours.rank
    theirs = Factors(vh_II[:rank], u_OO[:, :rank] * sigma_O[:rank], 1.0)
    peer_seconds = time.perf_counter() - began
    return {
        "module_s": round(seconds, 3),
        "peer_module_s": round(peer_seconds, 2),
        "peer_module_rel_error": relative_error(terms, [theirs]),
        "peer_extrapolated_model_s": round(peer_seconds * linears),
        "times_faster_module": round(peer_seconds / seconds),
    }


def ship_narrow(store: Store, given: Any) -> dict[str, Any]:
    """Train wide, squash narrow; the gain on the layer's own exam before and after."""
    rows = (given.data / given.train).read_text(encoding="utf-8").splitlines()[: given.rows]
    data = store.root / "bench-data" / "rows.jsonl"
    shutil.rmtree(data.parent, ignore_errors=True)
    data.parent.mkdir()
    data.write_text("\n".join(rows) + "\n", encoding="utf-8")
    recipe = Recipe(rank=WIDE, held_out=0.1, exams=("loss",), steps=given.steps)
    request = learn.Request(
        on=BASE, data=[str(data)], name="bench-wide", recipe=recipe, accept_regression="benchmark"
    )
    learned = learn.execute(store, learn.prepare(store, request, Log()), Log())
    done = squash_stack(
        store, "bench-wide", rank=NARROW, name="bench-narrow", reporter=Log(), override="benchmark"
    )
    (kept,) = done["certificate"]["exams"]
    return {
        "share": None if kept["retained"] is None else round(kept["retained"], 4),
        "loss_wide": round(kept["before"], 4),
        "loss_narrow": round(kept["after"], 4),
        "discarded": done["certificate"]["discarded"],
        "parameters": [done["parameters_before"], done["parameters"]],
        "rows": len(rows),
        "train_minutes": round(learned.cost.seconds / 60, 2),
        "squash_seconds": done["certificate"]["seconds"],
    }


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, data=True)
    arguments.add_argument("--quick", action="store_true", help="2 blocks, few rows and steps")
    arguments.add_argument("--synthetic-only", action="store_true", help="train nothing")
    arguments.add_argument("--blocks", type=int, default=BLOCKS)
    arguments.add_argument("--train", default=ROWS, help="file of rows in the folder of data sets")
    arguments.add_argument("--rows", type=int, default=2000)
    arguments.add_argument("--steps", type=int, help="optimiser steps; default one epoch")
    given = arguments.parse_args()
    if given.quick:
        given.blocks, given.rows, given.steps = 2, 40, 4
    row = synthetic(given.blocks)
    row |= beside_dense(BLOCKS * len(SHAPES))
    row |= {"threads": torch.get_num_threads(), "quick": given.quick, "ship8_of_64": None}
    if not given.synthetic_only:
        with home(given.home) as directory:
            store = Store.open(directory)
            ensure(store, BASE, Log())
            row["ship"] = ship_narrow(store, given)
            row["ship8_of_64"] = row["ship"].pop("share")
    emit("squash", row, keep=given.keep)


if __name__ == "__main__":
    main()
