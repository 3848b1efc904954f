"""A merged or fully tuned model of the base's architecture: a folder, a safetensors file, a GGUF.

Every tensor is whole; `place` takes the difference to the stack where it is a linear's.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamina.bases.folder import readme_licence
from lamina.bases.identity import CONFIG, TEMPLATE, TOKENIZER, architecture_digest
from lamina.bases.shards import INDEX
from lamina.core.errors import LayerError
from lamina.imports.adapter import Adapter, Stored, shown
from lamina.imports.base import Beneath
from lamina.imports.files import base_named, json_of, tensors_of
from lamina.imports.names import unwrapped

_NO_MEANING = frozenset(
    {
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "auto_map",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "initializer_range",
        "pad_token_id",
        "pretraining_tp",
        "quantization_config",
        "torch_dtype",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
    }
)
"""Keys of a config.json that change no product of the model."""
_MOVED = frozenset({"rope_theta", "rope_scaling", "rope_parameters"})
"""Keys that versions of transformers write in different places."""
_IN_GGUF = frozenset(
    {
        "head_dim",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "rms_norm_eps",
    }
)
"""Keys that a configuration made from a GGUF file has from the file; others may be defaults."""
_IGNORED = ("rotary_emb.inv_freq", ".masked_bias", ".attn.bias")


def read(path: Path, base: Beneath, *, of_gguf: bool = False) -> Adapter:
    """Read a model's folder or its one safetensors file. `of_gguf`: a folder made from a GGUF.

    Raises LayerError with every fault.
    """
    files = weight_files(path) if path.is_dir() else (path,)
    rest: dict[str, Stored] = {}
    faults, notes = [], []
    for file in files:
        for key, tensor in tensors_of(file).items():
            name = unwrapped(key)
            if name.endswith(_IGNORED):
                continue
            if name in rest:
                faults.append(f"{shown(key)}: is there twice")
            rest[name] = tensor
    linears = {base.linear_of(name) for name in rest}
    absent = [module for module in base.shapes if module not in linears]
    faults += [f"{module}.weight: is not there" for module in absent]
    made_on = None
    if path.is_dir() and (path / CONFIG).is_file():
        config = json_of(path / CONFIG)
        faults += _config_faults(config, base.config, of_gguf=of_gguf)
        made_on = base_named(config, "_name_or_path")
        notes += [] if of_gguf else _other_files(path, base.directory)
    if faults:
        raise LayerError(
            f"{shown(path.name)} is no whole model of the base's architecture", faults=faults
        )
    return Adapter(
        kind="checkpoint",
        files=files,
        pairs={},
        rest=rest,
        made_on=made_on,
        licence=readme_licence(path) if path.is_dir() else None,
        notes=tuple(notes),
    )


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a model's folder, by its index where it has one.

    Raises LayerError for files that are not there, and for an index that leaves the folder.
    """
    if (folder / INDEX).is_file():
        listed = json_of(folder / INDEX).get("weight_map")
        names = sorted(set(map(str, listed.values()))) if isinstance(listed, dict) else []
        bad = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
        if bad or not names:
            raise LayerError(
                f"{INDEX} names weight files that are not there", faults=map(shown, bad)
            )
        return tuple(folder / name for name in names)
    found = sorted(folder.glob("model*.safetensors"))
    if not found:
        raise LayerError(f"{folder} has no model*.safetensors")
    return tuple(found)


def _config_faults(
    config: Mapping[str, Any], own: Mapping[str, Any], *, of_gguf: bool
) -> list[str]:
    """What of the architecture differs, so that a difference of weights would mean nothing."""
    if "quantization_config" in config:
        return ["its weights are packed: dequantise them with the tool that packed them"]
    if architecture_digest(config) == architecture_digest(own):
        return []
    inner = config.get("text_config")
    flat = {**config, **inner} if isinstance(inner, dict) else config
    if inner is None and flat.get("model_type") != own.get("model_type"):
        return [f"model_type is {flat.get('model_type')!r}, the base's {own.get('model_type')!r}"]
    compared = set(flat) & set(own) - _NO_MEANING - {"model_type"}
    faults = []
    for key in sorted(compared & _IN_GGUF if of_gguf else compared):
        mine, theirs = own[key], flat[key]
        if key in _MOVED and (mine is None or theirs is None or type(mine) is not type(theirs)):
            continue
        if not (mine is None or theirs is None or _equal(mine, theirs)):
            faults.append(f"{key} is {theirs!r}, the base's {mine!r}")
    return faults


def _equal(mine: Any, theirs: Any) -> bool:
    """Equal values; GGUF holds numbers in float32."""
    if isinstance(mine, float) and isinstance(theirs, int | float):
        return math.isclose(mine, theirs, rel_tol=1e-6)
    return bool(mine == theirs)


def _other_files(folder: Path, own: Path) -> list[str]:
    """Said aloud: a tokenizer or template that is not the base's does not come along."""
    notes = []
    for name, what in ((TOKENIZER, "tokenizer"), (TEMPLATE, "chat template")):
        theirs, mine = folder / name, own / name
        if theirs.is_file() and mine.is_file() and theirs.read_bytes() != mine.read_bytes():
            notes.append(f"its {name} differs from the base's: the base's {what} is used")
    return notes
