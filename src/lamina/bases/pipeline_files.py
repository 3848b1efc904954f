"""A diffusers pipeline's folder as a base: which parts, flat file names, one identity. No torch.

A base's files are plain names in one folder, so `unet/config.json` is `unet--config.json` there.
The identity covers every part: the tensors of denoiser, autoencoder and text encoder, what builds
them, the noise schedule, and the tokenizer.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from lamina.bases.header import FLOATS, TensorEntry, read_entries
from lamina.bases.identity import (
    CONFIG,
    DTYPE_NAMES,
    TOKENIZER,
    TOKENIZER_CONFIG,
    architecture_digest,
    main_dtype,
    read_json,
    template_digest,
    tensor_digest,
    tokenizer_digest,
)
from lamina.bases.normal import without_names, write_json
from lamina.core.digest import digest_json
from lamina.core.errors import BaseError
from lamina.core.manifests import BaseConfig

INDEX = "model_index.json"
SEPARATOR = "--"
DENOISERS = ("unet", "transformer")
MODELS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "unet": ("UNet2DConditionModel",),
        "transformer": ("PixArtTransformer2DModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel", "T5EncoderModel"),
    }
)
"""Parts with tensors, and the classes of diffusers and transformers that they may be of."""
NOISE = "scheduler"
WORDS = "tokenizer"
HUB_WANTED = (
    INDEX,
    "scheduler/*.json",
    "tokenizer/*.json",
    "tokenizer/*.txt",
    "tokenizer/*.model",
    *(
        f"{part}/{name}"
        for part in MODELS
        for name in (
            CONFIG,
            "*.index.json",
            "diffusion_pytorch_model.safetensors",
            "diffusion_pytorch_model-*-of-*.safetensors",
            "model.safetensors",
            "model-*-of-*.safetensors",
        )
    ),
)
"""The only files of a pipeline that are ever fetched from the Hub."""
_NOT_NEEDED = frozenset({"safety_checker", "feature_extractor", "image_encoder"})
_SCHEDULE_CONFIG = "scheduler_config.json"


def is_pipeline(directory: Path) -> bool:
    """Whether a folder, as a source or as a base, holds a diffusers pipeline."""
    return (directory / INDEX).is_file()


def source_files(source: Path) -> tuple[Path, ...]:
    """The files of a pipeline's folder that a base is made from, sorted. Raises BaseError."""
    parts, _ = _parts(source)
    found = [source / INDEX, source / NOISE / _SCHEDULE_CONFIG]
    for part in parts:
        found += [source / part / CONFIG, *_weights(source / part)]
    found += [path for path in (source / WORDS).glob("*") if path.is_file()]
    return tuple(sorted(found))


def write_folder(source: Path, out: Path, *, link: bool) -> tuple[str, ...]:
    """Write the parts of the pipeline in `source` into the base's folder `out`; returns notes.

    Weights keep their bytes: linked where `link`, else copied. Raises BaseError with all faults.
    """
    parts, left_out = _parts(source)
    for part in parts:
        write_json(out / _flat(part, CONFIG), without_names(read_json(source / part / CONFIG)))
        for path in _weights(source / part):
            _place(path, out / _flat(part, path.name), link=link)
        for path in (source / part).glob("*.safetensors.index.json"):
            shutil.copyfile(path, out / _flat(part, path.name))
    schedule = read_json(source / NOISE / _SCHEDULE_CONFIG)
    write_json(out / _flat(NOISE, _SCHEDULE_CONFIG), schedule)
    _write_tokenizer(source / WORDS, out)
    write_json(out / INDEX, _index(source, parts, schedule))
    return tuple(f"{part} is left out: it is not needed to draw" for part in left_out)


