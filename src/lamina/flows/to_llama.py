"""Exports that llama.cpp reads, each loaded back by llama.cpp where it is installed."""

from pathlib import Path
from typing import Any, get_args

import torch

from lamina.bases.identity import CONFIG, read_json
from lamina.core.errors import UsageError
from lamina.core.files import atomic_write
from lamina.export import gguf as gguf_file
from lamina.export import gguf_lora as lora_file
from lamina.export import llama_cpp
from lamina.export import ollama as modelfile
from lamina.export.gguf_types import Precision
from lamina.export.likelihood import LIMITS, Likelihood, compare, places_of
from lamina.flows.outbound import Job, Made, refuse_packed, refuse_precision
from lamina.stack.compile import base_directory, base_format, compile_stack, layer_factors
from lamina.tokens.render import adapt

DEFAULT_PRECISION: Precision = "f16"
ADAPTER = "adapter.gguf"
_NO_OLLAMA = (
    "Ollama itself was not run: llama.cpp loaded the model, and the Modelfile's template was "
    "composed from its pieces and compared"
)
_LEAST_CONTEXT = 512
_UNPROVED = (
    "llama.cpp is not installed here, so nothing has loaded this export: "
    "pip install 'lamina[gguf]', then export again"
)


def gguf(job: Job) -> Made:
    """One merged model file. Raises UsageError, LayerError, BaseError, MissingPartError."""
    precision = precision_of(job)
    name = model_name(precision)
    write_model(job, job.directory / name, precision, merged=True)
    proof = prove(job, job.directory / name, precision)
    return Made(
        proof,
        None if proof else _UNPROVED,
        _facts(file=name, precision=precision, proof=proof),
        (f"llama-server -m @DIR@/{name} --jinja",),
    )


def ollama(job: Job) -> Made:
    """A merged model file and a Modelfile. Raises as `gguf`, UsageError for a template that is
    not put into Go."""
    precision = precision_of(job)
    name = model_name(precision)
    fmt = base_format(job.store, job.stack)
    shape = modelfile.shape_of(fmt)
    conversations = [adapt(*probe, fmt.abilities) for probe in job.probes]
    for messages, tools in conversations:
        if tools or shape.render(messages) != fmt.text(messages, ()):
            raise UsageError(
                "the Modelfile's template reads an exam's question otherwise than the stack does",
                hint="--to gguf carries the template as it is",
            )
    write_model(job, job.directory / name, precision, merged=True)
    config = read_json(base_directory(job.store, job.stack.base) / CONFIG)
    stops = tuple(fmt.decode([stop], special=True) for stop in fmt.stop_ids) + fmt.stop_strings
    text = modelfile.modelfile(shape, name, config["max_position_embeddings"], stops)
    atomic_write(job.directory / modelfile.FILE, text.encode())
    proof = prove(job, job.directory / name, precision)
    return Made(
        proof,
        None if proof else _UNPROVED,
        _facts(file=name, precision=precision, proof=proof, note=_NO_OLLAMA),
        (f"ollama create NAME -f @DIR@/{modelfile.FILE}",),
    )


def gguf_lora(job: Job) -> Made:
    """One LoRA file, proved over the base in float16. Raises as `gguf`."""
    refuse_precision(job)
    write_lora(job)
    proof = None
    if llama_cpp.version() is not None:
        base = job.base_gguf or job.directory / "base.gguf"
        if job.base_gguf is None:
            write_model(job, base, "f16", merged=False)
        proof = prove(job, base, "f16", adapter=job.directory / ADAPTER)
        if job.base_gguf is None:
            base.unlink()
    return Made(
        proof,
        None if proof else _UNPROVED,
        _facts(file=ADAPTER, base=job.stack.config.base, proof=proof),
        (
            f"lamina export {job.base_name} BASE_DIR --to gguf",
            f"llama-server -m BASE_DIR/model-f16.gguf --lora @DIR@/{ADAPTER} --jinja",
        ),
    )


def model_name(precision: Precision) -> str:
    """The model file's name in an export's folder."""
    return f"model-{precision}.gguf"


def precision_of(job: Job) -> Precision:
    """The precision that the user named, or the default. Raises UsageError for another."""
    for known in get_args(Precision):
        if job.precision in (known, None):
            return known if job.precision else DEFAULT_PRECISION
    raise UsageError(f"--precision {job.precision!r}: known are {', '.join(get_args(Precision))}")


def write_model(job: Job, file: Path, precision: Precision, *, merged: bool) -> None:
    """Write the stack merged, or its base alone, as a GGUF model file."""
    refuse_packed(job.stack)
    layers = [layer_factors(job.store, layer) for layer in job.stack.layers] if merged else []
    gguf_file.write(
        base_directory(job.store, job.stack.base),
        layers,
        file,
        precision,
        base_format(job.store, job.stack),
        job.stack.label if merged else job.base_name,
    )


def write_lora(job: Job) -> None:
    """Write the stack's layers as one GGUF LoRA."""
    refuse_packed(job.stack)
    lora_file.write(
        base_directory(job.store, job.stack.base),
        [layer_factors(job.store, layer) for layer in job.stack.layers],
        job.directory / ADAPTER,
        job.stack.label,
    )


def prove(
    job: Job, file: Path, precision: Precision, *, adapter: Path | None = None
) -> Likelihood | None:
    """Load a file into llama.cpp and compare it with the stack; None without llama.cpp."""
    if llama_cpp.version() is None:
        return None
    ours = compile_stack(job.store, job.stack, dtype=torch.float32)
    prompts = [ours.format.prompt_ids(*probe) for probe in job.probes]
    places = places_of(ours.model, prompts)
    abilities = ours.format.abilities
    del ours
    context = max(_LEAST_CONTEXT, max(map(len, prompts)) + 8)
    with llama_cpp.loaded(file, context=context, adapter=adapter) as engine:
        other = tuple(
            messages[-1].content[:60]
            for (messages, tools), prompt in zip(job.probes, prompts, strict=True)
            if engine.prompt_ids(*adapt(messages, tools, abilities)) != prompt
        )
        theirs = [engine.next_token(ids) for ids, _ in places]
    worst, mean = compare([likely for _, likely in places], theirs)
    return Likelihood(worst, mean, LIMITS[precision], len(prompts), len(places), other)


def _facts(*, proof: Likelihood | None, **facts: Any) -> dict[str, Any]:
    return facts | ({"proved_by": f"xllamacpp {llama_cpp.version()}"} if proof else {})
