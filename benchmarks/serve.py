"""Many stacks from one base, beside peers: 32 requests at once, greedy, the same questions.

Each contestant is a process of its own; they take turns, `--repeats` times; medians. Speed is
tokens of answers a second, prompts' reading included, `--new` tokens an answer (no early stop).

- `many`, `one`, `base`, `single`: lamina's engine with 32 stacks of rank `--rank`, with one of them
  for all, with the base for all, and one request alone over the base; `many_bytes`: 32 stacks whose
  layers are kept in 8 bits.
- `http`: the same 32 stacks through `lamina serve` and the official client, streaming.
- `transformers`, `transformers_single`: generate in bfloat16 without adapters, 32 rows and one.
- `peft`: generate with 32 adapters by `adapter_names` (`--peft-new` tokens: it is slow).
- `llamacpp`: llama.cpp's server (xllamacpp) in f16, 32 slots, an adapter of its own a request;
  `llamacpp_f16`, `llamacpp_q8_0`: one request over the base.

`bound`: tokens a second if a pass were nothing but the base's products for 32 rows, by torch and by
lamina's own kernel, whichever is faster. `bound_share`: how near the 32 stacks come to that while
all are answering.
"""

import argparse
import contextlib
import json
import queue
import resource
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.common import BASE, ROOT, emit, home, median_seconds, parser, say
from benchmarks.served import ask_all, prepare, questions, server
from lamina.bases.families import backbone, head, linears
from lamina.bases.load import empty_model, load
from lamina.data.example import Message
from lamina.export import gguf, gguf_lora
from lamina.export import peft as peft_adapter
from lamina.serve.batch import Span
from lamina.serve.engine import Engine, Limits
from lamina.serve.native import why_not
from lamina.serve.open import decoder_of, open_engine
from lamina.serve.request import Event, Finished, Request
from lamina.stack.compile import (
    Compiled,
    base_directory,
    base_format,
    compile_stack,
    layer_factors,
)
from lamina.stack.resolve import resolve
from lamina.store.layout import Store

PEERS = ("transformers", "peft", "llamacpp")