def check(directory: Path) -> None:
    """Raise BaseError listing what a base's folder, made by whomever, lacks of a pipeline."""
    with nested(directory) as folder:
        _parts(folder)
        faults = [
            f"it has no {part}/{name}"
            for part, name in ((WORDS, TOKENIZER), (WORDS, TOKENIZER_CONFIG))
            if not (folder / part / name).is_file()
        ]
        if not isinstance(read_json(folder / INDEX).get("_class_name"), str):
            faults.append(f"{INDEX} does not say which pipeline it is")
        if not isinstance(read_json(folder / "text_encoder" / CONFIG).get("vocab_size"), int):
            faults.append(f"text_encoder/{CONFIG} has no vocab_size")
    if faults:
        raise BaseError("this is no image base", faults=faults, hint="pull a pipeline of diffusers")


def module_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """name -> shape of the weight of every linear (O, I) and convolution (O, I, kh, kw) of an image
    base, by the names that layers have for them; from headers alone. Raises BaseError."""
    return {
        f"{part}.{entry.name.removesuffix('.weight')}": entry.shape
        for part in MODELS
        for path in directory.glob(f"{part}{SEPARATOR}*.safetensors")
        for entry in read_entries(path)
        if entry.name.endswith(".weight") and len(entry.shape) in (2, 4)
    }


def describe(directory: Path, *, licence: str | None) -> BaseConfig:
    """What the pipeline in a base's folder is; reads all of the weights. Raises BaseError."""
    index = read_json(directory / INDEX)
    parts = [part for part in MODELS if part in index]
    tensors, architecture = {}, {}
    entries: list[TensorEntry] = []
    for part in parts:
        files = sorted(directory.glob(f"{part}{SEPARATOR}*.safetensors"))
        tensors[part] = tensor_digest(files)
        config = _unprivate(read_json(directory / _flat(part, CONFIG)))
        architecture[part] = [index[part], architecture_digest(config)]
        entries += [entry for path in files for entry in read_entries(path)]
    schedule = read_json(directory / _flat(NOISE, _SCHEDULE_CONFIG))
    architecture[NOISE] = [index[NOISE], digest_json(_unprivate(schedule))]
    text = read_json(directory / _flat("text_encoder", CONFIG))
    with TemporaryDirectory(prefix="lamina-tokenizer-") as scratch:
        for name in (TOKENIZER, TOKENIZER_CONFIG):
            (Path(scratch) / name).symlink_to((directory / _flat(WORDS, name)).resolve())
        words = tokenizer_digest(Path(scratch))
    longest = read_json(directory / _flat(WORDS, TOKENIZER_CONFIG)).get("model_max_length")
    return BaseConfig(
        tensors=digest_json(tensors),
        architecture=digest_json(architecture),
        tokenizer=digest_json({"tokenizer": words, "model_max_length": longest}),
        template=template_digest(""),
        family=str(index["_class_name"]),
        parameters=sum(entry.elements for entry in entries if entry.dtype in FLOATS),
        dtype=DTYPE_NAMES[main_dtype(entries)],
        vocab_size=int(text["vocab_size"]),
        template_origin="own",
        licence=licence,
        modality="image",
    )


@contextmanager
def nested(directory: Path) -> Iterator[Path]:
    """A base's flat folder as diffusers reads it, for a block: links in a temporary folder."""
    with TemporaryDirectory(prefix="lamina-pipeline-") as scratch:
        place_nested(directory, Path(scratch), link=True)
        yield Path(scratch)


def place_nested(directory: Path, out: Path, *, link: bool) -> None:
    """A base's files under the names that diffusers gives them, as links or copies."""
    for path in sorted(directory.iterdir()):
        part, separator, name = path.name.partition(SEPARATOR)
        target = out / part / name if separator else out / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            target.symlink_to(path.resolve())
        else:
            shutil.copyfile(path, target)


