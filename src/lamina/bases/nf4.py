"""NF4 (QLoRA, arXiv:2305.14314): four bits a weight in blocks of 64, scales quantised once more.

Through bitsandbytes, in the layout that transformers, PEFT and vLLM read. Only its quantising and
dequantising are used: its own product on a CPU has no backward (`gemv_4bit`), and rounds float32
to bfloat16.
"""

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lamina.core.errors import MissingPartError

BLOCK = 64
BITS = 4
SETTINGS: dict[str, Any] = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
    "llm_int8_skip_modules": ["lm_head"],
}
"""`quantization_config`, as transformers writes it."""
WEIGHT = "weight"
STATE = "weight.quant_state.bitsandbytes__nf4"
SUFFIXES = (
    WEIGHT,
    "weight.absmax",
    "weight.nested_absmax",
    "weight.nested_quant_map",
    "weight.quant_map",
    STATE,
)
"""What a linear's tensors are called, after its name."""


def pack(weight_OI: Tensor) -> dict[str, Tensor]:
    """A linear's weight in four bits, by SUFFIXES. Mutates nothing. Raises MissingPartError."""
    packed, state = _functional().quantize_4bit(
        weight_OI.contiguous(), blocksize=BLOCK, quant_type="nf4", compress_statistics=True
    )
    parts: dict[str, Tensor] = state.as_dict(packed=True)
    return {WEIGHT: packed} | {f"{WEIGHT}.{name}": tensor for name, tensor in parts.items()}


def unpacker(
    tensors: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype
) -> Callable[[Tensor | None], Tensor]:
    """What turns a linear's tensors (by SUFFIXES) into its weight (O, I) in `dtype`.

    It writes into the tensor that it is given, or into a new one. Raises MissingPartError, and
    ValueError where the tensors are not those of this shape.
    """
    functional = _functional()
    parts = {name.removeprefix(f"{WEIGHT}."): t for name, t in tensors.items() if name != WEIGHT}
    packed = tensors[WEIGHT]
    state = functional.QuantState.from_dict(parts, device=packed.device)
    if state.quant_type != "nf4" or tuple(state.shape) != shape:
        raise ValueError(f"a {state.quant_type} weight of {tuple(state.shape)}, not nf4 of {shape}")
    state.dtype = dtype  # of the product, whatever was packed: bitsandbytes' own product does so

    def unpack(out: Tensor | None) -> Tensor:
        weight_OI: Tensor = functional.dequantize_4bit(packed, state)
        return weight_OI if out is None else out.copy_(weight_OI)  # it has no `out` on a CPU

    return unpack


def _functional() -> ModuleType:
    try:
        with quietly_alone():
            import bitsandbytes.functional
    except ImportError as error:
        raise MissingPartError(
            f"a base in nf4 needs bitsandbytes: {error}", hint="pip install 'lamina[quantised]'"
        ) from None
    found: ModuleType = bitsandbytes.functional
    return found


@contextlib.contextmanager
def quietly_alone() -> Iterator[None]:
    """Import bitsandbytes without its asking the Hub for code.

    With the package `kernels` at hand it downloads a native library while it is imported, on
    processors with bfloat16 products; for the block, that package is not there.
    """
    if "bitsandbytes" in sys.modules:
        yield
        return
    missing = object()
    kernels = sys.modules.get("kernels", missing)
    log = logging.getLogger("bitsandbytes")
    level = log.level
    sys.modules["kernels"] = None  # type: ignore[assignment]  # an import of it then fails
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
        del sys.modules["kernels"]
        if kernels is not missing:
            sys.modules["kernels"] = kernels  # type: ignore[assignment]
