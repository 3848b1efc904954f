"""One safetensors file in the manner of kohya's trainers and of diffusers.

kohya:     `lora_te_<name>.lora_down.weight` (R, I), `.lora_up.weight` (O, R), `.alpha` (a number):
           scale = alpha / R, or 1 without alpha; <name> is a module's with `_` for `.`.
diffusers: `<module>.lora_linear_layer.down.weight`, `.up.weight`, or `<module>.lora.down.weight`.

What LyCORIS adds (Hadamard and Kronecker products, convolutions, whole differences) is no low-rank
sum of a linear, and is refused.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from lamina.core.errors import LayerError
from lamina.imports.adapter import MERGE_FIRST, Adapter, Pair, Stored, shown
from lamina.imports.base import Beneath
from lamina.imports.files import base_named, metadata_of, tensors_of, text_in
from lamina.imports.names import unwrapped

PART = re.compile(
    r"(?P<module>.+?)\.(?:lora_|lora_linear_layer\.|lora\.)(?P<side>down|up)\.weight"
    r"|(?P<scaled>.+)\.alpha"
)
_OTHERS = (
    (re.compile(r"\.hada_"), "a Hadamard product (LoHa)"),
    (re.compile(r"\.lokr_"), "a Kronecker product (LoKr)"),
    (re.compile(r"\.lora_mid\."), "a convolution (LoCon)"),
    (re.compile(r"\.dora_scale$"), "DoRA, which rescales rows of the weight"),
    (re.compile(r"\.(?:diff|diff_b)$"), "a whole difference of weights"),
    (re.compile(r"\.(?:on_input|w_norm|b_norm|oft_\w+|scalar)$"), "no low-rank update"),
)
_OWNERS = re.compile(
    r"(?:lora_)?(?:(?:unet|te\d?|transformer|text|model|encoder|language|llm|decoder|base)_)*"
)


def read(path: Path, base: Beneath) -> Adapter:
    """Read a file. Raises LayerError with every fault at once."""
    tensors = tensors_of(path)
    faults: list[str] = []
    sides: dict[str, dict[str, Stored]] = {}
    for key, tensor in tensors.items():
        match = PART.fullmatch(key)
        if match is None:
            faults.append(f"{shown(key)}: {_what(key)}")
        elif match["scaled"]:
            sides.setdefault(match["scaled"], {})["alpha"] = tensor
        else:
            sides.setdefault(match["module"], {})[match["side"]] = tensor
    flat = Flat(base.shapes)
    pairs: dict[str, Pair] = {}
    for name, parts in sorted(sides.items()):
        module = _module(name, flat, base, faults)
        pair = _pair(name, parts, faults)
        if module is None or pair is None:
            continue
        if module in pairs:
            faults.append(f"{shown(name)}: another name is {module} already")
        pairs[module] = pair
    if not sides:
        faults.append("it touches no module")
    if faults:
        raise LayerError(f"{shown(path.name)} cannot be used as a layer", faults=faults)
    said = metadata_of(path)
    return Adapter(
        kind="kohya",
        files=(path,),
        pairs=pairs,
        rest={},
        made_on=base_named(said, "ss_sd_model_name", "modelspec.base_model"),
        licence=text_in(said, "modelspec.license"),
        author=text_in(said, "modelspec.author"),
    )


def _what(key: str) -> str:
    for pattern, what in _OTHERS:
        if pattern.search(key):
            return f"{what}; {MERGE_FIRST}"
    return "neither lora_down, lora_up nor alpha"


def _pair(name: str, parts: Mapping[str, Stored], faults: list[str]) -> Pair | None:
    missing = [f"lora_{side}" for side in ("down", "up") if side not in parts]
    if missing:
        faults.append(f"{shown(name)}: no {' and no '.join(missing)}")
        return None
    down, up = parts["down"], parts["up"]
    if len(down.shape) != 2 or len(up.shape) != 2:
        faults.append(f"{shown(name)}: {len(down.shape)} axes, as of a convolution; {MERGE_FIRST}")
        return None
    rank = down.shape[0]
    alpha = float(rank)
    if "alpha" in parts:
        if parts["alpha"].shape not in ((), (1,)):
            faults.append(f"{shown(name)}: alpha is no number")
            return None
        alpha = float(parts["alpha"].read().double().reshape(()))
    return Pair(down, up, alpha / max(rank, 1))


def _module(name: str, flat: "Flat", base: Beneath, faults: list[str]) -> str | None:
    """The base's module that a file calls `name`; None after adding to `faults`."""
    dotted = base.linears.find(unwrapped(name))
    if dotted is not None:
        return dotted
    found = flat.find(name)
    if len(found) == 1:
        return found[0]
    if found:
        faults.append(f"{shown(name)}: may be any of {', '.join(found)}")
    else:
        faults.append(f"{shown(name)}: the base has no such linear")
    return None


class Flat:
    """Module names with `_` for `.`, to be found again."""

    def __init__(self, modules: Iterable[str]) -> None:
        self._by_tail: dict[str, list[str]] = {}
        for module in sorted(modules):
            self._by_tail.setdefault(_tail(module.replace(".", "_")), []).append(module)

    def find(self, name: str) -> list[str]:
        """Every module that `name` may mean."""
        return self._by_tail.get(_tail(name.replace(".", "_")), [])


def _tail(flat: str) -> str:
    match = _OWNERS.match(flat)
    return flat[match.end() :] if match else flat
