"""`lamina serve --engine`: stacks handed to another engine, as one adapter each over one base.

What is exported is kept under the stack's digest, so a second start is quick.
"""

import csv
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lamina.core.errors import UsageError
from lamina.core.report import Reporter
from lamina.export import llama_cpp
from lamina.flows import to_llama
from lamina.flows.adapters import export
from lamina.flows.outbound import CERTIFICATE
from lamina.flows.suiting import check_talks
from lamina.flows.trust import Trust, check_stack
from lamina.lowrank import codec
from lamina.stack.compile import base_directory
from lamina.stack.resolve import ResolvedStack, resolve
from lamina.store.layout import Store

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What `vllm serve --max-lora-rank` takes (its engine arguments)."""
MOST_AT_ONCE = 8
"""Adapters in one of vLLM's batches; each takes memory of its own."""


@dataclass(frozen=True)
class Adapter:
    """A stack as a PEFT adapter."""

    name: str
    directory: Path
    rank: int


@dataclass(frozen=True)
class Handover:
    """One base and adapters over it, in folders that other engines read."""

    base_name: str
    base: Path
    adapters: tuple[Adapter, ...]


@dataclass(frozen=True)
class GgufHandover:
    """One base and LoRAs over it, in files that llama.cpp reads."""

    base_name: str
    base: Path
    adapters: tuple[tuple[str, Path], ...]
    """Name and file; the place is the id by which a request chooses."""


def prepare(
    store: Store,
    names: Sequence[str],
    base: str | None,
    reporter: Reporter,
    trust: Trust | None = None,
) -> Handover:
    """Export `names` (without any: every newest stack over `base`). Each export is checked, and
    before that the trust policy is asked, where `trust` wants it to be.

    Raises UsageError where the stacks stand on several bases, TrustError, and what `export` raises.
    """
    stacks = _over_one_base(store, names, base)
    _check_trust(store, stacks, trust)
    adapters = [_adapter(store, stack, reporter) for stack in stacks if stack.layers]
    first = stacks[0]
    return Handover(_base_name(store, first), base_directory(store, first.base), tuple(adapters))


def prepare_gguf(
    store: Store,
    names: Sequence[str],
    base: str | None,
    reporter: Reporter,
    trust: Trust | None = None,
) -> GgufHandover:
    """As `prepare`, for llama.cpp: the base in float16 once, and a LoRA for each stack.

    Each is proved by llama.cpp where that is installed. Raises as `prepare`.
    """
    stacks = _over_one_base(store, names, base)
    _check_trust(store, stacks, trust)
    name, alone = _base_name(store, stacks[0]), f"@{stacks[0].base.digest}"
    folder = _gguf(store, resolve(store, alone), "gguf", reporter)
    model = folder / to_llama.model_name(to_llama.DEFAULT_PRECISION)
    adapters = [
        (stack.label, _gguf(store, stack, "gguf-lora", reporter, model) / to_llama.ADAPTER)
        for stack in stacks
        if stack.layers
    ]
    return GgufHandover(name, model, tuple(adapters))


def _check_trust(store: Store, stacks: Sequence[ResolvedStack], trust: Trust | None) -> None:
    if trust is not None:
        for stack in stacks:
            check_stack(store, trust, stack)


def _over_one_base(store: Store, names: Sequence[str], base: str | None) -> list[ResolvedStack]:
    """What to serve, at least one. Raises UsageError for several bases, packed ones and those that
    draw."""
    stacks = _chosen(store, names, base)
    bases = {stack.config.base for stack in stacks}
    if len(bases) != 1:
        raise UsageError(
            "another engine serves one base, and these stacks stand on several"
            if bases
            else "there is nothing to serve",
            faults=[f"{s.label} on {_base_name(store, s)}" for s in stacks],
            hint="name the stacks, or the base: lamina serve --base BASE --engine …",
        )
    hint = "leave --engine out: lamina's own server draws, at /v1/images/generations"
    check_talks(stacks[0], "another engine", hint)
    kind = stacks[0].base_config.quantised
    if kind:
        raise UsageError(
            f"{_base_name(store, stacks[0])} has weights packed in {kind}, which other engines "
            "read in forms of their own",
            hint="serve it with lamina's engine, or carry the stack to the plain base: "
            "lamina rebase STACK --onto-base BASE",
        )
    return stacks


