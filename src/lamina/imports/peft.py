"""A PEFT adapter as the tools of its family leave it: adapter_config.json and a safetensors file.

Keys are `base_model.model.<module>.lora_A.weight` (R, I) and `.lora_B.weight` (O, R), with an
adapter's name before `.weight` in older files, `.lora_magnitude_vector` (O,) for DoRA and
`.lora_B.bias` (O,) with `lora_bias`; whatever else is there is a whole tensor. scale =
lora_alpha / r, or / sqrt(r) with `use_rslora`, both after `rank_pattern` and `alpha_pattern`.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch

from lamina.bases.families import layer_of
from lamina.bases.folder import readme_licence
from lamina.core.errors import LayerError
from lamina.imports.adapter import MERGE_FIRST, Adapter, Pair, Stored, shown
from lamina.imports.base import Beneath
from lamina.imports.files import base_named, json_of, tensors_of
from lamina.imports.names import unwrapped
from lamina.imports.patterns import compiled, pattern_faults, selects, value_for
from lamina.lowrank.codec import CONFIG_FILE, MAX_ALPHA, PREFIX, WEIGHTS_FILE

README = "README.md"
_DEFAULT = 8
"""PEFT's r and lora_alpha where the config names none."""
_LOW_RANK = re.compile(
    r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.(?P<leaf>weight|bias)"
)
_MAGNITUDE = re.compile(
    r"(?P<module>.+)\.lora_magnitude_vector(?:\.(?P<adapter>(?!weight$)[^.]+))?(?:\.weight)?"
)
_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save(?:\.(?P<adapter>[^.]+))?\.(?P<leaf>\w+)")
_EMBEDDED = re.compile(r".+\.lora_embedding_[AB](?:\.[^.]+)?")
_ORIGINAL = re.compile(r".+\.original_module\.\w+")
_TOKENS = re.compile(r".+\.(?:token_adapter\..+|trainable_tokens_\w+(?:\.[^.]+)?)")
_MUTATING = ("pissa", "olora", "corda", "loftq", "lora_ga")
_REFUSED = {
    "layer_replication": "it repeats decoder layers",
    "alora_invocation_tokens": "an activated LoRA applies only after certain tokens",
    "arrow_config": "it chooses between experts by token",
    "monteclora_config": "it samples its update",
    "kasa_config": "it rewrites the base's weights",
    "use_qalora": "it pools its inputs",
    "use_bdlora": "its factors are block-diagonal",
    "megatron_config": "its linears are Megatron's, which are split",
}
_QUANTISED = re.compile(r"(?:bnb|[48]bits?|gptq|awq|nf4|int8)(?![a-z])", re.IGNORECASE)


def read(folder: Path, base: Beneath) -> Adapter:
    """Read an adapter's folder. Raises LayerError with every fault at once."""
    config = json_of(folder / CONFIG_FILE)
    weights = folder / WEIGHTS_FILE
    tensors = tensors_of(weights)
    faults = _config_faults(config, base)
    sorted_keys = _Keys(tensors, faults)
    pairs = _pairs(config, sorted_keys, base, faults) if not faults else {}
    if not sorted_keys.sides and not sorted_keys.rest:
        faults.append("it touches no module")
    if not faults:
        faults += _selection_faults(config, pairs, base)
    if faults:
        raise LayerError(f"{shown(folder.name)} cannot be used as a layer", faults=faults)
    made_on = base_named(config, "base_model_name_or_path")
    adapter = Adapter(
        kind="peft",
        files=(folder / CONFIG_FILE, weights),
        pairs=pairs,
        rest=sorted_keys.rest,
        made_on=made_on,
        licence=readme_licence(folder),
        notes=tuple(_notes(config, sorted_keys, made_on)),
    )

    def reference(out: Path, without: Collection[str]) -> None:
        _write_reference(out, config, adapter, base, without)

    return replace(adapter, reference=reference)


