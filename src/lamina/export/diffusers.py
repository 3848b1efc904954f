"""One LoRA file of all layers for image tools: with diffusers' names, or with kohya's.

diffusers: `unet.<module>.lora_A.weight` (R, I), `.lora_B.weight` (O, R), scale 1.
kohya:     `lora_unet_<name>.lora_down.weight`, `.lora_up.weight`, `.alpha` = R, scale alpha / R;
           <name> is the module's with `_` for `.`; the text encoder's are `lora_te_<name>`.
Of a convolution A is (R, I, kh, kw), B (O, R, 1, 1).
Scales are folded into B, so that no reader has to know one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from lamina.bases.quiet import quiet
from lamina.core.errors import LayerError, MissingPartError
from lamina.core.files import atomic_write
from lamina.lowrank.maths import LayerFactors, compose

WEIGHTS_FILE = "pytorch_lora_weights.safetensors"
KOHYA_FILE = "lora.safetensors"
_KOHYA = {"text_encoder": "lora_te"}
_CLIP = "text_encoder.encoder.layers."
"""How transformers 5 names what is `text_encoder.text_model.encoder.layers.` to all others."""


Kernels = Mapping[str, tuple[int, int]]
"""(kh, kw) of every convolution, by name."""


def write(layers: Sequence[LayerFactors], directory: Path, kernels: Kernels) -> Path:
    """diffusers' file. Raises LayerError where there is no layer."""
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in _joined(layers, kernels).items():
        tensors[f"{name}.lora_A.weight"] = a
        tensors[f"{name}.lora_B.weight"] = b
    return _save(tensors, directory / WEIGHTS_FILE)


def write_kohya(layers: Sequence[LayerFactors], directory: Path, kernels: Kernels) -> Path:
    """kohya's file. Raises LayerError where there is no layer."""
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in _joined(layers, kernels).items():
        part, _, module = name.partition(".")
        flat = f"{_KOHYA.get(part, f'lora_{part}')}_{module.replace('.', '_')}"
        tensors[f"{flat}.lora_down.weight"] = a
        tensors[f"{flat}.lora_up.weight"] = b
        tensors[f"{flat}.alpha"] = torch.tensor(float(len(a)))
    return _save(tensors, directory / KOHYA_FILE)


def loaded(pipeline_folder: Path, file: Path | None) -> Any:
    """diffusers' own pipeline of a folder, in float32, with a LoRA file on it, by its own reader.

    Raises MissingPartError without diffusers or peft.
    """
    try:
        with quiet():
            import diffusers
            import peft  # noqa: F401 - diffusers cannot load a LoRA without it
    except ImportError as error:
        raise MissingPartError(
            "the file is checked with diffusers and peft",
            hint="pip install 'lamina[images,peft]'",
        ) from error
    with quiet():  # from here on diffusers is loaded, and heard by it
        made: Any = diffusers.DiffusionPipeline.from_pretrained(
            pipeline_folder,
            torch_dtype=torch.float32,
            local_files_only=True,
            low_cpu_mem_usage=False,
        )
        made.set_progress_bar_config(disable=True)
        if file is not None:
            made.load_lora_weights(str(file.parent), weight_name=file.name)
    return made


def _joined(layers: Sequence[LayerFactors], kernels: Kernels) -> dict[str, tuple[Tensor, Tensor]]:
    """name -> A, s B of all layers together, in the shapes that the files have."""
    if not layers:
        raise LayerError("a bare base has no layer to export", hint="give a stack with layers")
    found = {}
    for name, part in sorted(compose(layers).items()):
        a, b = part.a_RI.float().contiguous(), (part.b_OR.float() * part.scale).contiguous()
        if name in kernels:
            a, b = a.view(len(a), -1, *kernels[name]), b[:, :, None, None]
        found[_as_of_old(name)] = a, b
    return found


def _as_of_old(name: str) -> str:
    return name.replace(_CLIP, "text_encoder.text_model.encoder.layers.", 1)


def _save(tensors: dict[str, Tensor], path: Path) -> Path:
    atomic_write(path, safetensors.torch.save(tensors, {"format": "pt"}))
    return path
