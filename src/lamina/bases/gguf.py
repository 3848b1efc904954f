"""A GGUF file into a model folder: dequantised by transformers, rounded once to bfloat16.

Every GGUF becomes bfloat16, whatever its own types: one rule, one identity for one file.
"""

import re
import struct
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from lamina.bases.header import MAX_TENSORS
from lamina.bases.identity import CONFIG, SPECIAL_TOKENS, TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from lamina.bases.normal import normal_config, normal_tokenizer_config, write_json
from lamina.bases.quiet import quiet
from lamina.bases.shards import write_shards
from lamina.core.errors import BaseError

STORED_DTYPE = torch.bfloat16
_MAGIC = b"GGUF"
_HEAD = struct.Struct("<4sIQQ")
"""Magic, version, number of tensors, number of keys."""
_VERSIONS = (2, 3)
MAX_KEYS = 100_000
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


def write_gguf(file: Path, out: Path) -> None:
    """Convert `file` into config, weights, tokenizer and template in `out`.

    Tied embeddings stay tied: no copy of them is written for the head. Holds the dequantised model
    in memory. Raises BaseError for a truncated, split or otherwise unreadable file, and for an
    architecture that transformers does not read from GGUF.
    """
    _check_file(file)
    try:
        with quiet(swallow_stderr=True):
            tokenizer = AutoTokenizer.from_pretrained(
                file.parent, gguf_file=file.name, local_files_only=True
            )
            model = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=STORED_DTYPE,
                local_files_only=True,
            )
    except Exception as error:  # gguf reads with numpy views: any kind, when a file is cut short
        raise BaseError(
            f"{file.name} cannot be read as GGUF: {type(error).__name__}: {error}",
            hint="it is cut short, damaged, or of an architecture that transformers does not read; "
            "fetch it again or take the safetensors form of the model",
        ) from error
    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    state = {name: t for name, t in model.state_dict().items() if name not in tied}
    sizes = {name: t.numel() * t.element_size() for name, t in state.items()}
    write_shards(sizes, state.__getitem__, out)
    config = model.config.to_diff_dict()
    config["architectures"] = [type(model).__name__]
    write_json(out / CONFIG, normal_config(config, "BF16"))
    _write_tokenizer(tokenizer, config, out)


def _write_tokenizer(tokenizer: Any, config: dict[str, Any], out: Path) -> None:
    tokenizer.backend_tokenizer.save(str(out / TOKENIZER))
    raw = {key: getattr(tokenizer, key) for key in SPECIAL_TOKENS}
    raw |= {
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.get("max_position_embeddings"),
    }
    write_json(out / TOKENIZER_CONFIG, normal_tokenizer_config(raw, {}))
    if tokenizer.chat_template:
        (out / TEMPLATE).write_text(tokenizer.chat_template, encoding="utf-8")


def _check_file(file: Path) -> None:
    with file.open("rb") as handle:
        head = handle.read(_HEAD.size)
    if not head.startswith(_MAGIC):
        raise BaseError(f"{file} is not a GGUF file", hint="give a file that llama.cpp can read")
    hint = "it is cut short or damaged; fetch it again"
    if len(head) < _HEAD.size:
        raise BaseError(f"{file.name} is cut short", hint=hint)
    _, version, tensors, keys = _HEAD.unpack(head)
    if version not in _VERSIONS or tensors > MAX_TENSORS or keys > MAX_KEYS:
        raise BaseError(
            f"{file.name} cannot be used: GGUF version {version}, {tensors} tensors, {keys} keys",
            hint=hint,
        )
    if _SPLIT.search(file.name):
        raise BaseError(
            f"{file.name} is one part of a split GGUF",
            hint="join the parts first: llama-gguf-split --merge FIRST_PART OUT.gguf",
        )
