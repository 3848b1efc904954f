"""What the serving benchmarks share: stacks of random layers, questions, and who asks them."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import BASE, Log, say
from lamina.bases import families
from lamina.bases.load import empty_model
from lamina.core.manifests import JSON_TYPE, SAFETENSORS_TYPE, LayerConfig, StackedLayer
from lamina.core.names import Name
from lamina.flows.bases import ensure
from lamina.lowrank import codec
from lamina.lowrank.maths import Factors
from lamina.stack.compile import base_directory
from lamina.stack.resolve import over_base
from lamina.store.layout import Store
from lamina.store.refs import ANYTHING

STRENGTH = 0.02
"""Standard deviation of B: answers differ from stack to stack, and stay text."""


def prepare(directory: Path, prefix: str, count: int, rank: int) -> Store:
    """A store with the base and stacks `prefix0`, `prefix1`, …: a random layer each, on all
    linears. What is there already is kept."""
    store = Store.open(directory)
    ensure(store, BASE, Log())
    base = store.bases()[BASE]
    there = store.names()
    missing = [i for i in range(count) if f"{prefix}{i}" not in there]
    shapes = {
        name: (linear.out_features, linear.in_features)
        for name, linear in families.linears(empty_model(base_directory(store, base))).items()
    }
    stack_base = over_base(store, base, label=BASE).config.base
    for done, number in enumerate(missing):
        if done % 50 == 0:
            say(f"making stacks: {done}/{len(missing)}")
        layer = _put_layer(store, f"{prefix}{number}", shapes, rank, number, stack_base)
        stack = store.put_stack(stack_base, [StackedLayer(layer=layer, weight=1.0)])
        store.tag(Name(f"{prefix}{number}"), stack, expected=ANYTHING)
    return store


def _put_layer(
    store: Store, name: str, shapes: dict[str, tuple[int, int]], rank: int, seed: int, base: Any
) -> str:
    generator = torch.Generator().manual_seed(seed)
    factors = {
        module: Factors(
            torch.randn(rank, inputs, generator=generator) * inputs**-0.5,
            torch.randn(outputs, rank, generator=generator) * STRENGTH,
            1.0,
        )
        for module, (outputs, inputs) in shapes.items()
    }
    text, weights = codec.encode(
        factors,
        rank=rank,
        alpha=rank,
        scaling="lora",
        target_modules=tuple(factors),
        base=BASE,
    )
    blobs = [
        store.put_bytes(text, JSON_TYPE, title=codec.CONFIG_FILE),
        store.put_bytes(weights, SAFETENSORS_TYPE, title=codec.WEIGHTS_FILE),
    ]
    config = LayerConfig(
        name=name,
        base=base,
        parents=(),
        rank=rank,
        alpha=rank,
        scaling="lora",
        modules=tuple(factors),
        parameters=sum(f.parameters for f in factors.values()),
    )
    return store.put_layer(config, blobs).digest


def questions(count: int) -> list[str]:
    """Questions of 40 to 120 tokens, each another."""
    things = ("apples", "marbles", "stamps", "books", "coins", "shells", "pencils", "cards")
    found = []
    for i in range(count):
        text = f"Anna has {3 + i} {things[i % 8]}. "
        for j in range(1 + i % 4):
            text += (
                f"On day {j + 1} she gives {1 + (i + j) % 5} of them to a friend and buys "
                f"{2 + (3 * i + j) % 7} more at the market. "
            )
        found.append(text + "How many does she have in the end? Explain each step.")
    return found


@contextlib.contextmanager
def server(directory: Path, *options: object, threads: int | None = None) -> Iterator[str]:
    """`lamina serve` on a free port: its address. Ended by SIGTERM; it must end well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"LAMINA_HOME": str(directory)}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [Path(sys.executable).parent / "lamina", "serve", "--port", port, *options]
    with subprocess.Popen(
        list(map(str, command)), env=environment, stderr=subprocess.DEVNULL
    ) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            _await_health(url, process)
            Server.process = process
            yield url
        finally:
            process.terminate()
            code = process.wait(120)
    if code != 0:
        raise RuntimeError(f"lamina serve ended with {code}")


class Server:
    """The process that runs now."""

    process: subprocess.Popen[bytes]

    @classmethod
    def resident(cls) -> int:
        """Bytes in memory."""
        text = Path(f"/proc/{cls.process.pid}/status").read_text()
        line = next(x for x in text.splitlines() if x.startswith("VmRSS"))
        return int(line.split()[1]) * 1024


def _await_health(url: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"lamina serve ended with {process.returncode}")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/healthz", timeout=5):
            return
        time.sleep(0.1)
    raise RuntimeError("lamina serve did not come up")


def metrics(url: str) -> dict[str, float]:
    """`/metrics`: name -> value, summed over labels."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            found[name] = found.get(name, 0.0) + float(value)
    return found


@dataclass
class Answered:
    """One streamed answer, with when its pieces came."""

    stack: str
    text: str = ""
    tokens: int = 0
    began: float = 0.0
    times: list[float] = field(default_factory=list)
    fault: str = ""

    @property
    def first(self) -> float:
        """Seconds to the first piece."""
        return self.times[0] - self.began

    @property
    def gaps(self) -> list[float]:
        """Seconds between pieces."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


async def ask(client: Any, stack: str, question: str, most: int) -> Answered:
    """Stream an answer through the official client, greedily."""
    answer = Answered(stack, began=time.perf_counter())
    try:
        stream = await client.chat.completions.create(
            model=stack,
            messages=[{"role": "user", "content": question}],
            max_tokens=most,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in stream:
            if chunk.usage:
                answer.tokens = chunk.usage.completion_tokens
            for choice in chunk.choices:
                if choice.delta.content:
                    answer.text += choice.delta.content
                    answer.times.append(time.perf_counter())
    except Exception as error:  # whatever the client raises is a lost answer
        answer.fault = f"{type(error).__name__}: {error}"
    return answer


async def ask_all(
    url: str, asked: Sequence[tuple[str, str]], most: int, clients: int
) -> list[Answered]:
    """All of (stack, question), so many at once."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", timeout=600, max_retries=0
    ) as client:
        gate = asyncio.Semaphore(clients)

        async def one(stack: str, question: str) -> Answered:
            async with gate:
                return await ask(client, stack, question, most)

        return await asyncio.gather(*(one(*each) for each in asked))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
