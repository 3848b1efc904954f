"""mlx-lm's adapter folder: adapters.safetensors and adapter_config.json.

`<module>.lora_a` (I, R) and `.lora_b` (R, O), one scale for all: y + scale (x lora_a) lora_b
(mlx_lm/tuner/lora.py); older versions have an alpha beside it, and scale alpha / rank then. `.m`
(O,) is DoRA's magnitude.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamina.bases.folder import readme_licence
from lamina.core.errors import LayerError
from lamina.imports.adapter import MERGE_FIRST, Adapter, Pair, Stored, shown
from lamina.imports.base import Beneath
from lamina.imports.files import base_named, json_of, tensors_of
from lamina.imports.names import unwrapped

WEIGHTS_FILE = "adapters.safetensors"
CONFIG_FILE = "adapter_config.json"
KEY = re.compile(r"(?P<module>.+)\.(?P<side>lora_a|lora_b|m)")


def read(folder: Path, base: Beneath) -> Adapter:
    """Read an adapter's folder. Raises LayerError with every fault at once."""
    config = json_of(folder / CONFIG_FILE)
    tensors = tensors_of(folder / WEIGHTS_FILE)
    kind, settings = config.get("fine_tune_type", "lora"), config.get("lora_parameters")
    faults = []
    if kind not in ("lora", "dora"):
        faults.append(f"fine_tune_type is {shown(str(kind))!r}, no low-rank sum: {MERGE_FIRST}")
    scale = _scale(settings if isinstance(settings, dict) else {}, faults)
    sides: dict[str, dict[str, Stored]] = {}
    for key, tensor in tensors.items():
        match = KEY.fullmatch(unwrapped(key))
        if match:
            sides.setdefault(match["module"], {})[match["side"]] = tensor
        else:
            faults.append(f"{shown(key)}: neither lora_a nor lora_b")
    pairs = {}
    for module, parts in sorted(sides.items()):
        missing = [side for side in ("lora_a", "lora_b") if side not in parts]
        if missing:
            faults.append(f"{shown(module)}: no {' and no '.join(missing)}")
            continue
        pairs[module] = Pair(
            parts["lora_a"].transposed(), parts["lora_b"].transposed(), scale, parts.get("m")
        )
    if not sides:
        faults.append("it touches no module")
    if faults:
        raise LayerError(f"{shown(folder.name)} cannot be used as a layer", faults=faults)
    return Adapter(
        kind="mlx",
        files=(folder / CONFIG_FILE, folder / WEIGHTS_FILE),
        pairs=pairs,
        rest={},
        made_on=base_named(config, "model"),
        licence=readme_licence(folder),
    )


def _scale(settings: Mapping[str, Any], faults: list[str]) -> float:
    """The file's one scale; there is no default that all versions share."""
    scale, alpha, rank = (settings.get(key) for key in ("scale", "alpha", "rank"))
    if not isinstance(scale, int | float) or isinstance(scale, bool):
        faults.append(f"{CONFIG_FILE} states no scale under lora_parameters")
        return 0.0
    if alpha is None:
        return float(scale)
    if not all(isinstance(n, int | float) and n > 0 for n in (alpha, rank)):
        faults.append(f"{CONFIG_FILE}: alpha {alpha!r} and rank {rank!r} are no numbers above 0")
        return 0.0
    return float(scale) * float(alpha) / float(rank)  # type: ignore[arg-type]