def vllm_command(given: Handover, host: str, port: int) -> list[str]:
    """What starts vLLM on it. Raises UsageError for a rank that it does not take."""
    command = ["vllm", "serve", str(given.base), "--served-model-name", given.base_name]
    command += ["--host", host, "--port", str(port)]
    if not given.adapters:
        return command
    widest = max(adapter.rank for adapter in given.adapters)
    rank = next((rank for rank in VLLM_RANKS if rank >= widest), None)
    if rank is None:
        wide = [a for a in given.adapters if a.rank > VLLM_RANKS[-1]]
        raise UsageError(
            f"vLLM takes adapters up to rank {VLLM_RANKS[-1]}",
            faults=[f"{adapter.name} has rank {adapter.rank}" for adapter in wide],
            hint=f"make it narrower: lamina squash {wide[0].name} --rank {VLLM_RANKS[-1]}",
        )
    command += ["--enable-lora", "--max-lora-rank", str(rank)]
    command += ["--max-loras", str(min(len(given.adapters), MOST_AT_ONCE)), "--lora-modules"]
    return command + [f"{adapter.name}={adapter.directory}" for adapter in given.adapters]


def llamacpp_command(given: GgufHandover, host: str, port: int) -> list[str]:
    """What starts llama.cpp's server on it.

    `--lora` takes all files in one value, as a row of CSV; given again, it is deprecated.
    """
    command = ["llama-server", "-m", str(given.base), "--alias", given.base_name, "--jinja"]
    command += ["--host", host, "--port", str(port)]
    if not given.adapters:
        return command
    row = io.StringIO()
    csv.writer(row, lineterminator="").writerow([file for _, file in given.adapters])
    return [*command, "--lora", row.getvalue(), "--lora-init-without-apply"]


def llamacpp_choice(given: GgufHandover, chosen: int | None) -> list[dict[str, int]]:
    """The `lora` of a request that asks the stack with this id; the base, where it is None.

    Every id has its scale: llama.cpp applies all of them to a request without `lora`.
    """
    return [{"id": place, "scale": int(place == chosen)} for place in range(len(given.adapters))]


def _chosen(store: Store, names: Sequence[str], base: str | None) -> list[ResolvedStack]:
    wanted = None if base is None else resolve(store, base)
    stacks = [resolve(store, name) for name in names]
    if not names:
        found = [resolve(store, name) for name in store.names()]
        stacks = [s for s in found if wanted is None or s.config.base == wanted.config.base]
        stacks = stacks or ([wanted] if wanted is not None else [])
    if wanted is not None and any(s.config.base != wanted.config.base for s in stacks):
        raise UsageError(
            f"not all of these stand on {base}",
            faults=[f"{s.label} on {_base_name(store, s)}" for s in stacks],
        )
    return stacks


def _base_name(store: Store, stack: ResolvedStack) -> str:
    for name, base in store.bases().items():
        if base.digest == stack.base.digest:
            return name
    return stack.config.base


def _adapter(store: Store, stack: ResolvedStack, reporter: Reporter) -> Adapter:
    digest = stack.digest.removeprefix("sha256:")
    directory = store.cache_dir / "adapters" / digest
    if not directory.exists():
        export(store, stack.label, directory, "peft", reporter)
    config = json.loads((directory / codec.CONFIG_FILE).read_bytes())
    return Adapter(stack.label, directory, int(config["r"]))


def _gguf(
    store: Store, stack: ResolvedStack, target: str, reporter: Reporter, base: Path | None = None
) -> Path:
    """The folder of a GGUF export; made where there is none, or none proved that can be now."""
    directory = store.cache_dir / target / stack.digest.removeprefix("sha256:")
    if directory.exists():
        parity = json.loads((directory / CERTIFICATE).read_bytes())["parity"]
        if parity["ok"]:
            return directory
        if llama_cpp.version() is None:
            reporter.say(f"NOT PROVED: {parity['unproved']}")
            return directory
        shutil.rmtree(directory)
    export(store, stack.label, directory, target, reporter, base_gguf=base)
    return directory
