"""A base larger than the memory at hand, trained: random weights in llama's shape, several shards.

The process that trains has a hard limit on its data (RLIMIT_DATA: heap and all private writable
memory, resident or not), set before anything is loaded and smaller than the weights; a request
beyond it fails. Not limited by it: libraries' code, and pages of the store's files, which the
system may take back at any time. `peak_bytes`: peak resident set, all of that included;
`peak_data_bytes`: the largest value of what the limit is about, looked at after each step;
`cached_bytes`: how much of the weight files is in the system's cache at the end (mincore).
`resident_ends_with`: what loading the weights under the same limit comes to.

`bit_exact`: at a size that fits, a second layer over a first one is trained from the store and in
memory; whether all factors are the same. `ratio`: the median of its steps, streamed / in memory.
`--gpu` instead: a base of 7B parameters from its files to a GPU, and a layer trained on it there;
`peak_bytes` is main memory, `gpu_bytes` the GPU's.
Nothing here says how well such a model learns: its weights are noise.
"""

import ctypes
import hashlib
import json
import mmap
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Log, emit, home, parser, say

LARGE = {"hidden": 2048, "mlp": 5632, "layers": 28, "heads": 32, "keys": 4, "vocab": 32000}
SMALL = {"hidden": 512, "mlp": 1536, "layers": 6, "heads": 8, "keys": 4, "vocab": 4096}
MIDDLE = {"hidden": 1024, "mlp": 4096, "layers": 12, "heads": 16, "keys": 4, "vocab": 4096}
SEVEN = {"hidden": 4096, "mlp": 11008, "layers": 32, "heads": 32, "keys": 32, "vocab": 32000}
LIMITS = {"large": 1_250_000_000, "middle": 700_000_000}
"""Bytes, of which torch and transformers take about 460 million before there is a model."""
SHARD = 500_000_000
RANK = 4


def checkpoint(folder: Path, shape: dict[str, int], device: str = "cpu") -> None:
    """A model folder with weights of normal(0, 1 / sqrt(inputs)), in bfloat16, sharded; drawn on
    `device`."""
    import torch
    from tests.pico import CHATML, write_tokenizer

    from lamina.bases.normal import write_json
    from lamina.bases.shards import write_shards

    folder.mkdir(parents=True)
    write_tokenizer(folder, vocab=384, chat_template=CHATML)
    head = shape["hidden"] // shape["heads"]
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
            "hidden_size": shape["hidden"], "intermediate_size": shape["mlp"],
            "num_hidden_layers": shape["layers"], "num_attention_heads": shape["heads"],
            "num_key_value_heads": shape["keys"], "head_dim": head, "hidden_act": "silu",
            "vocab_size": shape["vocab"], "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True, "bos_token_id": 4, "eos_token_id": 2, "pad_token_id": 3,
        },
    )  # fmt: skip
    wide, kv = shape["hidden"], shape["keys"] * head
    linears = {
        "self_attn.q_proj": (wide, wide), "self_attn.k_proj": (kv, wide),
        "self_attn.v_proj": (kv, wide), "self_attn.o_proj": (wide, wide),
        "mlp.gate_proj": (shape["mlp"], wide), "mlp.up_proj": (shape["mlp"], wide),
        "mlp.down_proj": (wide, shape["mlp"]),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (shape["vocab"], wide),
        "model.norm.weight": (wide,),
    }
    for layer in range(shape["layers"]):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.{name}.weight": each for name, each in linears.items()}
        shapes |= {f"{at}.{n}_layernorm.weight": (wide,) for n in ("input", "post_attention")}

    def drawn(name: str) -> torch.Tensor:
        size = shapes[name]
        if len(size) == 1:
            return torch.ones(size, dtype=torch.bfloat16)
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        generator = torch.Generator(device).manual_seed(seed)
        made = torch.empty(size, dtype=torch.bfloat16, device=device)
        return made.normal_(0, size[1] ** -0.5, generator=generator).cpu()

    sizes = {name: 2 * torch.Size(size).numel() for name, size in shapes.items()}
    write_shards(sizes, drawn, folder, limit=SHARD)


