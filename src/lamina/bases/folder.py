"""A model folder (from the Hub or local) into a base's folder: weights by copy or link."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lamina.bases.header import FLOATS, ITEM_BYTES, TensorEntry, read_entries
from lamina.bases.hub import WEIGHTS, check_weights
from lamina.bases.identity import (
    CONFIG,
    DTYPE_NAMES,
    TEMPLATE,
    TOKENIZER,
    TOKENIZER_CONFIG,
    main_dtype,
    read_json,
)
from lamina.bases.normal import (
    normal_config,
    normal_tokenizer_config,
    without_names,
    write_json,
)
from lamina.bases.quantised import quantisation
from lamina.bases.shards import INDEX, write_shards
from lamina.bases.shell import QUANTISATION
from lamina.core.errors import BaseError

GENERATION = "generation_config.json"
_SPECIAL_MAP = "special_tokens_map.json"
_PLACEHOLDERS = frozenset({"<image_soft_token>", "<audio_soft_token>"})
_LICENCE = re.compile(r"^license:\s*[\"']?([\w.+-]+)", re.MULTILINE)
_README_BYTES = 8192


def source_files(source: Path) -> tuple[Path, ...]:
    """The files of a model folder that a base is made from, sorted by name. Raises BaseError."""
    named = {CONFIG, TOKENIZER, TOKENIZER_CONFIG, TEMPLATE, GENERATION, _SPECIAL_MAP, INDEX}
    found = {source / name for name in named if (source / name).is_file()}
    return tuple(sorted(found | set(_weights(source))))


def write_folder(source: Path, out: Path, *, link: bool) -> tuple[str, ...]:
    """Write config, weights, tokenizer and template of `source` into `out`; returns notes.

    Weights of one dtype, and packed ones, keep their files and bytes: linked when `link` (the
    source is ours), else copied. Weights of several floating dtypes are cast to the most frequent
    one, a shard at a time.
    Raises BaseError for what is missing or cannot be used safely.
    """
    config = read_json(source / CONFIG)
    _check_source(source, config)
    packed = quantisation(config) is not None  # its tensors have several dtypes for a reason
    files = _weights(source)
    entries = {path: read_entries(path) for path in files}
    every = [entry for part in entries.values() for entry in part]
    dtype = main_dtype(every)
    notes = _write_weights(source, entries, None if packed else dtype, out, link=link)
    normal = normal_config(config, dtype)
    write_json(out / CONFIG, normal | {QUANTISATION: config[QUANTISATION]} if packed else normal)
    if (source / GENERATION).is_file():
        write_json(out / GENERATION, without_names(read_json(source / GENERATION)))
    return notes + _write_tokenizer(source, config, out)


def readme_licence(source: Path) -> str | None:
    """The licence that a model card's front matter states, if there is one."""
    readme = source / "README.md"
    if not readme.is_file():
        return None
    with readme.open(encoding="utf-8", errors="replace") as handle:
        head = handle.read(_README_BYTES)
    matter = head.split("---")[1] if head.startswith("---") and head.count("---") > 1 else ""
    match = _LICENCE.search(matter)
    return match[1] if match else None


def _check_source(source: Path, config: dict[str, Any]) -> None:
    """Refuse, all at once, what makes a folder unusable."""
    faults = []
    tokenizer_config = _optional(source / TOKENIZER_CONFIG)
    if "auto_map" in config or "auto_map" in tokenizer_config:
        faults.append("it needs Python code of its own (auto_map), which is never run")
    try:
        quantisation(config)
    except BaseError as error:
        faults.append(f"{error.message}: take the plain model (--quantise packs it)")
    if not (source / TOKENIZER).is_file():
        faults.append(
            f"it has no {TOKENIZER}: make one with AutoTokenizer.from_pretrained(…)"
            ".save_pretrained(folder)"
        )
    if faults:
        raise BaseError(
            f"{source} cannot be used as a base",
            faults=faults,
            hint="choose another model, or mend the folder and pull it again",
        )