def main() -> None:
    """Prepare once, let everyone run in turn, report."""
    arguments = parser(__doc__)
    arguments.add_argument("--rank", type=int, default=16)
    arguments.add_argument("--new", type=int, default=64)
    arguments.add_argument("--peft-new", type=int, default=4)
    arguments.add_argument("--rows", type=int, default=32)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--quick", action="store_true", help="a few short answers, no llama.cpp")
    arguments.add_argument("--skip", nargs="*", default=[], choices=PEERS)
    arguments.add_argument("--only", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.quick:
        given.rank, given.new, given.peft_new, given.rows, given.repeats = 2, 4, 2, 3, 1
        given.skip = ["llamacpp"]
    with home(given.home) as directory:
        if given.only:
            print(json.dumps(RUNS[given.only](directory, given)))
            return
        prepare(directory, "served", given.rows, given.rank)
        say("stacks are there")
        exported(directory, given.rows, given.skip)
        emit("serve", compared(directory, given), keep=given.keep)


def compared(directory: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Every contestant's medians, and what is asked of them."""
    names = [n for n in RUNS if n.partition("_")[0] not in given.skip]
    found: dict[str, list[float]] = {}
    for turn in range(given.repeats):
        for name in names:
            if name == "peft" and turn:
                continue  # minutes a turn, and far from the others
            for key, value in _child(directory, name, given).items():
                found.setdefault(key, []).append(value)
                say(f"{turn + 1}/{given.repeats} {key} {value:.4g}")
    speed = {key: median(values) for key, values in found.items()}
    bound = max(speed["products_torch"], speed["products_own"])
    ratios = {
        "many_vs_one": ("many", "one"),
        "many_bytes_vs_one": ("many_bytes", "one"),
        "vs_peft": ("many", "peft"),
        "vs_llamacpp": ("many", "llamacpp"),
        "vs_transformers": ("many", "transformers"),
        "single_vs_transformers": ("single", "transformers_single"),
        "single_vs_llamacpp": ("single", "llamacpp_f16"),
        "single_vs_llamacpp_q8_0": ("single", "llamacpp_q8_0"),
        "http_share": ("http", "many"),
    }
    return {
        **{
            key: round(speed[ours] / speed[theirs], 3)
            for key, (ours, theirs) in ratios.items()
            if ours in speed and theirs in speed
        },
        "bound_share": round(speed["many_decode"] / bound, 3),
        "tokens_s": {key: round(value, 1) for key, value in speed.items()},
        "rank": given.rank,
        "rows": given.rows,
        "new": given.new,
        "repeats": given.repeats,
    }


def _child(directory: Path, name: str, given: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.serve", "--home", str(directory), "--only", name]
    for key in ("new", "peft_new", "rows"):
        command += [f"--{key.replace('_', '-')}", str(getattr(given, key))]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


def prompts(store: Store, count: int) -> list[list[int]]:
    """The questions' token ids, as chat prompts of the base."""
    form = base_format(store, resolve(store, BASE))
    texts = questions(count)
    return [form.prompt_ids((Message(role="user", content=text),), ()) for text in texts]


# -- lamina


def engine_speeds(directory: Path, given: argparse.Namespace) -> dict[str, float]:
    """`many`, `one`, `base`, `single`: tokens a second, after each has been run once."""
    store = Store.open(directory)
    engine = open_engine(store, store.bases()[BASE], limits=Limits(cache_tokens=32768))
    asked = prompts(store, given.rows)
    many = [f"served{i}" for i in range(given.rows)]
    found: dict[str, float] = {}
    for stacks in (many, [BASE]):
        _answers(engine, store, stacks, asked[: len(stacks)], 4)
    for key, stacks in (
        ("many", many),
        ("one", many[:1] * given.rows),
        ("base", [BASE] * given.rows),
    ):
        # a prompt that was never read: another beginning keeps the prefix tree out
        fresh = [[ids[0], 50 + len(found), *ids[1:]] for ids in asked]
        total, decode = _answers(engine, store, stacks, fresh, given.new)
        found |= {key: total, f"{key}_decode": decode}
    found["single"] = _answers(engine, store, [BASE], [[asked[0][0], 70, *asked[0][1:]]], 128)[0]
    found["memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    engine.drain(10)
    if why_not(load(base_directory(store, store.bases()[BASE]), dtype=torch.bfloat16).model):
        return found  # layers in bytes need the native kernels
    engine = open_engine(
        store, store.bases()[BASE], limits=Limits(cache_tokens=32768, layer_bits=8)
    )
    _answers(engine, store, many, asked, 4)
    fresh = [[ids[0], 80, *ids[1:]] for ids in asked]
    found["many_bytes"] = _answers(engine, store, many, fresh, given.new)[0]
    engine.drain(10)
    return found


def _answers(
    engine: Engine, store: Store, stacks: list[str], asked: list[list[int]], new: int
) -> tuple[float, float]:
    """Tokens a second: of all, and from when every request has its first token."""
    heard: queue.Queue[Finished] = queue.Queue()
    firsts: list[float] = []
    told = [0] * len(stacks)
    lock = threading.Lock()
    at_last_first = [0]

    def listener(row: int) -> Callable[[Event], None]:
        def hear(event: Event) -> None:
            if isinstance(event, Finished):
                heard.put(event)
                return
            with lock:
                told[row] += 1
                if told[row] == 1:
                    firsts.append(time.perf_counter())
                    at_last_first[0] = sum(told)

        return hear

    resolved = [resolve(store, stack) for stack in stacks]
    began = time.perf_counter()
    for row, (stack, ids) in enumerate(zip(resolved, asked, strict=True)):
        engine.submit(Request(stack, tuple(ids), new), listener(row))
    for _ in stacks:
        if (ended := heard.get(timeout=600)).reason != "length":
            raise RuntimeError(f"an answer ended with {ended.reason}: {ended.error}")
    over = time.perf_counter()
    count = sum(told)
    return count / (over - began), (count - at_last_first[0]) / (over - firsts[-1])


def products(directory: Path, given: argparse.Namespace) -> dict[str, float]:
    """Tokens a second of the base's products alone for 32 rows: torch's, and our kernel's."""
    store = Store.open(directory)
    compiled = compile_stack(store, resolve(store, BASE))
    torch_speed = given.rows / _torch_products(compiled, given.rows)
    decoder = decoder_of(compiled)
    decoder.reserve(given.rows)
    ids = list(range(10, 10 + given.rows))

    def once() -> None:  # a first token has no past: next to nothing but products
        decoder.run([Span([token], 0, [i], [], True) for i, token in enumerate(ids)])

    once()
    return {"products_torch": torch_speed, "products_own": given.rows / median_seconds(once, 15)}


def _torch_products(compiled: Compiled, rows: int) -> float:
    """Seconds; linears that read one tensor as one product, as fast as torch can."""
    model: Any = compiled.model
    groups = []
    for layer in backbone(model).layers:  # type: ignore[union-attr]
        attention, mlp = layer.self_attn, layer.mlp
        for members in (
            (attention.q_proj, attention.k_proj, attention.v_proj),
            (attention.o_proj,),
            (mlp.gate_proj, mlp.up_proj),
            (mlp.down_proj,),
        ):
            groups.append(torch.cat([member.weight for member in members]))
    groups.append(head(model).weight)
    inputs = {w.shape[1]: torch.randn(rows, w.shape[1]).to(w.dtype) for w in groups}

    def once() -> None:
        with torch.inference_mode():
            for weight in groups:
                torch.nn.functional.linear(inputs[weight.shape[1]], weight)

    once()
    return median_seconds(once, 15)


def http_speed(directory: Path, given: argparse.Namespace) -> dict[str, float]:
    """Tokens a second through the server and the official client, 32 streams."""
    import asyncio

    asked = [(f"served{i}", text) for i, text in enumerate(questions(given.rows))]
    with server(directory) as url:
        asyncio.run(ask_all(url, asked, 2, given.rows))  # the base and the layers are loaded
        fresh = [(stack, f"Hello. {text}") for stack, text in asked]
        began = time.perf_counter()
        answers = asyncio.run(ask_all(url, fresh, given.new, given.rows))
        seconds = time.perf_counter() - began
    faults = [answer.fault for answer in answers if answer.fault]
    if faults:
        raise RuntimeError(faults[0])
    return {"http": sum(answer.tokens for answer in answers) / seconds}


# -- peers


def _generate(model: Any, asked: list[list[int]], new: int, **more: Any) -> float:
    longest = max(map(len, asked))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in asked])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in asked])
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False} | more
    with torch.inference_mode():
        began = time.perf_counter()
        out = model.generate(input_ids=ids, attention_mask=mask, pad_token_id=0, **options)
        seconds = time.perf_counter() - began
    if out.shape[1] != longest + new:
        raise RuntimeError("generate stopped early")
    return len(asked) * new / seconds


