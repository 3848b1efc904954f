"""A base's folder as other tools read it: by transformers' own loading, packed weights included."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from lamina.bases.quiet import quiet
from lamina.core.errors import BaseError, MissingPartError

_NEEDED = {"nf4": "bitsandbytes", "int8": "compressed-tensors"}


def as_others_read(directory: Path, quantised: str) -> nn.Module:
    """A quantised base in float32, through the library whose layout its weights have.

    Raises MissingPartError when that library is not installed, BaseError.
    """
    try:
        with quiet(swallow_stderr=True):
            model: Any = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=torch.float32,
                attn_implementation="sdpa",
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
            )
    except ImportError as error:
        raise MissingPartError(
            f"the export is checked with {_NEEDED[quantised]}, which is not installed",
            hint="pip install 'lamina[quantised]'",
        ) from error
    except Exception as error:  # transformers and its quantisers raise kinds of many parents
        raise BaseError(
            f"transformers cannot load the base in {quantised}: {type(error).__name__}: {error}",
            hint="check the versions of transformers and of " + _NEEDED[quantised],
        ) from error
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            # bitsandbytes computes in bfloat16 otherwise, on some processors whatever it is told
            module.compute_dtype = torch.float32
            module.support_avx512bf16_for_cpu = False
    for parameter in model.parameters():  # with bitsandbytes, transformers heeds no `dtype`
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    found: nn.Module = model.eval()
    with quiet(swallow_stderr=True), torch.inference_mode(False), torch.no_grad():
        found(input_ids=torch.zeros(1, 2, dtype=torch.int64))  # compressed-tensors unpacks here
    return found
