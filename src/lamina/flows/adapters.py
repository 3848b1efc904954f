"""`lamina export`: out to other tools."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lamina.core.errors import UsageError
from lamina.core.files import atomic_directory, atomic_write
from lamina.core.report import Reporter
from lamina.core.version import __version__
from lamina.flows import credit, licensing, to_diffusers, to_llama, to_python
from lamina.flows.card import card
from lamina.flows.credit import contributors
from lamina.flows.licensing import licences_of
from lamina.flows.modality import PROBE
from lamina.flows.outbound import CERTIFICATE, FOLDER, Job, Made, Probe
from lamina.flows.questions import probe_prompts
from lamina.share.card import FILE as CARD
from lamina.share.card_facts import Form
from lamina.stack.resolve import ResolvedStack, resolve
from lamina.store.layout import Store


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
    _check_fits(stack, target)
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


def _check_fits(stack: ResolvedStack, target: Form) -> None:
    """Raise UsageError where a stack that draws goes to a target for words, or the reverse."""
    images = stack.draws
    if images != (target in _OF_IMAGES):
        fitting = sorted(
            each
            for each in _TARGETS
            if (each in _OF_IMAGES) == images and not (each == _BASE_ALONE and stack.layers)
        )
        raise UsageError(
            f"{stack.label} {'draws' if images else 'talks'}: it cannot be exported to {target}",
            hint=f"targets for it: {', '.join(fitting)}",
        )
    if target == _BASE_ALONE and stack.layers:
        raise UsageError(f"{stack.label} has layers", hint="export them with --to diffusers")


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
    "diffusers": to_diffusers.diffusers,
    "diffusers-base": to_diffusers.pipeline,
    "kohya": to_diffusers.kohya,
}
_OF_IMAGES = ("diffusers", "diffusers-base", "kohya")
_BASE_ALONE = "diffusers-base"
