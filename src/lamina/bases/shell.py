"""A model without memory for its weights: to be filled from files, tensor by tensor."""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM

from lamina.bases.families import linears
from lamina.bases.header import read_entries
from lamina.bases.identity import CONFIG, read_json, weight_files
from lamina.bases.quiet import quiet
from lamina.core import heap
from lamina.core.errors import BaseError

QUANTISATION = "quantization_config"
TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""By their names in safetensors."""
_LAYER_COUNTS = frozenset({"num_hidden_layers", "n_layer", "n_layers", "num_layers"})
_LARGEST = 2**31
_EXPERTS = 4096


class _EmptyIsNothing(TorchFunctionMode):
    """`torch.empty` gives tensors without memory: what linears and embeddings start from.

    Everything else (rotary tables, scales, norms) is computed as always.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.empty and given.get("device") is None:
            given["device"] = "meta"
        return func(*args, **given)


def shell(directory: Path, *, dtype: torch.dtype) -> nn.Module:
    """The architecture in `dtype`, in eval mode and frozen; matrices are on the meta device.

    Raises BaseError when no model can be built from the configuration.
    """
    check_sizes(directory)
    try:
        with quiet(), _EmptyIsNothing():
            config = AutoConfig.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
            if hasattr(config, QUANTISATION):
                delattr(config, QUANTISATION)
            model: nn.Module = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation="sdpa"
            )
    except Exception as error:  # a configuration can be wrong in as many ways as there are models
        if heap.is_short(error):
            raise
        raise BaseError(
            f"no model can be built from {directory / CONFIG}: {type(error).__name__}: {error}",
            hint="pull the base again",
        ) from error
    model.eval()
    return model.requires_grad_(False)


def check_sizes(directory: Path) -> None:
    """Refuse a configuration that promises more layers than its files have tensors, or numbers that
    no model has: to build that model, even without memory for its weights, would take for ever.

    Raises BaseError.
    """
    tensors = sum(len(read_entries(path)) for path in weight_files(directory))
    faults = []
    waiting: list[tuple[str, Any]] = [("", read_json(directory / CONFIG))]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(key, item) for item in value]
        elif isinstance(value, int):
            most = tensors if key in _LAYER_COUNTS else _EXPERTS if "expert" in key else _LARGEST
            if abs(value) > most:
                faults.append(f"{key} is {value:.3g}; at most {most} can be")
    if faults:
        raise BaseError(
            f"{CONFIG} does not fit the weights", faults=faults, hint="fetch both from one place"
        )


def linear_shapes(directory: Path) -> dict[str, tuple[int, int]]:
    """name -> (O, I) of every linear of a base's decoder, packed or not, without its weights.

    Raises BaseError.
    """
    found = linears(shell(directory, dtype=torch.float32))
    return {name: (linear.out_features, linear.in_features) for name, linear in found.items()}


