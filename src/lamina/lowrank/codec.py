"""A layer's payload is a PEFT adapter: `adapter_config.json` + `adapter_model.safetensors`.

Layout (peft 0.15 and later): `base_model.model.<module>.lora_A.weight` (R, I) and
`.lora_B.weight` (O, R); scale = lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lamina.bases.header import HeaderError, check_bytes
from lamina.core.errors import LayerError
from lamina.core.fields import MAX_RANK
from lamina.core.recipe import Scaling
from lamina.core.strict import loads
from lamina.lowrank.maths import Factors, LayerFactors

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
MAX_CONFIG_BYTES = 4 << 20
MAX_WEIGHTS_BYTES = 64 << 30
MAX_ALPHA = 1e9
MAX_PATTERNS = 20_000_000
"""Most comparisons of rank_pattern and alpha_pattern with module names: some seconds."""
_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight"
)
_PLAIN_PATTERN = re.compile(r"\^?[\w\\.-]{1,300}\$?")
_BRIEF = 80
_PEFT_DEFAULT = 8
"""peft's r and lora_alpha where the config names none."""
_PLAIN = "export it as plain LoRA (rank-stabilised is fine) without extra modules"
_PICKLED = "pickled adapters (.bin, .pt) are never opened; convert them where you trust them"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")

_REFUSED: tuple[tuple[str, Any, str], ...] = (
    ("use_dora", False, "DoRA rescales weight columns, which is no low-rank sum"),
    ("bias", "none", "it trains biases"),
    ("lora_bias", False, "it adds a bias to B"),
    ("modules_to_save", None, "it carries full copies of modules (often embeddings or lm_head)"),
    ("trainable_token_indices", None, "it retrains embeddings of single tokens"),
    ("layer_replication", None, "it repeats decoder layers"),
    ("fan_in_fan_out", False, "its weights are stored transposed"),
    ("target_parameters", None, "it targets parameters that are no linears"),
    ("alora_invocation_tokens", None, "an activated LoRA applies only after certain tokens"),
)


def is_pickle(file_name: str) -> bool:
    """True for the file endings of pickled weights, which are never opened."""
    return file_name.endswith(_PICKLES)


def encode(
    layer: LayerFactors,
    *,
    rank: int,
    alpha: float,
    scaling: Scaling,
    target_modules: Sequence[str],
    base: str,
    revision: str | None = None,
) -> tuple[bytes, bytes]:
    """(adapter_config.json, adapter_model.safetensors) bytes; equal layers give equal bytes.

    A module whose rank is not `rank` goes into `rank_pattern`; one whose rank or scale is not what
    `rank`, `alpha` and `scaling` say, into `alpha_pattern`. Factors are stored in float32.
    `revision`: the base's commit on the Hub, which PEFT then loads it at.
    """
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": _plain_number(alpha),
        "use_rslora": scaling == "rslora",
        "target_modules": sorted(target_modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "modules_to_save": None,
    }
    ranks = {name: f.rank for name, f in sorted(layer.items()) if f.rank != rank}
    config |= {"revision": revision} if revision else {}
    # peft reads pattern keys as regular expressions matched at the end of the module name
    config["rank_pattern"] = {re.escape(name): value for name, value in ranks.items()}
    config["alpha_pattern"] = {}
    tensors: dict[str, Tensor] = {}
    for name in sorted(layer):
        factors = layer[name]
        expected = _scale(alpha, factors.rank, scaling == "rslora")
        if name in ranks or abs(factors.scale - expected) > 1e-9 * max(1.0, abs(expected)):
            wanted = factors.scale * (factors.rank if scaling == "lora" else factors.rank**0.5)
            config["alpha_pattern"][re.escape(name)] = wanted
        tensors[f"{PREFIX}{name}.lora_A.weight"] = factors.a_RI.float().contiguous().cpu()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = factors.b_OR.float().contiguous().cpu()
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    return text.encode(), safetensors.torch.save(tensors, metadata={"format": "pt"})


def _plain_number(value: float) -> float | int:
    """Whole numbers as people write them, up to where JSON's readers agree on them (RFC 8259)."""
    return int(value) if float(value).is_integer() and abs(value) < 2**53 else value


def decode(
    config_bytes: bytes, weights: bytes | str, what: str = "the adapter"
) -> dict[str, Factors]:
    """Read an adapter back: `weights` is the safetensors bytes, or a path to map.

    Raises LayerError with every fault: unreadable files, PEFT features that are no low-rank sum,
    unpaired or malformed tensors, numbers that are not finite, no module at all.
    """
    config = _read_config(config_bytes, what)
    tensors = _read_tensors(weights, what)
    faults = _config_faults(config)
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if not match:
            faults.append(f"{key}: not a lora_A or lora_B weight")
            continue
        faults += [f"{key}: {fault}" for fault in _tensor_faults(tensor)]
        sides = pairs.setdefault(match["module"], {})
        if match["side"] in sides:
            faults.append(f"{key}: another tensor says the same of {match['module']}")
        sides[match["side"]] = tensor
    if unclear := _pattern_faults(config, len(pairs)):  # nothing can be looked up in them
        faults += unclear
        raise LayerError(f"{what} cannot be used as a layer", faults=faults, hint=_PLAIN)
    result = {}
    for module, sides in sorted(pairs.items()):
        if set(sides) != {"A", "B"}:
            faults.append(f"{module}: only lora_{next(iter(sides))}")
        elif sides["A"].ndim == 2 == sides["B"].ndim:
            if sides["A"].shape[0] > MAX_RANK:
                faults.append(f"{module}: rank {sides['A'].shape[0]} is above {MAX_RANK}")
                continue
            if sides["A"].shape[0] != sides["B"].shape[1]:
                shapes = tuple(sides["A"].shape), tuple(sides["B"].shape)
                faults.append(f"{module}: A {shapes[0]} and B {shapes[1]} differ in rank")
            scale = _module_scale(config, module, sides["A"].shape[0], faults)
            result[module] = Factors(sides["A"].float(), sides["B"].float(), scale)
    if not pairs:
        faults.append("it touches no module")
    if faults:
        raise LayerError(f"{what} cannot be used as a layer", faults=faults, hint=_PLAIN)
    return result


