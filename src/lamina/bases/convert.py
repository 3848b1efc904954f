"""`pull`: a source becomes a folder with a base's files, one form and one identity."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from lamina.bases import pipeline_files
from lamina.bases.checks import check_base, ensure_template
from lamina.bases.fetch import Fetched, fetch
from lamina.bases.folder import source_files, write_folder
from lamina.bases.gguf import write_gguf
from lamina.bases.identity import read_json
from lamina.bases.quantised import described
from lamina.bases.sources import Source
from lamina.core.digest import canonical_json, digest_file, digest_json, short
from lamina.core.errors import LaminaError
from lamina.core.files import atomic_directory, atomic_write
from lamina.core.manifests import BaseConfig

CONVERTER = 1
"""Raise it when the same source would give other bytes: finished conversions are then redone."""


@dataclass(frozen=True)
class PulledBase:
    """A base as a folder, ready to be put into a store."""

    directory: Path
    """config.json, generation_config.json where there is one, model*.safetensors (and their index),
    tokenizer.json, tokenizer_config.json, chat_template.jinja; nothing else. Of an image base, see
    `pipeline_files`."""
    config: BaseConfig
    notes: tuple[str, ...]
    """What was decided on the way, to be said aloud."""
    source: str
    """Where it came from, resolved; names no local path."""


def pull(
    source: Source,
    work: Path,
    *,
    progress: Callable[[str], None],
    hub_endpoint: str | None = None,
) -> PulledBase:
    """Fetch and convert `source` below `work`.

    A second call with the same `work` reuses finished downloads and a finished conversion, each
    checked against its digest, and starts over what was cut short. `hub_endpoint` replaces the
    Hub's address. Raises BaseError, StoreFullError.
    """
    work.mkdir(parents=True, exist_ok=True)
    fetched = fetch(source, work, progress=progress, endpoint=hub_endpoint)
    target = work / "bases" / _key(fetched)
    record = target.with_suffix(".json")
    done = _finished(target, record)
    if done is None:
        shutil.rmtree(target, ignore_errors=True)
        progress(f"{source}: converting")
        done = _convert(fetched, target, record)
        progress(f"{source}: converted, {done[0].parameters / 1e6:.0f} M parameters")
    else:
        progress(f"{source}: already converted")
    config, notes = done
    return PulledBase(target, config, fetched.notes + notes, fetched.source)


def _key(fetched: Fetched) -> str:
    """A folder name from the digest of everything that decides the conversion's result."""
    files = _source_files(fetched.path) if fetched.path.is_dir() else (fetched.path,)
    return short(
        digest_json(
            {
                "converter": CONVERTER,
                "licence": fetched.licence,
                "files": {_name(path, fetched.path): digest_file(path) for path in files},
            }
        )
    )


def _convert(fetched: Fetched, target: Path, record: Path) -> tuple[BaseConfig, tuple[str, ...]]:
    """Build `target` and, before it appears, the record that a later call checks it against."""
    with atomic_directory(target) as out:
        if fetched.path.is_dir() and pipeline_files.is_pipeline(fetched.path):
            return _convert_pipeline(fetched, out, record)
        if fetched.path.is_dir():
            notes = write_folder(fetched.path, out, link=fetched.ours)
        else:
            write_gguf(fetched.path, out)
            notes = ("GGUF: dequantised and rounded once to bfloat16",)
        check_base(out)
        origin, said = ensure_template(out)
        config = described(out, template_origin=origin, licence=fetched.licence)
        notes += said
        value = {"config": config.model_dump(mode="json"), "notes": list(notes)}
        atomic_write(record, canonical_json(value))
    return config, notes


def _convert_pipeline(
    fetched: Fetched, out: Path, record: Path
) -> tuple[BaseConfig, tuple[str, ...]]:
    """The same of a diffusers pipeline."""
    notes = pipeline_files.write_folder(fetched.path, out, link=fetched.ours)
    config = described_pipeline(out, licence=fetched.licence)
    value = {"config": config.model_dump(mode="json"), "notes": list(notes)}
    atomic_write(record, canonical_json(value))
    return config, notes


def described_pipeline(folder: Path, *, licence: str | None) -> BaseConfig:
    """What the image base in a folder is; loaded once, so that what cannot work is refused.

    Raises BaseError, MissingPartError.
    """
    from lamina.bases.pipeline import linears, load

    pipeline_files.check(folder)
    config = pipeline_files.describe(folder, licence=licence)
    linears(load(folder, dtype=getattr(torch, config.dtype)).model)
    return config


def _source_files(source: Path) -> tuple[Path, ...]:
    pipeline = pipeline_files.is_pipeline(source)
    return pipeline_files.source_files(source) if pipeline else source_files(source)


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if root.is_dir() else path.name


def _finished(target: Path, record: Path) -> tuple[BaseConfig, tuple[str, ...]] | None:
    """A conversion that is there whole and still has the identity that was recorded, or None."""
    if not (target.is_dir() and record.is_file()):
        return None
    try:
        value = read_json(record)
        config = BaseConfig.parse(value["config"], str(record))
        if config.draws:
            now = pipeline_files.describe(target, licence=config.licence)
        else:
            now = described(target, template_origin=config.template_origin, licence=config.licence)
    except (LaminaError, OSError, KeyError):
        return None
    return (config, tuple(value["notes"])) if now == config else None