class Files:
    """The tensors of a base's weight files, by name.

    Read, not mapped, but where it is asked for: the pages of a mapped file count as the process's
    beside the copies that are made of them.
    """

    def __init__(self, directory: Path, parts: Mapping[Path, str] | None = None) -> None:
        """`parts`: the files of a pipeline, and what stands before the names in each."""
        self._open: dict[Path, int] = {}
        files = dict.fromkeys(weight_files(directory), "") if parts is None else parts
        found = [
            (prefix + entry.name, entry, path)
            for path, prefix in files.items()
            for entry in read_entries(path)
        ]
        self.homes = {name: path for name, _, path in found}
        self.entries = {name: entry for name, entry, _ in found}

    def __contains__(self, name: str) -> bool:
        return name in self.homes

    def __del__(self) -> None:
        for handle in self._open.values():
            os.close(handle)

    def handle(self, name: str) -> int:
        """The open file that a tensor lies in."""
        path = self.homes[name]
        if path not in self._open:
            self._open[path] = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        return self._open[path]

    def read(self, name: str) -> Tensor:
        """A tensor of one's own. Raises BaseError for a name that no file has, OSError."""
        if name not in self.entries:
            raise _missing(name)
        entry = self.entries[name]
        flat = torch.empty(entry.end - entry.start, dtype=torch.uint8)
        self.read_into(name, flat)
        return flat.view(TORCH_DTYPES[entry.dtype]).view(entry.shape)

    def read_rows(self, name: str, rows: slice) -> Tensor:
        """Some rows of a matrix, of one's own. Raises OSError."""
        entry = self.entries[name]
        inputs = entry.shape[1]
        some = torch.empty((rows.stop - rows.start, inputs), dtype=TORCH_DTYPES[entry.dtype])
        skipped = rows.start * inputs * some.itemsize
        self.read_into(name, some.view(-1).view(torch.uint8), skipped)
        return some

    def read_into(self, name: str, out: Tensor, skipped: int = 0) -> None:
        """A tensor's bytes into `out` (uint8, flat), from the byte `skipped` on. Raises OSError."""
        view = memoryview(out.numpy())  # type: ignore[arg-type]
        handle, start, done = self.handle(name), self.entries[name].start + skipped, 0
        while done < len(view):
            got = os.preadv(handle, [view[done:]], start + done)
            if not got:
                raise OSError(f"{self.homes[name]} ends before {name} does")
            done += got

    def mapped(self, name: str) -> Tensor:
        """A tensor that lies in the file: it takes no memory of ours, and cannot be written.

        Raises BaseError as `read` does.
        """
        if name not in self.entries:
            raise _missing(name)
        entry = self.entries[name]
        raw = np.memmap(self.homes[name], np.uint8, "r", entry.start, (entry.end - entry.start,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it cannot be written is what is wanted
            flat = torch.from_numpy(raw)
        return flat.view(TORCH_DTYPES[entry.dtype]).view(entry.shape)

    def bias(self, module: str, linear: nn.Linear, dtype: torch.dtype) -> nn.Parameter | None:
        """A linear's bias in `dtype`, None where it has none. Raises BaseError."""
        if linear.bias is None:
            return None
        return nn.Parameter(self.read(f"{module}.bias").to(dtype), requires_grad=False)


def _missing(name: str) -> BaseError:
    return BaseError(f"the weights have no {name}", hint="pull the base again")


def replace_linears(
    model: nn.Module, made: Callable[[str, nn.Linear], nn.Linear], refusal: str
) -> frozenset[str]:
    """Put `made(name, linear)` in the place of every linear of the decoder; their names.

    Where it raises ValueError (or what libraries raise for tensors that are not theirs), the fault
    is listed. Raises BaseError with every fault.
    """
    faults, replaced = [], set()
    for name, linear in linears(model).items():
        try:
            found = made(name, linear)
        except (ValueError, AssertionError, KeyError, RuntimeError) as error:
            if heap.is_short(error):
                raise
            faults.append(f"{name}: {error}")
            continue
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, found)
        replaced.add(name)
    if faults:
        raise BaseError(refusal, faults=faults, hint="pull the base again")
    return frozenset(replaced)


def fill(
    model: nn.Module, files: Files, *, but: frozenset[str] = frozenset(), mapped: bool = False
) -> None:
    """Give every parameter its tensor, in its dtype, one at a time; then tie what is tied.

    Modules named in `but` keep what they have. `mapped`: matrices that are stored in their dtype
    stay in the file. Raises BaseError listing every tensor that is
    missing or of another shape.
    """
    tied = _tied(model)
    faults = []
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        if owner in but:
            continue
        if name not in files:
            faults += [] if name in tied else [f"{name}: missing"]
            continue
        tensor = files.mapped(name) if mapped and parameter.ndim > 1 else files.read(name)
        if tensor.shape != parameter.shape:
            faults.append(
                f"{name}: {tuple(tensor.shape)}, the architecture has {tuple(parameter.shape)}"
            )
            continue
        filled = nn.Parameter(tensor.to(parameter.dtype), requires_grad=False)
        setattr(model.get_submodule(owner), leaf, filled)
    if faults:
        raise BaseError(
            f"the weights do not fit the architecture in {CONFIG}",
            faults=faults,
            hint="pull the base again",
        )
    model.tie_weights()  # type: ignore[operator]


def _tied(model: nn.Module) -> frozenset[str]:
    """Names of parameters that are others' under a second name."""
    config: Any = model.config
    return frozenset(model.all_tied_weights_keys) if config.tie_word_embeddings else frozenset()  # type: ignore[arg-type]