def transformers_speeds(directory: Path, given: argparse.Namespace) -> dict[str, float]:
    """generate over the base, 32 rows and one."""
    store = Store.open(directory)
    model = load(base_directory(store, store.bases()[BASE]), dtype=torch.bfloat16).model
    asked = prompts(store, given.rows)
    _generate(model, asked[:2], 2)
    return {
        "transformers": _generate(model, asked, given.new),
        "transformers_single": _generate(model, asked[:1], given.new),
    }


def peft_speed(directory: Path, given: argparse.Namespace) -> dict[str, float]:
    """generate with an adapter of its own a row."""
    from peft import PeftModel

    store = Store.open(directory)
    model = load(base_directory(store, store.bases()[BASE]), dtype=torch.bfloat16).model
    names = [f"served{i}" for i in range(given.rows)]
    folder = directory / "adapters"
    peft: Any = PeftModel.from_pretrained(model, folder / names[0], adapter_name=names[0])  # type: ignore[arg-type]
    for name in names[1:]:
        peft.load_adapter(folder / name, adapter_name=name)
    peft.eval()
    return {
        "peft": _generate(peft, prompts(store, given.rows), given.peft_new, adapter_names=names)
    }


def exported(directory: Path, rows: int, skipped: list[str]) -> None:
    """Adapters for PEFT and GGUF files for llama.cpp, written once: what lamina's exports write."""
    store = Store.open(directory)
    base = base_directory(store, store.bases()[BASE])
    modules = linears(empty_model(base))
    for i in range(rows):
        stack = resolve(store, f"served{i}")
        factors = layer_factors(store, stack.layers[0])
        folder, file = directory / "adapters" / f"served{i}", directory / f"loras/served{i}.gguf"
        if "peft" not in skipped and not folder.exists():
            folder.mkdir(parents=True)
            peft_adapter.write([factors], modules, folder, str(base))
        if "llamacpp" not in skipped and not file.exists():
            file.parent.mkdir(exist_ok=True)
            gguf_lora.write(base, [factors], file, f"served{i}")
    form = base_format(store, resolve(store, BASE))
    for precision in ("f16", "q8_0"):
        file = directory / f"base-{precision}.gguf"
        if "llamacpp" not in skipped and not file.exists():
            gguf.write(base, [], file, precision, form, BASE)