def _read_config(data: bytes, what: str) -> dict[str, Any]:
    if len(data) > MAX_CONFIG_BYTES:
        raise LayerError(
            f"{what}: {CONFIG_FILE} has {len(data)} bytes; {MAX_CONFIG_BYTES} are read"
        )
    try:
        config = loads(data)
    except ValueError as error:
        raise LayerError(f"{what}: {CONFIG_FILE} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise LayerError(f"{what}: {CONFIG_FILE} is not a JSON object")
    return config


def _read_tensors(weights: bytes | str, what: str) -> dict[str, Tensor]:
    try:  # not by load_file: safetensors 0.8 keeps 56 bytes for ever of each tensor it opens so
        data = weights if isinstance(weights, bytes) else _bytes_of(Path(weights))
        check_bytes(data)
        loaded: dict[str, Tensor] = safetensors.torch.load(data)
    except HeaderError as error:
        raise LayerError(
            f"{what}: {WEIGHTS_FILE} is not a safetensors file: {error.message}",
            faults=error.faults,
            hint=_PICKLED,
        ) from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise LayerError(
            f"{what}: {WEIGHTS_FILE} is not a safetensors file: {error}",
            hint=_PICKLED,
        ) from None
    return loaded


def _bytes_of(path: Path) -> bytes:
    """A file's bytes. Raises OSError, ValueError when no layer could be so large."""
    size = path.stat().st_size
    if size > MAX_WEIGHTS_BYTES:
        raise ValueError(f"{size} bytes; at most {MAX_WEIGHTS_BYTES} are read")
    return path.read_bytes()


def _config_faults(config: Mapping[str, Any]) -> list[str]:
    faults = []
    if config.get("peft_type") != "LORA":
        given = _brief(config.get("peft_type"))
        faults.append(f"peft_type is {given}; only LORA is a low-rank sum")
    for key, neutral, why in _REFUSED:
        value = config.get(key, neutral)
        if value != neutral and value not in (None, [], {}, False):
            faults.append(f"{key} = {_brief(value)}: {why}")
    return faults


def _pattern_faults(config: Mapping[str, Any], modules: int) -> list[str]:
    """Why rank_pattern and alpha_pattern cannot be looked up in."""
    faults = []
    for key in ("rank_pattern", "alpha_pattern"):
        found = config.get(key)
        if found is not None and not isinstance(found, dict):
            faults.append(f"{key} is {_brief(found)}, not an object")
        elif found and len(found) * modules > MAX_PATTERNS:
            faults.append(f"{key} has {len(found):,} entries for {modules:,} modules")
    return faults


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _BRIEF else text[:_BRIEF] + "…"


def _tensor_faults(tensor: Tensor) -> list[str]:
    faults = []
    if tensor.ndim != 2:
        faults.append(f"{tensor.ndim} axes instead of 2")
    elif min(tensor.shape) == 0:
        faults.append(f"empty shape {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        faults.append(f"dtype {tensor.dtype} is no floating-point type")
    elif not torch.isfinite(tensor.float()).all():
        faults.append("numbers that are not finite")
    return faults


def _scale(alpha: float, rank: int, rslora: bool) -> float:
    return alpha / (rank**0.5 if rslora else rank)


def _module_scale(
    config: Mapping[str, Any], module: str, actual_rank: int, faults: list[str]
) -> float:
    """alpha / r of one module, after peft's rank_pattern and alpha_pattern."""
    try:
        rank = int(_pattern_value(config, "rank_pattern", module, "r"))
        alpha = float(_pattern_value(config, "alpha_pattern", module, "lora_alpha"))
        if not abs(alpha) <= MAX_ALPHA:
            raise ValueError(f"alpha {alpha}")
    except (TypeError, ValueError, OverflowError, re.error) as error:
        faults.append(f"{module}: rank or alpha is not a number: {error}")
        return 0.0
    if rank != actual_rank:
        faults.append(f"{module}: the config says rank {rank}, the tensors have {actual_rank}")
    return _scale(alpha, actual_rank, bool(config.get("use_rslora")))


def _pattern_value(config: Mapping[str, Any], pattern: str, module: str, default: str) -> Any:
    """peft's rule (`get_pattern_key`): the first key that matches `(.*\\.)?(key)$`."""
    for key, value in (config.get(pattern) or {}).items():
        if not _PLAIN_PATTERN.fullmatch(key):  # a hostile expression could run for hours
            raise ValueError(f"pattern {key!r} is more than a module name")
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return config.get(default, _PEFT_DEFAULT)
