"""One safetensors file in the manner of kohya's trainers and of diffusers.

kohya:     `lora_te_<name>.lora_down.weight` (R, I), `.lora_up.weight` (O, R), `.alpha` (a number):
           scale = alpha / R, or 1 without alpha; <name> is a module's with `_` for `.`.
diffusers: `<module>.lora_linear_layer.down.weight`, `.up.weight`, or `<module>.lora.down.weight`;
           of images `unet.<module>.lora_A.weight`, `.lora_B.weight`, whose alpha is in the file's
           metadata, or is R.

Of a convolution down is (R, I, kh, kw) and up (O, R, 1, 1) (LoCon): matrices, read as (R, I kh kw)
and (O, R). What else LyCORIS adds (Hadamard and Kronecker products, convolutions in three factors,
whole differences) is no low-rank sum or nothing that diffusers reads, and is refused.
"""

import json
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
OF_IMAGES = re.compile(
    r"(?P<module>(?:unet|transformer|text_encoder)\..+?)\.lora_(?P<side>[AB])\.weight"
)
_OTHERS = (
    (re.compile(r"\.hada_"), "a Hadamard product (LoHa)"),
    (re.compile(r"\.lokr_"), "a Kronecker product (LoKr)"),
    (
        re.compile(r"\.lora_mid\."),
        "a convolution in three factors (CP decomposition), which diffusers does not read, so that "
        "nothing could prove the layer",
    ),
    (re.compile(r"\.dora_scale$"), "DoRA, which rescales rows of the weight"),
    (re.compile(r"\.(?:diff|diff_b)$"), "a whole difference of weights"),
    (re.compile(r"\.(?:on_input|w_norm|b_norm|oft_\w+|scalar)$"), "no low-rank update"),
)
_OF_OLD = "text_model."
"""What stands before CLIP's layers but in transformers 5."""
_SIDES = {"A": "down", "B": "up"}
_OWNERS = re.compile(
    r"(?:lora_)?(?:(?:unet|te\d?|transformer|text|model|encoder|language|llm|decoder|base)_)*"
)


def read(path: Path, base: Beneath) -> Adapter:
    """Read a file. Raises LayerError with every fault at once."""
    tensors = tensors_of(path)
    faults: list[str] = []
    sides: dict[str, dict[str, Stored]] = {}
    for key, tensor in tensors.items():
        match = OF_IMAGES.fullmatch(key) or PART.fullmatch(key)
        if match is None:
            faults.append(f"{shown(key)}: {_what(key)}")
        elif match.groupdict().get("scaled"):
            sides.setdefault(match["scaled"], {})["alpha"] = tensor
        else:
            side = _SIDES.get(match["side"], match["side"])
            sides.setdefault(match["module"], {})[side] = tensor
    flat = Flat([*base.shapes, *base.refused])
    said = metadata_of(path)
    alphas = _alphas(said, faults)
    pairs: dict[str, Pair] = {}
    for name, parts in sorted(sides.items()):
        module = _module(name, flat, base, faults)
        kernel = base.kernels.get(module) if module else None
        pair = _pair(name, parts, kernel, alphas, faults)
        if module is None or pair is None:
            continue
        if module in pairs:
            faults.append(f"{shown(name)}: another name is {module} already")
        pairs[module] = pair
    if not sides:
        faults.append("it touches no module")
    if faults:
        raise LayerError(f"{shown(path.name)} cannot be used as a layer", faults=faults)
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


def _alphas(said: Mapping[str, str], faults: list[str]) -> dict[str, tuple[float, float]]:
    """Part -> lora_alpha and r, as diffusers notes them (`lora_adapter_metadata`)."""
    if "lora_adapter_metadata" not in said:
        return {}
    try:
        found = json.loads(said["lora_adapter_metadata"])
        parts = {key.partition(".")[0] for key in found if key.endswith(".lora_alpha")}
        for part in sorted(parts):
            varied = [k for k in ("rank_pattern", "alpha_pattern") if found.get(f"{part}.{k}")]
            if varied or found.get(f"{part}.use_rslora") or found.get(f"{part}.use_dora"):
                faults.append(f"{part}: scales that differ by module are not read")
        return {p: (float(found[f"{p}.lora_alpha"]), float(found[f"{p}.r"])) for p in parts}
    except (ValueError, KeyError, TypeError, AttributeError):
        faults.append("lora_adapter_metadata says no scale")
        return {}


def _pair(
    name: str,
    parts: Mapping[str, Stored],
    kernel: tuple[int, int] | None,
    alphas: Mapping[str, tuple[float, float]],
    faults: list[str],
) -> Pair | None:
    missing = [f"lora_{side}" for side in ("down", "up") if side not in parts]
    if missing:
        faults.append(f"{shown(name)}: no {' and no '.join(missing)}")
        return None
    down, up = parts["down"], parts["up"]
    if kernel is not None:
        if (down.shape[2:], up.shape[2:]) != (kernel, (1, 1)):
            form = f"(R, I, {kernel[0]}, {kernel[1]}) and (O, R, 1, 1)"
            faults.append(f"{shown(name)}: {down.shape} and {up.shape}, the base takes {form}")
            return None
        down, up = down.flattened(), up.flattened()
    elif len(down.shape) != 2 or len(up.shape) != 2:
        faults.append(f"{shown(name)}: {len(down.shape)} axes, as of a convolution; {MERGE_FIRST}")
        return None
    rank = down.shape[0]
    alpha = float(rank)
    if name.partition(".")[0] in alphas:
        noted, of_rank = alphas[name.partition(".")[0]]
        alpha = noted / max(of_rank, 1.0) * rank
    if "alpha" in parts:
        if parts["alpha"].shape not in ((), (1,)):
            faults.append(f"{shown(name)}: alpha is no number")
            return None
        alpha = float(parts["alpha"].read().double().reshape(()))
    return Pair(down, up, alpha / max(rank, 1))


def _module(name: str, flat: "Flat", base: Beneath, faults: list[str]) -> str | None:
    """The base's module that a file calls `name`; None after adding to `faults`."""
    plain = unwrapped(name)
    dotted = base.linears.find(plain) or base.linears.find(plain.replace(_OF_OLD, "", 1))
    if dotted is not None:
        return dotted
    found = flat.find(name)
    if len(found) == 1 and found[0] in base.refused:
        faults.append(f"{shown(name)}: {base.refused[found[0]]}")
        return None
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