def _unprivate(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without what diffusers notes for itself: its version, a class, where it was loaded from."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _flat(part: str, name: str) -> str:
    return f"{part}{SEPARATOR}{name}"


def _parts(source: Path) -> tuple[list[str], list[str]]:
    """The parts with tensors, and the ones that are left out.

    Raises BaseError listing every part that is missing, of a kind that is not known, or more than
    is known to be made use of.
    """
    index = read_json(source / INDEX)
    named = {
        part: given[1]
        for part, given in index.items()
        if isinstance(given, list) and len(given) == 2 and isinstance(given[1], str)
    }
    faults = [
        f"{part}: {named[part]} is not known; known: {', '.join(known)}"
        for part, known in MODELS.items()
        if part in named and named[part] not in known
    ]
    denoisers = [part for part in DENOISERS if part in named]
    if len(denoisers) != 1:
        faults.append(f"it has {len(denoisers)} of {' and '.join(DENOISERS)}, not one")
    missing = [part for part in ("vae", "text_encoder", NOISE, WORDS) if part not in named]
    faults += [f"it has no {part}" for part in missing]
    others = sorted(set(named) - set(MODELS) - _NOT_NEEDED - {NOISE, WORDS})
    faults += [f"{part}: a part that is not known" for part in others]
    if not faults:
        if not (source / NOISE / _SCHEDULE_CONFIG).is_file():
            faults.append(f"it has no {NOISE}/{_SCHEDULE_CONFIG}")
        for part in (*denoisers, "vae", "text_encoder"):
            if not (source / part / CONFIG).is_file():
                faults.append(f"it has no {part}/{CONFIG}")
            elif not _weights(source / part):
                faults.append(f"it has no {part}/*.safetensors (pickles are never opened)")
    if faults:
        raise BaseError(
            f"the pipeline in {source} cannot be used as a base",
            faults=faults,
            hint="give a text-to-image pipeline of diffusers: a UNet or a PixArt transformer, "
            "an AutoencoderKL, and one text encoder with its tokenizer",
        )
    return [*denoisers, "vae", "text_encoder"], sorted(set(named) & _NOT_NEEDED)


def _weights(folder: Path) -> list[Path]:
    """Plain weights, not those of variants such as `.fp16.`, where there are plain ones."""
    every = sorted(folder.glob("*.safetensors"))
    return [path for path in every if path.name.count(".") == 1] or every


def _index(source: Path, parts: list[str], schedule: dict[str, Any]) -> dict[str, Any]:
    index = read_json(source / INDEX)
    kept = {part: index[part] for part in (*parts, WORDS, NOISE)}
    kept[NOISE] = ["diffusers", schedule.get("_class_name", kept[NOISE][1])]
    if "unet" in parts:
        kept |= dict.fromkeys(sorted(_NOT_NEEDED), (None, None))
        kept["requires_safety_checker"] = False
    return {"_class_name": index["_class_name"], **kept}


def _write_tokenizer(source: Path, out: Path) -> None:
    """tokenizer.json and its config; made by transformers where there is only an older form."""
    if not (source / TOKENIZER).is_file():
        from transformers import AutoTokenizer

        try:
            made = AutoTokenizer.from_pretrained(
                source, local_files_only=True, trust_remote_code=False
            )
            made.backend_tokenizer.save(str(out / _flat(WORDS, TOKENIZER)))
        except Exception as error:  # what tokenizers raise is of many kinds
            raise BaseError(
                f"the tokenizer in {source} cannot be read: {type(error).__name__}: {error}",
                hint="save it with tokenizer.json: AutoTokenizer.from_pretrained(…)"
                ".save_pretrained(folder)",
            ) from error
    else:
        shutil.copyfile(source / TOKENIZER, out / _flat(WORDS, TOKENIZER))
    config = read_json(source / TOKENIZER_CONFIG)
    if "auto_map" in config:
        raise BaseError(
            f"{source} needs Python code of its own (auto_map), which is never run",
            hint="use another pipeline",
        )
    write_json(out / _flat(WORDS, TOKENIZER_CONFIG), config)


def _place(path: Path, target: Path, *, link: bool) -> None:
    if link:
        try:
            os.link(path.resolve(), target)
            return
        except OSError:  # another file system, or one without links: a copy serves as well
            pass
    shutil.copyfile(path, target)