def train(given: Any, *, crew: Any = None, shard: bool = False) -> dict[str, Any]:
    """Train on the stack `given.on` in this process, and say what it took; in a `crew`, perhaps
    with a share of the base only."""
    if given.limit:
        resource.setrlimit(resource.RLIMIT_DATA, (given.limit, given.limit))
    import numpy as np
    import torch

    from benchmarks.squash import memory
    from lamina.bases import families
    from lamina.bases.quantised import weight_bytes
    from lamina.bases.sharded import shards_of
    from lamina.bases.streamed import StreamedLinear, reading_cost
    from lamina.core.recipe import Recipe
    from lamina.stack.compile import compile_stack
    from lamina.stack.resolve import resolve
    from lamina.store.layout import Store
    from lamina.tokens.mask import Encoded
    from lamina.train.events import EventLog
    from lamina.train.job import Job
    from lamina.train.loop import train as run

    store = Store.open(given.home)
    stream = {"auto": None, "yes": True, "no": False}[given.stream]
    began = time.perf_counter()
    compiled = compile_stack(
        store, resolve(store, given.on), stream=stream, device=given.device, shard=shard
    )
    loading = time.perf_counter() - began
    if crew is not None:
        crew.hold(shards_of(compiled.linears.values()))
    linears = compiled.linears.values()
    cost = reading_cost(linears)
    workers = 1 if crew is None else crew.size
    rows, length = [], given.tokens // workers
    for seed in range(given.steps * workers + 1):
        ids = np.random.default_rng(seed).integers(8, 384, length, dtype=np.int32)
        rows.append(Encoded(ids, np.arange(length) >= length // 2, f"row {seed}"))
    recipe = Recipe(
        rank=RANK, lr=1e-3, steps=given.steps, batch_tokens=given.tokens, rehearsal=0.0,
        protect=0.0, eval_every=given.steps, patience=None,
    )  # fmt: skip
    events: list[dict[str, Any]] = []
    data: list[int] = []

    def seen(event: dict[str, Any]) -> None:
        events.append(event | {"at": time.perf_counter()})
        data.append(memory("VmData"))

    with home(None) as directory:
        outcome = run(
            Job(
                model=compiled.model, linears=families.select(compiled.linears, recipe.targets),
                rows=rows[:-1], eval_rows=rows[-1:], recipe=recipe, pad_id=compiled.pad_id,
                directory=directory, resume_with="",
            ),
            EventLog(None, seen),
            crew=crew,
        )  # fmt: skip
    digest = hashlib.sha256()
    for name, factors in sorted(outcome.factors.items()):
        digest.update(name.encode() + factors.a_RI.numpy().tobytes())
        digest.update(factors.b_OR.numpy().tobytes())
    steps = [e["tokens"] / e["tokens_per_second"] for e in events if e["event"] == "step"]
    return {
        "streamed": any(isinstance(linear, StreamedLinear) for linear in linears),
        "weights_bytes": weight_bytes(compiled.model),
        "parameters": compiled.stack.base_config.parameters,
        "load_seconds": round(loading, 1),
        "step_seconds": round(statistics.median(steps), 3),
        "steps": len(steps),
        "tokens_a_step": given.tokens,
        "losses": [round(e["loss"], 4) for e in events if e["event"] == "eval"],
        "peak_bytes": memory("VmHWM"),
        "peak_data_bytes": max(data),
        "bytes_a_step": 2 * cost.bytes if cost else 0,
        "read_rate": round(cost.rate) if cost else None,
        "kernels": outcome.kernels,
        "gpu_bytes": torch.cuda.max_memory_allocated() if given.device == "cuda" else None,
        "gathered_a_step": crew.gathered // max(1, len(steps)) if crew is not None else 0,
        "factors": digest.hexdigest(),
    }


def child(home: Path, on: str, **options: Any) -> dict[str, Any]:
    """`train` in a process of its own; how it ended, where it did not end well."""
    command = [sys.executable, "-m", "benchmarks.large", "--train", "--home", str(home)]
    command += ["--on", on]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        last = [line.strip() for line in done.stderr.splitlines() if line.strip()][-4:]
        said = re.sub(r"(?:/[\w.-]+)+/", "", " | ".join(last))  # folders tell nothing elsewhere
        return {"ended": f"exit {done.returncode}: {said[:400]}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def cached_bytes(files: list[Path]) -> int:
    """Bytes of these files in the system's cache, by mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    total = 0
    for path in files:
        with path.open("rb") as handle:
            size = path.stat().st_size
            # a private mapping is enough to ask, and mincore needs its address
            mapped = mmap.mmap(handle.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | 2)
            pages = (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE
            there = (ctypes.c_ubyte * pages)()
            view = (ctypes.c_char * size).from_buffer(mapped)
            address = ctypes.c_void_p(ctypes.addressof(view))
            if libc.mincore(address, ctypes.c_size_t(size), there):
                raise OSError(ctypes.get_errno(), "mincore")
            total += mmap.PAGESIZE * sum(each & 1 for each in there)
            del view
            mapped.close()
    return total


def prepared(
    root: Path, name: str, shape: dict[str, int], *, layered: bool = False, device: str = "cpu"
) -> list[Path]:
    """A base of this shape in the store at `root`, and a layer over it; its weight files."""
    from benchmarks.depth import add_layer
    from lamina.core.names import Name
    from lamina.flows.bases import pull
    from lamina.stack.resolve import resolve
    from lamina.store.layout import Store
    from lamina.store.refs import ANYTHING

    store = Store.open(root)
    if name not in store.bases():
        source = root.parent / f"{name}-source"
        checkpoint(source, shape, device)
        pull(store, str(source), name, Log())
        shutil.rmtree(source)
    if layered:
        stack = add_layer(store, resolve(store, name), 1)
        store.tag(Name(f"{name}-layered"), stack.descriptor, expected=ANYTHING)
    manifest = store.manifest(store.bases()[name].digest)
    return [store.path(b.digest) for b in manifest.layers if b.title.endswith(".safetensors")]


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, data=True)
    arguments.add_argument("--quick", action="store_true", help="0.2G parameters in place of 1.3G")
    arguments.add_argument("--limit", type=int, default=0, help="bytes of RLIMIT_DATA")
    arguments.add_argument("--steps", type=int, default=3)
    arguments.add_argument("--tokens", type=int, default=96, help="in a step")
    arguments.add_argument("--gpu", action="store_true", help="7B parameters on a GPU")
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--train", action="store_true", help="train in this process")
    arguments.add_argument("--on")
    arguments.add_argument("--stream", choices=("auto", "yes", "no"), default="auto")
    given = arguments.parse_args()
    if given.train:
        print(json.dumps(train(given)))
        return
    with home(given.home) as directory:
        root = Path(directory).resolve() / "large"
        root.parent.mkdir(parents=True, exist_ok=True)
        if given.gpu:
            emit("large_gpu", measure_gpu(root, given), keep=given.keep)
        else:
            emit("large", measure(root, given), keep=given.keep)


def measure_gpu(root: Path, given: Any) -> dict[str, Any]:
    """The row of `--gpu`."""
    import torch

    began = time.perf_counter()
    name, shape = ("small", SMALL) if given.quick else ("seven", SEVEN)
    prepared(root, name, shape, device="cuda")
    say(f"pulled after {time.perf_counter() - began:.0f} s")
    found = child(root, name, device="cuda", steps=given.steps, tokens=given.tokens)
    if "ended" in found:
        raise SystemExit(f"training on the GPU: {found['ended']}")
    found.pop("factors")
    rate = round(found["tokens_a_step"] / found["step_seconds"], 1)
    return {"device": torch.cuda.get_device_name(), **found, "tokens_per_second": rate}


def measure(root: Path, given: Any) -> dict[str, Any]:
    """The row."""
    prepared(root, "small", SMALL, layered=True)
    both = {
        stream: child(root, "small-layered", stream=stream, steps=4, tokens=given.tokens)
        for stream in ("yes", "no")
    }
    say(f"at a size that fits: {both}")
    name, shape = ("middle", MIDDLE) if given.quick else ("large", LARGE)
    files = prepared(root, name, shape)
    limit = given.limit or LIMITS[name]
    found = child(root, name, stream="auto", steps=given.steps, tokens=given.tokens, limit=limit)
    if "ended" in found:
        raise SystemExit(f"training under the limit: {found['ended']}")
    found.pop("factors")
    say(f"streamed: {found}")
    cached = cached_bytes(files)
    resident = child(root, name, stream="no", steps=1, tokens=given.tokens, limit=limit)
    say(f"in memory, under the same limit: {resident}")
    return {
        "bit_exact": both["yes"]["factors"] == both["no"]["factors"]
        and both["yes"]["streamed"] and not both["no"]["streamed"],
        "compared_parameters": both["yes"]["parameters"],
        "ratio": round(both["yes"]["step_seconds"] / both["no"]["step_seconds"], 3),
        "limit_bytes": limit,
        "limited": "RLIMIT_DATA",
        **found,
        "cached_bytes": cached,
        "resident_ends_with": resident.get("ended", "success"),
    }  # fmt: skip


if __name__ == "__main__":
    main()