def _weights(source: Path) -> tuple[Path, ...]:
    """The safetensors files, by the index where there is one. Raises BaseError."""
    check_weights(sorted(path.name for path in source.iterdir()), str(source))
    if not (source / INDEX).is_file():
        return tuple(sorted(path for pattern in WEIGHTS for path in source.glob(pattern)))
    weight_map = read_json(source / INDEX).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    present = {path.name for pattern in WEIGHTS for path in source.glob(pattern)}
    missing = sorted(str(name) for name in names if name not in present)
    if missing or not names:
        raise BaseError(
            f"{source / INDEX} names weight files that are not there",
            faults=missing or ["it has no weight_map"],
            hint="fetch the missing files",
        )
    return tuple(source / name for name in sorted(names))


def _write_weights(
    source: Path,
    entries: dict[Path, tuple[TensorEntry, ...]],
    dtype: str | None,
    out: Path,
    *,
    link: bool,
) -> tuple[str, ...]:
    """Cast to `dtype`, None: as they are."""
    every = [entry for part in entries.values() for entry in part]
    others = sorted({entry.dtype for entry in every if entry.dtype in FLOATS} - {dtype})
    if dtype is not None and others:
        _cast_weights(entries, dtype, out)
        return (f"weights in {', '.join(others)} cast to {dtype}, as most of the weights are",)
    for path in entries:
        _place(path, out / path.name, link=link)
    if len(entries) > 1:
        if not (source / INDEX).is_file():
            raise BaseError(f"{source} has several weight files but no {INDEX}", hint="fetch it")
        shutil.copyfile(source / INDEX, out / INDEX)
    return ()


def _cast_weights(entries: dict[Path, tuple[TensorEntry, ...]], dtype: str, out: Path) -> None:
    """Rewrite floating tensors in `dtype`, each rounded once; integers stay as they are."""
    home = {entry.name: path for path, part in entries.items() for entry in part}
    target: torch.dtype = getattr(torch, DTYPE_NAMES[dtype])
    sizes = {
        entry.name: entry.elements * ITEM_BYTES[dtype if entry.dtype in FLOATS else entry.dtype]
        for part in entries.values()
        for entry in part
    }

    def tensor(name: str) -> Tensor:
        with safe_open(home[name], framework="pt") as handle:
            found: Tensor = handle.get_tensor(name)
        return found.to(target) if found.is_floating_point() else found

    write_shards(sizes, tensor, out)


def _place(path: Path, target: Path, *, link: bool) -> None:
    if link:
        try:
            os.link(path.resolve(), target)
        except OSError:  # another file system, or one without links: a copy serves as well
            shutil.copyfile(path, target)
    else:
        shutil.copyfile(path, target)


def _write_tokenizer(source: Path, config: dict[str, Any], out: Path) -> tuple[str, ...]:
    raw = _optional(source / TOKENIZER_CONFIG)
    tokenizer = read_json(source / TOKENIZER)
    notes = _drop_placeholders(tokenizer, config)
    if notes:
        write_json(out / TOKENIZER, tokenizer)
    else:
        shutil.copyfile(source / TOKENIZER, out / TOKENIZER)
    normal = normal_tokenizer_config(raw, _optional(source / _SPECIAL_MAP))
    write_json(out / TOKENIZER_CONFIG, normal)
    template = _template(source, raw)
    if template is not None:
        (out / TEMPLATE).write_text(template, encoding="utf-8")
    return notes


def _drop_placeholders(tokenizer: dict[str, Any], config: dict[str, Any]) -> tuple[str, ...]:
    """Take image and audio placeholders without an embedding row out of a text model's tokenizer.

    Gemma 3 shares one tokenizer between its text-only and its vision models. Mutates `tokenizer`.
    """
    rows, added = config.get("vocab_size"), tokenizer.get("added_tokens")
    if not isinstance(rows, int) or not isinstance(added, list):
        return ()
    beyond = [
        token
        for token in added
        if token.get("content") in _PLACEHOLDERS and token.get("id", 0) >= rows
    ]
    tokenizer["added_tokens"] = [token for token in added if token not in beyond]
    return tuple(
        f"token {token['content']} (id {token['id']}) has no embedding row: taken out of the "
        "tokenizer"
        for token in beyond
    )


def _template(source: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """The chat template: its own file, or a string or a list of named ones in the config."""
    if (source / TEMPLATE).is_file():
        return (source / TEMPLATE).read_text(encoding="utf-8")
    given = tokenizer_config.get("chat_template")
    if isinstance(given, list):
        named = {item.get("name"): item.get("template") for item in given if isinstance(item, dict)}
        given = named.get("default")
    return given if isinstance(given, str) and given.strip() else None


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
