"""Exports that transformers, PEFT, vLLM and mlx-lm read, loaded back and compared by logits."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from lamina.bases import families
from lamina.bases.identity import CONFIG, read_json
from lamina.bases.load import load
from lamina.bases.nf4 import quietly_alone
from lamina.core.errors import MissingPartError
from lamina.core.manifests import SOURCE
from lamina.export import merged as merged_folder
from lamina.export import mlx as mlx_folder
from lamina.export import peft as peft_folder
from lamina.export import vllm as vllm_folder
from lamina.export.parity import Parity, compare, logits_of
from lamina.export.readers import as_others_read
from lamina.flows.outbound import Job, Made, refuse_packed, refuse_precision
from lamina.lowrank.maths import Factors
from lamina.share.card_facts import hub_commit, hub_name
from lamina.share.parcel import public_source
from lamina.stack.compile import Compiled, base_directory, compile_stack, layer_factors

_NO_VLLM = "vLLM itself was not run: PEFT loaded the adapter"
_NO_MLX = "mlx-lm itself was not run: the files were read back by its rules, with numpy"


def peft(job: Job) -> Made:
    """One adapter folder. Raises UsageError, MissingPartError, LayerError, BaseError."""
    refuse_precision(job)
    layers, ours, base = _sides(job)
    peft_folder.write(layers, ours.linears, job.directory, *_reference(job))
    return Made(_parity(job, ours, lambda: load_peft(base, job.directory)))


def vllm(job: Job) -> Made:
    """The adapter folder with one rank throughout, and vLLM's launch line. Raises as `peft`."""
    refuse_precision(job)
    layers, ours, base = _sides(job)
    most = vllm_folder.write(layers, ours.linears, job.directory, *_reference(job))
    hub = hub_name(_source(job))
    line = vllm_folder.launch("@DIR@", job.stack.label, hub or "BASE_DIR", most)
    first = () if hub else (f"lamina export {job.base_name} BASE_DIR --to hf",)
    return Made(
        _parity(job, ours, lambda: load_peft(base, job.directory)),
        facts={"max_lora_rank": most, "note": _NO_VLLM},
        use=(*first, line),
    )


def mlx(job: Job) -> Made:
    """mlx-lm's adapter folder. Raises as `peft`."""
    refuse_precision(job)
    refuse_packed(job.stack)
    layers, ours, base = _sides(job)
    config = read_json(base_directory(job.store, job.stack.base) / CONFIG)
    mlx_folder.write(layers, job.directory, config["num_hidden_layers"])

    def theirs() -> nn.Module:
        mlx_folder.apply(job.directory, families.linears(base))
        return base

    return Made(
        _parity(job, ours, theirs),
        facts={"note": _NO_MLX},
        use=(
            f"lamina export {job.base_name} BASE_DIR --to hf",
            "mlx_lm.generate --model BASE_DIR --adapter-path @DIR@ --prompt 'Hello'",
        ),
    )


def _sides(job: Job) -> tuple[list[dict[str, Factors]], Compiled, nn.Module]:
    """The layers, the stack as we run it, and its base as others do; all in float32."""
    folder, kind = base_directory(job.store, job.stack.base), job.stack.base_config.quantised
    layers = [layer_factors(job.store, layer) for layer in job.stack.layers]
    base = as_others_read(folder, kind) if kind else load(folder, dtype=torch.float32).model
    return layers, compile_stack(job.store, job.stack, dtype=torch.float32), base


def _reference(job: Job) -> tuple[str, str | None]:
    """What PEFT loads the base by, and at which commit; else where it came from."""
    source = _source(job)
    return hub_name(source) or source, hub_commit(source)


def _source(job: Job) -> str:
    """Where anybody gets the base, else its identity."""
    return public_source((job.stack.base.annotations or {}).get(SOURCE)) or job.stack.config.base


def load_peft(model: nn.Module, directory: Path) -> nn.Module:
    """A model with an adapter on it, by PEFT itself. Raises MissingPartError."""
    try:
        with quietly_alone():  # peft imports bitsandbytes where it is installed
            from peft import PeftModel
    except ImportError:
        raise MissingPartError(
            "the export is checked with peft, which is not installed",
            hint="pip install 'lamina[peft]'",
        ) from None
    wrapped: nn.Module = PeftModel.from_pretrained(model, str(directory)).eval()
    return wrapped


def merged(job: Job) -> Made:
    """The base's folder with the layers merged in. Raises UsageError, LayerError, BaseError."""
    refuse_precision(job)
    store, stack = job.store, job.stack
    if stack.layers:
        refuse_packed(stack)
    layers = [layer_factors(store, layer) for layer in stack.layers]
    merged_folder.write(base_directory(store, stack.base), layers, job.directory)
    ours = compile_stack(store, stack, dtype=torch.bfloat16)
    return Made(_parity(job, ours, lambda: load(job.directory, dtype=torch.bfloat16).model))


def _parity(job: Job, ours: Compiled, theirs: Callable[[], nn.Module]) -> Parity:
    prompts = [ours.format.prompt_ids(*probe) for probe in job.probes]
    expected = logits_of(ours.model, prompts)
    return compare(expected, logits_of(theirs(), prompts), ours.dtype)