@contextlib.contextmanager
def llama_server(file: Path, *, slots: int, adapters: list[Path]) -> Iterator[Callable[..., Any]]:
    """llama.cpp's server; what to call with a request's fields."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 512 * slots, slots, 0
    params.warmup, params.verbosity = False, 0
    threads = torch.get_num_threads()
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    infos = []
    for path in adapters:
        info = xllamacpp.CommonAdapterLoraInfo()
        info.path, info.scale = str(path), 0.0  # each request says what it wants
        infos.append(info)
    params.lora_adapters = infos
    running = xllamacpp.Server(params)
    open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def complete(**body: Any) -> Any:
        request = urllib.request.Request(
            running.listening_address + "/completion",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with open_url(request, timeout=1200) as answer:
            return json.load(answer)

    yield complete  # the server ends with the last reference


def llamacpp_speeds(directory: Path, given: argparse.Namespace) -> dict[str, float]:
    """32 requests with an adapter each, and one request over the base in two precisions."""
    asked = prompts(Store.open(directory), given.rows)
    options = {"temperature": 0, "ignore_eos": True, "cache_prompt": False}
    found = {}
    for precision in ("f16", "q8_0"):
        file = directory / f"base-{precision}.gguf"
        with llama_server(file, slots=1, adapters=[]) as complete:
            complete(prompt=asked[0], n_predict=2, **options)
            began = time.perf_counter()
            count = complete(prompt=asked[0], n_predict=128, **options)["tokens_predicted"]
            found[f"llamacpp_{precision}"] = count / (time.perf_counter() - began)
    adapters = [directory / f"loras/served{i}.gguf" for i in range(given.rows)]
    with (
        llama_server(directory / "base-f16.gguf", slots=given.rows, adapters=adapters) as complete,
        ThreadPoolExecutor(given.rows) as pool,
    ):

        def one(row: int) -> int:
            lora = [{"id": i, "scale": float(i == row)} for i in range(given.rows)]
            said = complete(prompt=asked[row], n_predict=given.new, lora=lora, **options)
            count: int = said["tokens_predicted"]
            return count

        began = time.perf_counter()
        total = sum(pool.map(one, range(given.rows)))
        found["llamacpp"] = total / (time.perf_counter() - began)
    return found


RUNS: dict[str, Callable[[Path, argparse.Namespace], dict[str, float]]] = {
    "engine": engine_speeds,
    "products": products,
    "http": http_speed,
    "transformers": transformers_speeds,
    "llamacpp": llamacpp_speeds,
    "peft": peft_speed,
}

if __name__ == "__main__":
    main()
