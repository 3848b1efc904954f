"""A base's identity: digests over tensors, architecture, tokenizer and template. No torch."""

import hashlib
import json
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lamina.bases.header import FLOATS, TensorEntry, read_entries
from lamina.core.digest import Digest, digest_bytes, digest_json
from lamina.core.errors import BaseError
from lamina.core.manifests import BaseConfig

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
DTYPE_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}

# Names, versions, paths, and what says how to compute rather than what.
_NOT_ARCHITECTURE = frozenset(
    {
        "_name_or_path",
        "_model_name_or_path",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "architectures",
        "attn_implementation",
        "dtype",
        "pretraining_tp",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
    "cls_token",
    "sep_token",
    "mask_token",
)
TOKENIZER_SWITCHES = (
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "clean_up_tokenization_spaces",
)
"""What of tokenizer_config.json changes ids or text, besides SPECIAL_TOKENS."""
_RUN_TIME = ("truncation", "padding")


def tensor_digest(files: Sequence[Path]) -> Digest:
    """Digest over the sorted (name, dtype, shape, sha256 of the bytes) of every tensor.

    Independent of how tensors are split over files and of the order in a file.
    Raises BaseError when a file is malformed or a name is in two files.
    """
    lines: dict[str, tuple[str, str, list[int], str]] = {}
    for path in files:
        entries = read_entries(path)
        twice = sorted(entry.name for entry in entries if entry.name in lines)
        if twice:
            raise BaseError(f"{path.name} repeats tensors of another file", faults=twice)
        with (
            path.open("rb") as handle,
            mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            view = memoryview(data)
            for entry in entries:
                sha256 = hashlib.sha256(view[entry.start : entry.end]).hexdigest()
                lines[entry.name] = (entry.name, entry.dtype, list(entry.shape), sha256)
            view.release()
    return digest_json([lines[name] for name in sorted(lines)])


def architecture_digest(config: Mapping[str, Any]) -> Digest:
    """Digest over a model configuration without names, versions, paths and run-time switches."""
    kept = {key: value for key, value in config.items() if key not in _NOT_ARCHITECTURE}
    return digest_json(kept)


def tokenizer_digest(directory: Path) -> Digest:
    """Digest over tokenizer.json and what of tokenizer_config.json changes ids or text.

    Left out: truncation and padding (run-time state); merges count the same as "a b" and
    as ["a", "b"]. Raises BaseError.
    """
    tokenizer = read_json(directory / TOKENIZER)
    kept = {key: value for key, value in tokenizer.items() if key not in _RUN_TIME}
    model = kept.get("model")
    if isinstance(model, dict) and isinstance(model.get("merges"), list):
        merges = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
        kept["model"] = model | {"merges": merges}
    config = read_json(directory / TOKENIZER_CONFIG)
    special = {key: token_text(config.get(key)) for key in SPECIAL_TOKENS}
    switches = {key: config.get(key) for key in TOKENIZER_SWITCHES}
    return digest_json({"tokenizer": kept, "special": special, "switches": switches})


def template_digest(template: str) -> Digest:
    """Digest over a chat template's text."""
    return digest_bytes(template.encode("utf-8"))


def token_text(token: Any) -> str | None:
    """A special token's text: tokenizer_config.json writes it as a string or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The safetensors files of a base's folder, sorted. Raises BaseError when there is none."""
    files = tuple(sorted(directory.glob("model*.safetensors")))
    if not files:
        raise BaseError(f"{directory} has no model*.safetensors", hint="pull the base again")
    return files


def describe(
    directory: Path, *, template_origin: Literal["own", "chatml"], licence: str | None
) -> BaseConfig:
    """What the base in a pulled folder is. Reads every byte of the weights. Raises BaseError."""
    config = read_json(directory / CONFIG)
    files = weight_files(directory)
    entries = [entry for path in files for entry in read_entries(path)]
    return BaseConfig(
        tensors=tensor_digest(files),
        architecture=architecture_digest(config),
        tokenizer=tokenizer_digest(directory),
        template=template_digest((directory / TEMPLATE).read_text(encoding="utf-8")),
        family=str(config["model_type"]),
        parameters=sum(entry.elements for entry in entries if entry.dtype in FLOATS),
        dtype=DTYPE_NAMES[main_dtype(entries)],
        vocab_size=int(config["vocab_size"]),
        template_origin=template_origin,
        licence=licence,
    )


def main_dtype(entries: Sequence[TensorEntry]) -> str:
    """The safetensors dtype of most floating-point elements. Raises BaseError without any."""
    elements: dict[str, int] = {}
    for entry in entries:
        if entry.dtype in FLOATS:
            elements[entry.dtype] = elements.get(entry.dtype, 0) + entry.elements
    if not elements:
        raise BaseError("the weights hold no floating-point tensor", hint="pull another base")
    return max(sorted(elements), key=elements.__getitem__)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises BaseError saying which file is missing or malformed."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BaseError(
            f"{path.parent} has no {path.name}", hint="give a complete model directory"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BaseError(
            f"{path} is not JSON: {error}", hint="the file is damaged; fetch it again"
        ) from error
    if not isinstance(value, dict):
        raise BaseError(f"{path} is not a JSON object", hint="fetch it again")
    return value
