"""Small functions that make hostile things; each breaks one rule."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

ITEM = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1}
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
A, B = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"


def entry(dtype: str, shape, start: int, end: int | None = None) -> dict:
    """One tensor of a header; `end` as its shape says unless given."""
    size = math.prod(shape) * ITEM.get(dtype, 1)
    return {
        "dtype": dtype,
        "shape": list(shape),
        "data_offsets": [start, start + size if end is None else end],
    }


def weights(header: Mapping | bytes, data: bytes | int, *, length: int | None = None) -> bytes:
    """A safetensors file, right or wrong: `length` is what it claims of its header."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    claimed = len(raw) if length is None else length
    return claimed.to_bytes(8, "little") + raw + (bytes(data) if isinstance(data, int) else data)


GOOD = weights({A: entry("F32", (2, 64), 0), B: entry("F32", (64, 2), 512)}, 1024)


def config(**changes) -> bytes:
    """An adapter's config."""
    return json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4} | changes).encode()


def adapter(folder: Path, *, text: bytes | None = None, data: bytes | None = GOOD) -> Path:
    """An adapter's folder; `data=None`: without weights."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_bytes(config() if text is None else text)
    if data is not None:
        (folder / "adapter_model.safetensors").write_bytes(data)
    return folder


class Opened:
    """A pickle of this runs a command when it is loaded: it makes the file `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)
