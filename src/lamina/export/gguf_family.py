"""What llama.cpp calls a model family, and how its weights differ from transformers' layout.

The conventions are those of llama.cpp's own converter (its `conversion/` folder).
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import torch
from gguf import GGUFWriter
from torch import Tensor

from lamina.core.errors import UsageError

_ROTATED = re.compile(r"\.(?P<which>[qk])_proj(\.(weight|bias))?$")


@dataclass(frozen=True)
class Family:
    """How one `model_type` becomes a GGUF architecture."""

    arch: Any
    """A member of gguf.MODEL_ARCH; its name prefixes the hyperparameters' keys."""
    interleaved: bool
    """Rotary embeddings turn neighbouring features, not halves: rows of q and k are permuted."""
    norm_shift: float
    """Added to every norm weight: gemma's norms multiply by 1 + w."""
    more: Callable[[GGUFWriter, Mapping[str, Any]], None]
    """Writes the hyperparameters that only this family has."""

    @property
    def name(self) -> str:
        """`general.architecture`."""
        return str(gguf.MODEL_ARCH_NAMES[self.arch])

    def names(self, blocks: int) -> Callable[[str], str | None]:
        """From a transformers tensor or module name to GGUF's, None where it has none."""
        table = gguf.get_tensor_name_map(self.arch, blocks)

        def named(key: str) -> str | None:
            found: str | None = table.get_name(key, try_suffixes=(".weight", ".bias"))
            return found

        return named

    def convert(self, key: str, tensor: Tensor, config: Mapping[str, Any]) -> Tensor:
        """A weight (or rows of B of an update) in llama.cpp's layout. Mutates nothing."""
        if self.norm_shift and key.endswith("norm.weight"):
            return tensor.float() + self.norm_shift
        heads = self._rotated_heads(key, config)
        return tensor if heads is None else interleave(tensor, heads)

    def restore_rows(self, key: str, rows: Tensor, config: Mapping[str, Any]) -> Tensor:
        """Rows of a linear's weight, or of B of an update, back from llama.cpp's layout."""
        heads = self._rotated_heads(key, config)
        return rows if heads is None else apart(rows, heads)

    def _rotated_heads(self, key: str, config: Mapping[str, Any]) -> int | None:
        """Heads of a weight whose rows are permuted, None where they stay."""
        rotated = _ROTATED.search(key)
        if not (self.interleaved and rotated):
            return None
        heads = config["num_attention_heads"]
        if rotated["which"] == "k":
            heads = config.get("num_key_value_heads") or heads
        return int(heads)


def interleave(rows: Tensor, heads: int) -> Tensor:
    """(heads, 2, d/2, …) -> (heads, d/2, 2, …) along the rows of q or k, one head at a time.

    transformers rotates feature i with i + d/2; llama.cpp's llama rotates 2i with 2i + 1.
    """
    shape = rows.shape
    halves = rows.reshape(heads, 2, shape[0] // heads // 2, *shape[1:])
    return halves.swapaxes(1, 2).reshape(shape)


def apart(rows: Tensor, heads: int) -> Tensor:
    """(heads, d/2, 2, …) -> (heads, 2, d/2, …) along the rows: what undoes `interleave`."""
    shape = rows.shape
    pairs = rows.reshape(heads, shape[0] // heads // 2, 2, *shape[1:])
    return pairs.swapaxes(1, 2).reshape(shape)


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a base by its config.json.

    Raises UsageError for a family, or a rotary embedding, that is not written as GGUF.
    """
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise UsageError(
            f"{kind} models are not written as GGUF: known are {', '.join(sorted(FAMILIES))}",
            hint="export it with --to hf, and convert that folder with llama.cpp's own converter",
        )
    for rope in _ropes(config).values():
        if rope.get("rope_type", "default") not in ("default", "linear", "llama3"):
            raise UsageError(
                f"rotary embeddings of type {rope['rope_type']!r} are not written as GGUF",
                hint="export it with --to hf, and convert that folder with llama.cpp's converter",
            )
    return FAMILIES[kind]


def add_parameters(writer: GGUFWriter, family: Family, config: Mapping[str, Any]) -> None:
    """Write every hyperparameter that llama.cpp reads for this family."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    rope = _ropes(config)["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    family.more(writer, config)


def rope_factors(config: Mapping[str, Any]) -> Tensor | None:
    """llama 3's divisors of the rotary frequencies, (head_dim / 2,), or None.

    Wavelengths below ctx / high stay, above ctx / low they are divided by `factor`, between them
    interpolated (transformers' `_compute_llama3_parameters`).
    """
    rope = _ropes(config)["full_attention"]
    if rope.get("rope_type") != "llama3":
        return None
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    context = rope["original_max_position_embeddings"]
    exponent = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    wavelength = 2 * math.pi * rope["rope_theta"] ** exponent
    smooth = ((context / wavelength - low) / (high - low)).clamp(0, 1)
    divisors: Tensor = 1 / ((1 - smooth) / factor + smooth)
    return divisors


def _ropes(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Rotary parameters by kind of attention; old configs have them at the top."""
    found = config.get("rope_parameters") or {}
    if "full_attention" in found:
        return dict(found)
    old = config.get("rope_scaling") or {}
    theta = config.get("rope_theta", 10000.0)
    return {"full_attention": {"rope_theta": theta, **old, **found}}


def _plain(writer: GGUFWriter, config: Mapping[str, Any]) -> None:
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        raise UsageError(
            "sliding-window attention of this family is not written as GGUF",
            hint="export it with --to hf",
        )


def _gemma3(writer: GGUFWriter, config: Mapping[str, Any]) -> None:
    """llama.cpp takes every sixth layer as global, and 10,000 as the local layers' theta."""
    faults = [key for key in ("attn_logit_softcapping", "final_logit_softcapping")
              if config.get(key) is not None]  # fmt: skip
    local = _ropes(config).get("sliding_attention", {}).get("rope_theta", 10000.0)
    kinds = config.get("layer_types") or []
    expected = ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(len(kinds))]
    if kinds != expected:
        faults.append("layer_types is not five local layers, then a global one")
    if local != 10000.0:
        faults.append(f"rope_theta of local layers is {local}")
    scalar, dim = config.get("query_pre_attn_scalar"), config.get("head_dim")
    if scalar != dim:
        faults.append(f"query_pre_attn_scalar {scalar} is not head_dim {dim}")
    if faults:
        raise UsageError("this gemma is not what llama.cpp's gemma3 computes", faults=faults)
    writer.add_sliding_window(config["sliding_window"])


FAMILIES: dict[str, Family] = {
    "llama": Family(gguf.MODEL_ARCH.LLAMA, interleaved=True, norm_shift=0.0, more=_plain),
    "mistral": Family(gguf.MODEL_ARCH.LLAMA, interleaved=True, norm_shift=0.0, more=_plain),
    "qwen2": Family(gguf.MODEL_ARCH.QWEN2, interleaved=False, norm_shift=0.0, more=_plain),
    "qwen3": Family(gguf.MODEL_ARCH.QWEN3, interleaved=False, norm_shift=0.0, more=_plain),
    "gemma3_text": Family(gguf.MODEL_ARCH.GEMMA3, interleaved=False, norm_shift=1.0, more=_gemma3),
}
