"""What is it that somebody has? By the files' own words, never by trying."""

from pathlib import Path
from typing import get_args

from lamina.bases.identity import CONFIG
from lamina.core.errors import LayerError, UsageError
from lamina.core.imported import ImportKind
from lamina.imports import gguf_lora, kohya, mlx
from lamina.imports.adapter import shown
from lamina.imports.files import json_of, tensors_of
from lamina.lowrank.codec import CONFIG_FILE, WEIGHTS_FILE, is_pickle

KINDS: tuple[ImportKind, ...] = get_args(ImportKind)
_MOST_FOLDERS = 64


def parse_kind(text: str | None) -> ImportKind | None:
    """The kind that the user named. Raises UsageError for another."""
    found = next((kind for kind in KINDS if kind == text), None)
    if text is not None and found is None:
        raise UsageError(f"--from {text!r}: known are {', '.join(KINDS)}")
    return found


def detect(path: Path) -> tuple[ImportKind, Path]:
    """What lies at `path`, and the file or folder that its reader takes.

    Raises LayerError, which says what was found instead.
    """
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise LayerError(
            f"there is no {path}",
            hint="give a folder, a .safetensors or a .gguf file, or hf:org/name",
        )
    if path.suffix == ".gguf":
        return ("gguf-lora" if gguf_lora.is_adapter(path) else "checkpoint"), path
    keys = list(tensors_of(path))  # refuses pickles
    if keys and all(map(kohya.OF_IMAGES.fullmatch, keys)):
        return "kohya", path
    if any(kohya.PART.fullmatch(key) or ".hada_" in key or ".lokr_" in key for key in keys):
        return "kohya", path
    if any(".lora_A." in key or ".lora_B." in key for key in keys):
        return "peft", _beside(path, WEIGHTS_FILE)
    if any(mlx.KEY.fullmatch(key) for key in keys):
        return "mlx", _beside(path, mlx.WEIGHTS_FILE)
    return "checkpoint", path


def _beside(path: Path, expected: str) -> Path:
    """The folder of an adapter's weights. Raises LayerError where its config does not lie there."""
    if path.name != expected or not (path.parent / CONFIG_FILE).is_file():
        raise LayerError(
            f"{shown(path.name)} has factors but not their scale",
            hint=f"give a folder in which it is {expected}, beside its {CONFIG_FILE}",
        )
    return path.parent


def _folder(path: Path) -> tuple[ImportKind, Path]:
    names = {each.name for each in path.iterdir()}
    if CONFIG_FILE in names:
        config = json_of(path / CONFIG_FILE)
        if "peft_type" not in config and {"lora_parameters", "fine_tune_type"} & set(config):
            return "mlx", path
        if WEIGHTS_FILE in names:
            return "peft", path
        if mlx.WEIGHTS_FILE in names:
            return "mlx", path
    if any(n.startswith("model") and n.endswith(".safetensors") for n in names) and CONFIG in names:
        return "checkpoint", path
    files = sorted(n for n in names if n.endswith((".safetensors", ".gguf")))
    if len(files) == 1 and files[0] not in (WEIGHTS_FILE, mlx.WEIGHTS_FILE):
        return detect(path / files[0])
    inner = sorted(
        each for each in names if (path / each / CONFIG_FILE).is_file()
    )[:_MOST_FOLDERS]  # fmt: skip
    if len(inner) == 1:
        return _folder(path / inner[0])
    raise LayerError(
        f"{path} holds nothing that can be imported",
        faults=[*_missing(names), *(f"{shown(each)} is an adapter's folder" for each in inner)],
        hint="give one of these folders"
        if inner
        else "known: a PEFT or mlx-lm adapter's folder, a "
        "model's folder, a kohya or diffusers .safetensors file, a GGUF LoRA",
    )


def _missing(names: set[str]) -> list[str]:
    pickles = [
        f"{shown(name)} is a pickle, which is never opened: save it as safetensors where you trust "
        "it (safe_serialization=True, peft's default since 0.5)"
        for name in sorted(names)
        if is_pickle(name)
    ]
    if CONFIG_FILE in names or WEIGHTS_FILE in names:
        pickles += [f"no {name}" for name in (CONFIG_FILE, WEIGHTS_FILE) if name not in names]
    return pickles
