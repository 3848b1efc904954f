"""The number formats of a GGUF file: which tensor gets which, and how it is packed.

q8_0 is packed by the gguf library. q4_k is the mixture that llama.cpp calls Q4_K_M, packed by
llama.cpp's own `ggml_quantize_chunk`, which the xllamacpp wheel carries in its shared library.
"""

import ctypes
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType as FileType
from torch import Tensor

from lamina.core.errors import LayerError, MissingPartError

Precision = Literal["f32", "f16", "q8_0", "q4_k"]

FILE_TYPES: dict[Precision, Any] = {
    "f32": FileType.ALL_F32,
    "f16": FileType.MOSTLY_F16,
    "q8_0": FileType.MOSTLY_Q8_0,
    "q4_k": FileType.MOSTLY_Q4_K_M,
}
_ROWS = 8192
"""Rows packed at a time, so that float32 copies stay small beside a large embedding."""
_BLOCK = re.compile(r"blk\.(\d+)\.")
_SMALLER: dict[Any, Any] = {Type.Q4_K: Type.Q5_0, Type.Q6_K: Type.Q8_0, Type.Q5_0: Type.F16,
                            Type.Q8_0: Type.F16}  # fmt: skip
"""What llama.cpp takes where rows are no multiple of a type's block."""


def type_of(precision: Precision, name: str, shape: Sequence[int], blocks: int) -> Any:
    """The type of one tensor: vectors in float32, matrices by the precision's own rule."""
    if len(shape) < 2 or precision == "f32":
        return Type.F32
    if precision == "q4_k":
        wanted = _mixture(name, blocks)
    else:
        wanted = {"f16": Type.F16, "q8_0": Type.Q8_0}[precision]
    while shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0]:
        wanted = _SMALLER[wanted]
    return wanted


def _mixture(name: str, blocks: int) -> Any:
    """llama.cpp's Q4_K_M: the embeddings (the head too, when tied), and v and down of the first
    and last eighth of the layers and of every third between, in Q6_K; the rest in Q4_K."""
    if name in ("token_embd.weight", "output.weight"):
        return Type.Q6_K
    found = _BLOCK.match(name)
    if found and name.endswith(("attn_v.weight", "ffn_down.weight")):
        i, eighth = int(found[1]), blocks // 8
        if i < eighth or i >= 7 * blocks // 8 or (i - eighth) % 3 == 2:
            return Type.Q6_K
    return Type.Q4_K


def packed_bytes(shape: Sequence[int], kind: Any) -> tuple[int, ...]:
    """The shape in bytes of a packed tensor."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return (*shape[:-1], shape[-1] // block * size)


def pack(tensor: Tensor, kind: Any) -> np.ndarray:
    """A tensor (…, n) in `kind`: float32 or float16 values, or packed bytes (…, m).

    Rounded once, from float32. Raises LayerError for a weight beyond float16's range,
    MissingPartError where a packer is not installed.
    """
    if kind == Type.F32:
        return tensor.float().contiguous().numpy()
    if kind == Type.F16:
        half = tensor.to(torch.float16).contiguous()
        if not torch.isfinite(half).all():
            raise LayerError("a weight is too large for float16", hint="--precision q8_0 or f32")
        return half.numpy()
    rows = tensor.reshape(-1, tensor.shape[-1])
    packer = _python if kind == Type.Q8_0 else _library()
    parts = [packer(part.float().contiguous().numpy(), kind) for part in torch.split(rows, _ROWS)]
    return np.concatenate(parts).reshape(packed_bytes(tuple(tensor.shape), kind))


def _python(rows: np.ndarray, kind: Any) -> np.ndarray:
    packed: np.ndarray = gguf.quants.quantize(rows, kind)
    return packed


def _library() -> Callable[[np.ndarray, Any], np.ndarray]:
    """llama.cpp's packer out of xllamacpp's shared library. Raises MissingPartError."""
    try:
        from xllamacpp import xllamacpp
    except ImportError:
        raise MissingPartError(
            "q4_k is packed by llama.cpp's quantiser, which is not installed",
            hint="pip install 'lamina[gguf]'; f16 and q8_0 need nothing more",
        ) from None
    try:
        quantize = ctypes.CDLL(xllamacpp.__file__).ggml_quantize_chunk
    except AttributeError:
        raise MissingPartError(
            "this xllamacpp does not carry llama.cpp's quantiser",
            hint="install another version of xllamacpp, or take --precision q8_0",
        ) from None
    quantize.restype = ctypes.c_size_t
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    quantize.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]

    def pack_rows(rows: np.ndarray, kind: Any) -> np.ndarray:
        out = np.empty(packed_bytes(rows.shape, kind), dtype=np.uint8)
        written = quantize(int(kind), rows.ctypes.data, out.ctypes.data, 0, *rows.shape, None)
        if written != out.nbytes:
            raise LayerError(f"llama.cpp's quantiser wrote {written} bytes, not {out.nbytes}")
        return out

    return pack_rows
