"""`lamina import peft` and `lamina export`: in from and out to other tools."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lamina.core.errors import LayerError, UsageError
from lamina.core.files import atomic_directory, atomic_write
from lamina.core.manifests import (
    JSON_TYPE,
    SAFETENSORS_TYPE,
    LayerConfig,
)
from lamina.core.report import Reporter
from lamina.core.version import __version__
from lamina.data.example import Message
from lamina.flows import credit, licensing, to_llama, to_python
from lamina.flows.card import card
from lamina.flows.credit import contributors
from lamina.flows.landing import gate_and_name, land
from lamina.flows.licensing import licences_of
from lamina.flows.naming import new_name
from lamina.flows.outbound import CERTIFICATE, FOLDER, Job, Made, Probe
from lamina.flows.questions import probe_prompts
from lamina.lowrank import codec
from lamina.lowrank.attach import check_layer
from lamina.share.card import FILE as CARD
from lamina.share.card_facts import Form
from lamina.stack.compile import compile_stack
from lamina.stack.resolve import ResolvedStack, resolve
from lamina.store.layout import Store

PROBE = (Message(role="user", content="Name three colours and one number."),)
"""Asked in the parity check beside the exams' own questions."""


def import_peft(
    store: Store,
    directory: Path,
    on: str,
    name_text: str,
    reporter: Reporter,
    *,
    licence: str | None,
    author: str | None,
    override: str | None,
) -> dict[str, Any]:
    """A PEFT adapter folder becomes a layer over the stack that `on` means.

    Raises LayerError listing every fault, GateError, UsageError.
    """
    name = new_name(store, name_text)
    config_bytes, weights = _adapter_files(directory)
    factors = codec.decode(config_bytes, str(weights), str(directory))
    beneath = resolve(store, on)
    compiled = compile_stack(store, beneath)
    check_layer(factors, compiled.linears, str(directory))
    widest = max(factors.values(), key=lambda part: part.rank)
    config = LayerConfig(
        name=name.name,
        base=beneath.config.base,
        parents=beneath.config.layers,
        rank=widest.rank,
        alpha=widest.scale * widest.rank,
        scaling="lora",
        modules=tuple(sorted(factors)),
        parameters=sum(f.parameters for f in factors.values()),
        recipe=None,
        data=None,
        licence=licence,
        author=author,
        origin="imported",
    )
    blobs = [
        store.put_bytes(config_bytes, JSON_TYPE, title=codec.CONFIG_FILE),
        store.put_file(weights, SAFETENSORS_TYPE, title=codec.WEIGHTS_FILE),
    ]
    layer, stack = land(store, config, blobs, label=name.name)
    named = gate_and_name(
        store, layer, stack, beneath, name, reporter, override=override, author=author
    )
    return {"name": str(named.name), "stack": stack.digest, "layer": layer.digest}


def _adapter_files(directory: Path) -> tuple[bytes, Path]:
    config, weights = directory / codec.CONFIG_FILE, directory / codec.WEIGHTS_FILE
    faults = [f"no {path.name}" for path in (config, weights) if not path.is_file()]
    if directory.is_dir():
        faults += [
            f"{path.name} is a pickle, which is never opened"
            for path in sorted(directory.iterdir())
            if codec.is_pickle(path.name) and not weights.is_file()
        ]
    if faults:
        raise LayerError(
            f"{directory} is no PEFT adapter folder",
            faults=faults,
            hint="save it with safe_serialization=True (peft's default since 0.5)",
        )
    return config.read_bytes(), weights


# -- export ----------------------------------------------------------------------------------------


def export(
    store: Store,
    text: str,
    directory: Path,
    to: str,
    reporter: Reporter,
    *,
    precision: str | None = None,
    accept_loss: bool = False,
    commercial: bool = False,
    despite: str | None = None,
    base_gguf: Path | None = None,
) -> dict[str, Any]:
    """Write a stack to `directory` for another tool, only if it comes back as the same model.

    The certificate that is returned lies in the folder too, and a model card. Where the tool is not
    installed that could read it back, it says that nothing was proved. `accept_loss` keeps an
    export that differs by more than the limit, if by a finite number. `base_gguf` is the base in
    float16, where it was exported before: an adapter for llama.cpp is proved over it.
    `commercial`: also stop where a licence bans commercial use; `despite` is the reason for going
    on where one forbids something. Raises CheckError, UsageError, MissingPartError.
    """
    target = _target(to)
    if directory.exists():
        raise UsageError(f"{directory} exists already", hint="give a folder that does not exist")
    stack = resolve(store, text)
    licences = licences_of(
        store,
        stack,
        "sell" if commercial else "combine",
        file=f"the export to {target}",
        merged=target in _MERGED,
    )
    why = licensing.check(licences, f"this export of {text}", reporter, despite=despite)
    reporter.event({"event": "examining", "text": f"exporting {text}, then loading it back"})
    with atomic_directory(directory) as work:
        job = Job(store, stack, work, _probes(store, stack), precision, base_gguf)
        made = _TARGETS[target](job)
        if made.proof is None:
            reporter.say(f"NOT PROVED: {made.unproved}")
        elif not accept_loss or not math.isfinite(made.proof.facts()["value"]):
            made.proof.check(f"the export of {text} to {target}")
        parity = made.proof.facts() if made.proof else {"ok": None, "unproved": made.unproved}
        certificate = {
            "stack": stack.digest,
            "to": target,
            "lamina": __version__,
            "parity": parity,
            **made.facts,
            "contributors": list(contributors(store, stack.layers)),
            "credits": [credit.to_json(store, layer) for layer in stack.layers],
            "licences": licences.to_json() | ({"despite": why} if why else {}),
        }
        atomic_write(work / CERTIFICATE, (json.dumps(certificate, indent=2) + "\n").encode())
        atomic_write(work / CARD, card(store, stack, target, certificate=certificate).encode())
    lines = [line.replace(FOLDER, str(directory)) for line in made.use]
    return {**certificate, "directory": str(directory), "use": lines}


def _target(text: str) -> Form:
    found = next((target for target in _TARGETS if target == text), None)
    if found is None:
        raise UsageError(f"--to {text!r}: known targets are {', '.join(sorted(_TARGETS))}")
    return found


def _probes(store: Store, stack: ResolvedStack) -> list[Probe]:
    return [(PROBE, ()), *probe_prompts(store, stack)]


_MERGED = ("hf", "gguf", "ollama")
"""Targets whose files hold the base's weights too."""
_TARGETS: dict[Form, Callable[[Job], Made]] = {
    "peft": to_python.peft,
    "hf": to_python.merged,
    "gguf": to_llama.gguf,
    "gguf-lora": to_llama.gguf_lora,
    "ollama": to_llama.ollama,
    "vllm": to_python.vllm,
    "mlx": to_python.mlx,
}
