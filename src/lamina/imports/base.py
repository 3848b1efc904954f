"""What an import has to know of the stack that it goes over: names, shapes, single weights."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lamina.bases import pipeline
from lamina.bases.identity import CONFIG, read_json
from lamina.bases.pipeline_files import INDEX
from lamina.bases.shell import Files, linear_shapes
from lamina.imports.names import Names
from lamina.lowrank.maths import Factors, LayerFactors

_TIED_HEAD = re.compile(r"(?:.*\.)?lm_head\.weight")
_EMBEDDING = re.compile(r"(?:.*\.)?embed_tokens\.weight")


@dataclass(frozen=True, eq=False)
class Beneath:
    """The stack that an import goes over. Weights are read one at a time."""

    directory: Path
    """The base's folder."""
    config: Mapping[str, Any]
    """Its config.json."""
    shapes: Mapping[str, tuple[int, int]]
    """(O, I) of every linear that takes layers, by name."""
    linears: Names
    layers: Sequence[LayerFactors]
    """Lowest first."""
    files: Files
    tensors: Names
    """Names of all stored tensors."""
    packed: str | None
    """How the linears are packed; None for plain weights."""
    kernels: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """(kh, kw) of those that are convolutions: their matrices are (O, I kh kw)."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Name -> why a convolution takes no layers."""

    def weight(self, module: str) -> Tensor:
        """W + sum of s B A of the layers, (O, I), in float64: as the stack has it, not rounded."""
        found = self.tensors.find(f"{module}.weight") or f"{module}.weight"
        total_OI = self.files.read(found).double().flatten(1)
        for terms in self.terms(module):
            total_OI.addmm_(terms.b_OR.double(), terms.a_RI.double(), alpha=terms.scale)
        return total_OI

    def terms(self, module: str) -> list[Factors]:
        """What the layers add to a linear."""
        return [layer[module] for layer in self.layers if module in layer]

    def tensor_name(self, name: str) -> str | None:
        """The base's own tensor for what a file calls `name`; of a tied head, the embeddings."""
        found = self.tensors.find(name)
        if found is None and self.config.get("tie_word_embeddings") and _TIED_HEAD.fullmatch(name):
            return next((each for each in self.tensors.known if _EMBEDDING.fullmatch(each)), None)
        return found

    def linear_of(self, name: str) -> str | None:
        """The linear whose weight a file calls `name`, None where it is no linear's weight."""
        owner, _, leaf = name.rpartition(".")
        return self.linears.find(owner) if leaf == "weight" else None


def beneath(directory: Path, layers: Sequence[LayerFactors], packed: str | None) -> Beneath:
    """The facts of a base's folder with layers over it. Raises BaseError."""
    config, shapes = read_json(directory / CONFIG), linear_shapes(directory)
    return _beneath(directory, config, shapes, layers, Files(directory), packed)


def beneath_image(directory: Path, layers: Sequence[LayerFactors]) -> Beneath:
    """The same of an image base: linears and tensors begin with their part's name."""
    model = pipeline.load(directory, dtype=torch.float32).model
    found = pipeline.linears(model)
    shapes = {name: (linear.out_features, linear.in_features) for name, linear in found.items()}
    config = read_json(directory / INDEX)
    made = _beneath(directory, config, shapes, layers, pipeline.files(directory), None)
    return replace(made, kernels=pipeline.kernels(directory), refused=pipeline.refused(model))


def _beneath(
    directory: Path,
    config: dict[str, Any],
    shapes: dict[str, tuple[int, int]],
    layers: Sequence[LayerFactors],
    files: Files,
    packed: str | None,
) -> Beneath:
    return Beneath(
        directory=directory,
        config=config,
        shapes=shapes,
        linears=Names(shapes),
        layers=tuple(layers),
        files=files,
        tensors=Names(files.homes),
        packed=packed,
    )


def same_numbers(found: Tensor, own: Tensor) -> bool:
    """Whether two tensors are one, up to the dtypes that either was stored in.

    GGUF files hold float16, of which bases are made in bfloat16.
    """
    if found.shape != own.shape:
        return False
    if not (found.is_floating_point() and own.is_floating_point()):
        return torch.equal(found, own)
    return (
        torch.equal(found.to(own.dtype), own)
        or torch.equal(found, own.to(found.dtype))
        or torch.equal(found, own.half().to(found.dtype))
    )
