"""A stack as one LoRA in GGUF: the exact concatenation of its layers, for llama.cpp's `--lora`.

alpha = the widest rank r, with every scale folded into B. llama.cpp scales by alpha / (the tensor's
own rank), and one alpha stands for the whole file: B of a narrower tensor takes rank / r.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from gguf import GGUFWriter

from lamina.bases.identity import CONFIG, read_json
from lamina.core.errors import LayerError
from lamina.export.gguf_family import family_of
from lamina.export.peft import concatenated
from lamina.lowrank.maths import LayerFactors


def write(base: Path, layers: Sequence[LayerFactors], file: Path, name: str) -> None:
    """Write `file`, in float32: `blk.N.….weight.lora_a` (r, in) and `.lora_b` (out, r).

    B's rows of q and k are permuted as the base's are. Raises UsageError for no layers or a family
    that is not written, LayerError for a module that llama.cpp has no name for.
    """
    config = read_json(base / CONFIG)
    family = family_of(config)
    joined = concatenated(layers)
    named = family.names(config["num_hidden_layers"])
    names = {module: named(f"{module}.weight") for module in joined}
    unknown = sorted(module for module, found in names.items() if found is None)
    if unknown:
        raise LayerError("llama.cpp has no name for modules of the stack", faults=unknown)
    rank = max(factors.rank for factors in joined.values())
    with contextlib.closing(GGUFWriter(file, family.name)) as writer:
        writer.add_type("adapter")
        writer.add_name(name)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(rank))
        for module, factors in joined.items():
            b_OR = family.convert(module, factors.b_OR * (factors.rank / rank), config)
            writer.add_tensor(f"{names[module]}.lora_a", factors.a_RI.contiguous().numpy())
            writer.add_tensor(f"{names[module]}.lora_b", b_OR.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