class _Keys:
    """A file's keys sorted by what they are."""

    def __init__(self, tensors: Mapping[str, Stored], faults: list[str]) -> None:
        self.sides: dict[str, dict[str, Stored]] = {}
        """module -> A, B, magnitude, bias."""
        self.rest: dict[str, Stored] = {}
        self.dropped = 0
        """Untouched copies that training tools keep beside a saved module."""
        self._adapters: set[str] = set()
        for key, tensor in tensors.items():
            self._sort(unwrapped(key), tensor, faults)
        if len(self._adapters) > 1:
            faults.append(
                f"it holds several adapters: {', '.join(map(shown, sorted(self._adapters)))}; "
                "save the one that is meant by itself: "
                "save_pretrained(folder, selected_adapters=[NAME])"
            )

    def _sort(self, key: str, tensor: Stored, faults: list[str]) -> None:
        if match := _LOW_RANK.fullmatch(key):
            side = match["side"] if match["leaf"] == "weight" else f"bias of {match['side']}"
        elif match := _MAGNITUDE.fullmatch(key):
            side = "magnitude"
        elif match := _SAVED.fullmatch(key):
            self._note(match["adapter"])
            self._whole(f"{match['module']}.{match['leaf']}", tensor, faults)
            return
        elif _ORIGINAL.fullmatch(key):
            self.dropped += 1
            return
        elif _EMBEDDED.fullmatch(key) or _TOKENS.fullmatch(key):
            faults.append(
                f"{shown(key)}: it trains embeddings, which a layer cannot hold; {MERGE_FIRST} "
                "with --ignore-rest, or pull it as a base of its own"
            )
            return
        else:
            self._whole(key, tensor, faults)
            return
        self._note(match["adapter"])
        sides = self.sides.setdefault(match["module"], {})
        if side in sides:
            faults.append(f"{shown(key)}: is there twice")
        sides[side] = tensor

    def _whole(self, key: str, tensor: Stored, faults: list[str]) -> None:
        if key in self.rest:
            faults.append(f"{shown(key)}: is there twice")
        self.rest[key] = tensor

    def _note(self, adapter: str | None) -> None:
        if adapter is not None:
            self._adapters.add(adapter)


def _config_faults(config: Mapping[str, Any], base: Beneath) -> list[str]:
    """Everything in the config that makes the update something else than W + s B A."""
    if config.get("peft_type") != "LORA":
        return [
            f"peft_type is {config.get('peft_type')!r}; only LORA is a low-rank sum: {MERGE_FIRST}"
        ]
    faults = [f"{key}: {why}; {MERGE_FIRST}" for key, why in _REFUSED.items() if config.get(key)]
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_MUTATING):
        faults.append(
            f"init_lora_weights = {start!r}: training began from changed base weights, so that the "
            "factors alone say nothing about this base; save it as plain LoRA with "
            "save_pretrained(…, path_initial_model_for_weight_conversion=…), or " + MERGE_FIRST
        )
    for key in ("r", "lora_alpha"):
        value = config.get(key, _DEFAULT)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value <= MAX_ALPHA:
            faults.append(f"{key} is {shown(repr(value))}, not a number from 0 to {MAX_ALPHA:g}")
    for key in ("rank_pattern", "alpha_pattern"):
        faults += pattern_faults(config, key, base.shapes.keys())
    return faults


def _pairs(
    config: Mapping[str, Any], keys: _Keys, base: Beneath, faults: list[str]
) -> dict[str, Pair]:
    ranks, alphas = compiled(config, "rank_pattern"), compiled(config, "alpha_pattern")
    found = {}
    for module, sides in sorted(keys.sides.items()):
        missing = sorted({"A", "B"} - set(sides))
        if missing:
            faults.append(f"{shown(module)}: no lora_{missing[0]}")
            continue
        if "bias of A" in sides:
            faults.append(f"{shown(module)}: lora_A has a bias, which no tool applies")
        known = base.linears.find(module) is not None  # expressions meet only such names
        rank = value_for(ranks if known else (), module, config.get("r", _DEFAULT))
        alpha = value_for(alphas if known else (), module, config.get("lora_alpha", _DEFAULT))
        own = sides["A"].shape[0] if len(sides["A"].shape) == 2 else 0
        if known and own and rank != own:
            faults.append(f"{shown(module)}: the config says rank {rank}, the tensors have {own}")
        if "magnitude" in sides and not config.get("use_dora"):
            faults.append(f"{shown(module)}: a DoRA magnitude, but the config says no use_dora")
        if config.get("use_dora") and "magnitude" not in sides:
            faults.append(f"{shown(module)}: use_dora without lora_magnitude_vector")
        scale = float(alpha) / max(own, 1) ** (0.5 if config.get("use_rslora") else 1.0)
        found[module] = Pair(
            sides["A"], sides["B"], scale, sides.get("magnitude"), sides.get("bias of B")
        )
    return found


