"""Quantised bases as other tools read them."""

import torch
from transformers import AutoModelForCausalLM

from lamina.bases.quiet import quiet


def theirs(directory, dtype=torch.float32):
    """The base through transformers and the library whose layout it is in."""
    with quiet(swallow_stderr=True):
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = dtype
            # otherwise float32 is rounded to bfloat16 on processors with such products
            module.support_avx512bf16_for_cpu = dtype == torch.bfloat16
    for parameter in model.parameters():  # with bitsandbytes, transformers heeds no `dtype`
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model
