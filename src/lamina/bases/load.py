"""A base's folder into memory: model and tokenizer. No network, no pickle, no code of the base."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from lamina.bases.header import read_entries
from lamina.bases.identity import CONFIG, TOKENIZER, read_json, weight_files
from lamina.bases.quantised import load_quantised, quantisation
from lamina.bases.quiet import quiet
from lamina.bases.sharded import load_sharded
from lamina.bases.streamed import load_streamed
from lamina.core import heap
from lamina.core.errors import BaseError
from lamina.core.machine import free

CUSTOM_CODE = "auto_map"
FULL = 0.8
"""Share of the memory at hand that weights may take; the rest is for what is done with them."""


@dataclass(frozen=True)
class LoadedBase:
    """A base in memory: the model in eval mode, every parameter frozen."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerFast
    config: dict[str, Any]
    """config.json as it was read."""
    directory: Path


@heap.told_where_short()
def load(
    directory: Path, *, dtype: torch.dtype, stream: bool = False, shards_on: str | None = None
) -> LoadedBase:
    """Load a pulled base with its weights in `dtype`, attention through torch's SDPA. Linears of a
    quantised base stay packed, and compute in `dtype`. With `stream`, the decoder's weights stay
    in the files; with `shards_on`, they are shared out over the workers that torch.distributed has
    joined, on that device.

    Raises BaseError when a file is missing or malformed, a tensor is missing or has another shape
    than the architecture says, the base asks for code of its own, or memory runs out;
    MissingPartError.
    """
    heap.bound_code()
    config = read_json(directory / CONFIG)
    refuse_custom_code(config, directory)
    weight_files(directory)  # raises where there are none
    kind = quantisation(config)
    if kind is not None and (stream or shards_on):
        raise BaseError(
            f"weights in {kind} are loaded whole", hint="leave out --stream, or use the plain base"
        )
    model: Any
    if kind is not None:
        model = load_quantised(directory, kind, dtype=dtype)
    elif shards_on is not None:
        model = load_sharded(directory, dtype=dtype, device=shards_on)
    elif stream:
        room = free()
        cached = room is None or 2 * _file_bytes(directory) < room
        model = load_streamed(directory, dtype=dtype, cached=cached)
    else:
        model = _load_plain(directory, dtype)
    # other libraries (peft, when it saves) ask the Hub about a model that has no path
    model.name_or_path = model.config.name_or_path = str(directory)
    return LoadedBase(model, load_tokenizer(directory), config, directory)


def _load_plain(directory: Path, dtype: torch.dtype) -> nn.Module:
    files = weight_files(directory)
    try:
        with quiet():
            empty = empty_model(directory)
            model, info = type(empty).from_pretrained(
                None,
                config=empty.config,
                state_dict=_tensors(files),
                dtype=dtype,
                attn_implementation="sdpa",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # transformers and safetensors raise kinds of many parents
        if heap.is_short(error):
            raise
        raise BaseError(
            f"the base in {directory} cannot be loaded: {type(error).__name__}: {error}",
            hint="pull the base again",
        ) from error
    faults = [f"{name}: missing" for name in sorted(info["missing_keys"])]
    faults += [f"{item}: of another shape" for item in sorted(map(str, info["mismatched_keys"]))]
    if faults:
        raise BaseError(
            f"the weights in {directory} do not fit the architecture in {CONFIG}",
            faults=faults,
            hint="pull the base again",
        )
    model.eval()
    frozen: nn.Module = model.requires_grad_(False)
    return frozen


def too_large(directory: Path, dtype: torch.dtype) -> bool:
    """Whether a base's weights in `dtype` would take nearly all of the memory at hand, or more."""
    return crowded(loaded_bytes(directory, dtype))


def crowded(size: int, beside: int = 1) -> bool:
    """Whether weights of `size` bytes would take nearly all of the memory at hand, or more, in each
    of `beside` processes."""
    room = free()
    return room is not None and FULL * (room // beside) < size


def loaded_bytes(directory: Path, dtype: torch.dtype) -> int:
    """What a base's weights take in `dtype`."""
    entries = [entry for path in weight_files(directory) for entry in read_entries(path)]
    return dtype.itemsize * sum(entry.elements for entry in entries)


def _file_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in weight_files(directory))


def empty_model(directory: Path) -> Any:
    """The model that a base's folder describes, with shapes but no weights (on the meta device)."""
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _tensors(files: Iterable[Path]) -> dict[str, Any]:
    """Every tensor by name, to be read when it is asked for.

    Read, not mapped: the pages of a mapped file stay in memory beside the copies that are made of
    its tensors (folded, joined, in another dtype) until the last of them has gone.
    """
    found: dict[str, Any] = {}
    for file in files:
        handle: Any = safe_open(file, framework="pt", backend="pread")
        found |= {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
    return found


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The tokenizer exactly as tokenizer.json describes it, with its chat template; no weights.

    Not through AutoTokenizer: that picks a class by model type, which may rebuild the tokenizer
    in its own way, while a base's identity is over tokenizer.json. Raises BaseError.
    """
    read_json(directory / TOKENIZER)
    try:
        with quiet():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # tokenizers raises bare Exception for a malformed file
        if heap.is_short(error):
            raise
        raise BaseError(
            f"the tokenizer in {directory} cannot be loaded: {type(error).__name__}: {error}",
            hint="pull the base again",
        ) from error
    return tokenizer


def refuse_custom_code(config: dict[str, Any], where: Path) -> None:
    """Raise BaseError when a configuration asks for Python code that ships with the model."""
    if CUSTOM_CODE in config:
        raise BaseError(
            f"{where} needs Python code of its own (auto_map), which is never run",
            hint="use a base whose architecture transformers has itself",
        )