def _selection_faults(
    config: Mapping[str, Any], pairs: Mapping[str, Pair], base: Beneath
) -> list[str]:
    """Modules with tensors that the config's targets leave out: PEFT would pass over them."""
    own = {module: base.linears.find(module) for module in pairs}
    modules = {module for module, name in own.items() if name is not None}
    faults = [
        f"{shown(module)}: has factors, but target_modules does not name it"
        for module in sorted(modules)
        if not _named_by(config.get("target_modules"), (module, own[module]), otherwise=True)
    ]
    if config.get("exclude_modules"):
        faults += [
            f"{shown(module)}: has factors, but exclude_modules names it"
            for module in sorted(modules)
            if _named_by(config["exclude_modules"], (module, own[module]), otherwise=False)
        ]
    layers = config.get("layers_to_transform")
    if layers is not None:
        kept = {layers} if isinstance(layers, int) else set(layers)
        faults += [
            f"{shown(module)}: has factors, but layers_to_transform leaves its layer out"
            for module in sorted(modules)
            if layer_of(module) not in kept
        ]
    return faults


def _named_by(targets: Any, names: tuple[str, str | None], *, otherwise: bool) -> bool:
    """Whether PEFT's targets name a module by the file's name or the base's; `otherwise` where
    they are an expression that is not evaluated."""
    found = selects(targets, {name for name in names if name is not None})
    return otherwise if found is None else bool(found)


def _notes(config: Mapping[str, Any], keys: _Keys, made_on: str | None) -> list[str]:
    notes = []
    if config.get("use_rslora"):
        notes.append("rank-stabilised: scales are alpha / sqrt(rank)")
    if config.get("fan_in_fan_out"):
        notes.append("fan_in_fan_out is said, but the base's modules are linears: it means nothing")
    if made_on and _QUANTISED.search(made_on):
        notes.append(
            f"it was trained over packed weights ({made_on}): over plain ones its answers differ "
            "a little; exams tell how much"
        )
    if keys.dropped:
        notes.append(f"{keys.dropped} untouched copies of saved modules are left out")
    return notes


def _write_reference(
    folder: Path,
    config: Mapping[str, Any],
    adapter: Adapter,
    base: Beneath,
    without: Collection[str],
) -> None:
    """The adapter under the base's own names, with the fields that decide what PEFT computes.

    A stranger's config is not handed on whole: it can name expressions and modules to import.
    """
    names = {module: _own(module, base) for module in adapter.pairs}
    tensors, saved, biases = {}, set(), False
    for module, pair in adapter.pairs.items():
        stem = PREFIX + names[module]
        tensors[f"{stem}.lora_A.weight"] = pair.a_RI.read()
        tensors[f"{stem}.lora_B.weight"] = pair.b_OR.read()
        if pair.magnitude_O is not None:
            tensors[f"{stem}.lora_magnitude_vector"] = pair.magnitude_O.read()
        if pair.bias_O is not None:
            tensors[f"{stem}.lora_B.bias"] = pair.bias_O.read()
    adapted = set(names.values())
    for name, tensor in adapter.rest.items():
        if name in without:
            continue
        own = base.tensors.find(name) or name
        module, _, leaf = own.rpartition(".")
        if module in adapted:
            tensors[f"{PREFIX}{module}.base_layer.{leaf}"] = tensor.read()
            biases = biases or leaf == "bias"
            continue
        tensors[PREFIX + own] = tensor.read()
        saved.add(module)
    unchanged = all(module == name for module, name in names.items())
    keys = ("r", "lora_alpha", "use_rslora", "use_dora", "lora_bias")
    patterns = ("rank_pattern", "alpha_pattern")
    kept: dict[str, Any] = {key: config[key] for key in keys if config.get(key) is not None}
    for key in patterns:
        table = compiled(config, key)
        said = {names[m]: value_for(table, m, 0) for m in adapter.pairs}
        resolved = {re.escape(name): value for name, value in said.items() if value}
        kept[key] = config.get(key) or {} if unchanged else resolved
    kept |= {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "target_modules": sorted(adapted),
        "modules_to_save": sorted(saved) or None,
        "bias": "lora_only" if biases else "none",
    }
    (folder / CONFIG_FILE).write_text(json.dumps(kept), encoding="utf-8")
    whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
    safetensors.torch.save_file(whole, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def _own(module: str, base: Beneath) -> str:
    """The base's name of a module, linears of the decoder or not."""
    found = base.linears.find(module) or base.tensors.find(f"{module}.weight") or module
    return found.removesuffix(".weight")
