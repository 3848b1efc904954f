"""A GGUF LoRA, as llama.cpp's converter and `lamina export --to gguf-lora` write it.

`<tensor>.lora_a` (R, I) and `.lora_b` (O, R) by llama.cpp's names; scale = adapter.lora.alpha / the
tensor's own rank, or 1 where alpha is 0 (llama-adapter.h). B's rows of q and k are permuted where
the family's weights are. Quantised tensors are dequantised by the gguf library.
"""

import re
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf import GGUFReader
from torch import Tensor

from lamina.bases.header import MAX_TENSORS
from lamina.core.errors import LayerError, UsageError
from lamina.export.gguf_family import Family, family_of
from lamina.imports.adapter import MERGE_FIRST, Adapter, Pair, Stored, shown
from lamina.imports.base import Beneath
from lamina.imports.files import refuse_pickle

_KEY = re.compile(r"(?P<tensor>.+)\.lora_(?P<side>[ab])")
_MAGIC = b"GGUF"
_HEADER_BYTES = 24
_MAX_FIELDS = 100_000
_ALPHA, _TYPE, _KIND = "adapter.lora.alpha", "adapter.type", "general.type"
_INVOCATION = "adapter.alora.invocation_tokens"


def read(path: Path, base: Beneath) -> Adapter:
    """Read a file. Raises LayerError with every fault at once, UsageError for a family that has no
    GGUF names here."""
    family = family_of(base.config)
    try:
        reader = opened(path)
        fields = {key: reader.get_field(key) for key in _WANTED}
        said = {key: None if field is None else field.contents() for key, field in fields.items()}
        faults = _header_faults(said, family)
        sides = _sides(reader, faults)
        pairs = _pairs(sides, said, family, base, faults)
    except (LayerError, UsageError):
        raise
    except Exception as error:  # gguf reads with numpy views: any kind, when a file lies
        raise _unreadable(path, error) from error
    if faults:
        raise LayerError(f"{shown(path.name)} cannot be used as a layer", faults=faults)
    return Adapter(
        kind="gguf-lora",
        files=(path,),
        pairs=pairs,
        rest={},
        made_on=_text(said["general.base_model.0.name"]),
        licence=_text(said["general.license"]),
        author=_text(said["general.author"]),
    )


_WANTED = (
    _ALPHA,
    _TYPE,
    _KIND,
    _INVOCATION,
    "general.architecture",
    "general.author",
    "general.license",
    "general.base_model.0.name",
)


def opened(path: Path) -> GGUFReader:
    """A GGUF file's header and views of its tensors. Raises LayerError."""
    refuse_pickle(path)
    with path.open("rb") as handle:
        head = handle.read(_HEADER_BYTES)
    if head[:4] != _MAGIC or len(head) < _HEADER_BYTES:
        raise LayerError(f"{shown(path.name)} is not a GGUF file")
    tensors, fields = (int.from_bytes(head[at : at + 8], "little") for at in (8, 16))
    if tensors > MAX_TENSORS or fields > _MAX_FIELDS:
        raise LayerError(
            f"{shown(path.name)} claims {tensors} tensors and {fields} fields, which no model has"
        )
    try:
        return GGUFReader(path)
    except Exception as error:  # as in `read`
        raise _unreadable(path, error) from error


def is_adapter(path: Path) -> bool:
    """Whether a GGUF file says that it is an adapter. Raises LayerError."""
    reader = opened(path)
    try:
        field = reader.get_field(_KIND)
        return field is not None and field.contents() == "adapter"
    except Exception as error:  # as in `read`
        raise _unreadable(path, error) from error


def _header_faults(said: dict[str, Any], family: Family) -> list[str]:
    faults = []
    if said[_KIND] != "adapter" or said[_TYPE] not in ("lora", None):
        faults.append(
            f"it is {shown(str(said[_KIND]))} of type {shown(str(said[_TYPE]))}, no LoRA adapter"
        )
    if said["general.architecture"] != family.name:
        faults.append(
            f"it is for llama.cpp's {shown(str(said['general.architecture']))}, the base is "
            f"{family.name}"
        )
    if said[_INVOCATION]:
        faults.append("an activated LoRA applies only after certain tokens")
    return faults


def _sides(reader: GGUFReader, faults: list[str]) -> dict[str, dict[str, Stored]]:
    sides: dict[str, dict[str, Stored]] = {}
    for tensor in reader.tensors:
        match = _KEY.fullmatch(tensor.name)
        if match is None:
            faults.append(f"{shown(tensor.name)}: neither lora_a nor lora_b; {MERGE_FIRST}")
            continue
        shape = tuple(int(n) for n in reversed(tensor.shape))
        parts = sides.setdefault(match["tensor"], {})
        if match["side"] in parts:
            faults.append(f"{shown(tensor.name)}: is there twice")
        parts[match["side"]] = Stored(shape, tensor.tensor_type.name, _reading(tensor, shape))
    if not sides:
        faults.append("it touches no module")
    return sides


def _reading(tensor: Any, shape: tuple[int, ...]) -> Any:
    def read() -> Tensor:
        plain = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        return torch.from_numpy(plain.astype("float32", copy=True)).reshape(shape)

    return read


def _pairs(
    sides: dict[str, dict[str, Stored]],
    said: dict[str, Any],
    family: Family,
    base: Beneath,
    faults: list[str],
) -> dict[str, Pair]:
    named = family.names(int(base.config["num_hidden_layers"]))
    modules = {named(f"{module}.weight"): module for module in base.shapes}
    alpha = said[_ALPHA] or 0.0
    pairs = {}
    for tensor, parts in sorted(sides.items()):
        module = modules.get(tensor)
        missing = sorted({"a", "b"} - set(parts))
        if module is None:
            faults.append(f"{shown(tensor)}: the base has no such linear")
        elif missing:
            faults.append(f"{shown(tensor)}: no lora_{missing[0]}")
        else:
            a_RI, b_OR = parts["a"], parts["b"]
            rank = a_RI.shape[0] if len(a_RI.shape) == 2 else 1
            scale = float(alpha) / max(rank, 1) if alpha else 1.0
            pairs[module] = Pair(a_RI, _restored(b_OR, module, family, base), scale)
    return pairs


def _restored(b_OR: Stored, module: str, family: Family, base: Beneath) -> Stored:
    return Stored(
        b_OR.shape, b_OR.dtype, lambda: family.restore_rows(module, b_OR.read(), base.config)
    )


def _text(value: Any) -> str | None:
    return shown(value) if isinstance(value, str) and value else None


def _unreadable(path: Path, error: Exception) -> LayerError:
    return LayerError(
        f"{shown(path.name)} cannot be read as GGUF: {type(error).__name__}: {shown(str(error))}",
        hint="it is cut short or damaged; fetch it again",
    )
