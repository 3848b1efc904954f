"""A stack as one GGUF file for llama.cpp: layers merged in float32, then rounded once."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from safetensors import safe_open
from torch import Tensor

from lamina.bases.header import read_entries
from lamina.bases.identity import CONFIG, read_json, weight_files
from lamina.core.errors import BaseError, LayerError
from lamina.export.gguf_family import add_parameters, family_of, rope_factors
from lamina.export.gguf_types import FILE_TYPES, Precision, pack, packed_bytes, type_of
from lamina.export.gguf_vocab import add_vocabulary
from lamina.lowrank.maths import LayerFactors, compose, fold
from lamina.tokens.template import ChatFormat

_HEAD = "lm_head.weight"
_ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class _Planned:
    """One tensor to write."""

    name: str
    shape: tuple[int, ...]
    kind: Any
    read: Callable[[], Tensor]
    """In llama.cpp's layout; float32 where it was touched, else the base's dtype."""


def write(
    base: Path,
    layers: Sequence[LayerFactors],
    file: Path,
    precision: Precision,
    fmt: ChatFormat,
    name: str,
) -> None:
    """Write `file`: weights, hyperparameters, vocabulary and chat template.

    One tensor at a time is in memory. Raises UsageError for a family, tokenizer or precision that
    cannot be written, LayerError when a layer touches a weight that the base lacks, BaseError,
    MissingPartError.
    """
    config = read_json(base / CONFIG)
    family = family_of(config)
    plan = list(_plan(base, config, compose(layers) if layers else {}, precision))
    with contextlib.closing(GGUFWriter(file, family.name)) as writer:
        writer.add_type("model")
        writer.add_name(name)
        writer.add_file_type(FILE_TYPES[precision])
        writer.add_quantization_version(2)
        add_parameters(writer, family, config)
        add_vocabulary(writer, base, config["vocab_size"], fmt)
        for each in plan:
            stored = packed_bytes(each.shape, each.kind)
            writer.add_tensor_info(
                each.name, stored, np.dtype(np.uint8), math.prod(stored), raw_dtype=each.kind
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for each in plan:
            writer.write_tensor_data(pack(each.read(), each.kind))


def _plan(
    base: Path, config: dict[str, Any], updates: LayerFactors, precision: Precision
) -> Iterator[_Planned]:
    family, blocks = family_of(config), config["num_hidden_layers"]
    named, left, unknown = family.names(blocks), set(updates), []
    for path in weight_files(base):
        for entry in read_entries(path):
            if entry.name == _HEAD and config.get("tie_word_embeddings"):
                continue
            name = named(entry.name)
            if name is None:
                unknown.append(entry.name)
                continue
            left.discard(entry.name.removesuffix(".weight"))
            yield _Planned(
                name,
                entry.shape,
                type_of(precision, name, entry.shape, blocks),
                _reader(path, entry.name, config, updates),
            )
    if unknown:
        raise BaseError("llama.cpp has no name for weights of the base", faults=unknown)
    if left:
        raise LayerError("the base's files lack weights", faults=sorted(left))
    factors = rope_factors(config)
    if factors is not None:
        shape = tuple(factors.shape)
        kind = type_of(precision, _ROPE_FACTORS, shape, blocks)
        yield _Planned(_ROPE_FACTORS, shape, kind, lambda: factors)


def _reader(
    path: Path, key: str, config: dict[str, Any], updates: LayerFactors
) -> Callable[[], Tensor]:
    """Read one weight, fold its updates in (float32, not rounded to the base's dtype), convert."""
    family = family_of(config)

    def read() -> Tensor:
        with safe_open(path, framework="pt") as shard:
            tensor: Tensor = shard.get_tensor(key)
        factors = updates.get(key.removesuffix(".weight"))
        if factors is not None:
            tensor = fold(tensor.float(), [factors])
        return family.convert(key, tensor, config)

    return read
