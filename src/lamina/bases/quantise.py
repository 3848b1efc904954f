"""A base's folder becomes another base's: its decoder's linears in 4 or 8 bits, the rest as is."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from lamina.bases.convert import PulledBase
from lamina.bases.header import read_entries
from lamina.bases.identity import CONFIG, read_json, weight_files
from lamina.bases.normal import write_json
from lamina.bases.quantised import PACKINGS, described, quantisation
from lamina.bases.shards import INDEX, write_shards
from lamina.bases.shell import QUANTISATION, Files, linear_shapes
from lamina.core.errors import BaseError
from lamina.core.files import atomic_directory
from lamina.core.manifests import BaseConfig, Quantisation

_WEIGHT = ".weight"


def quantise(
    directory: Path,
    config: BaseConfig,
    source: str,
    kind: Quantisation,
    target: Path,
    *,
    progress: Callable[[str], None],
) -> PulledBase:
    """Write the folder `target`: `directory` with every linear of its decoder packed.

    A tensor at a time, from the stored dtype; embeddings, norms and head keep their bytes. The
    result says what it was made from; its identity is over its own tensors and configuration.
    Raises BaseError for an image base, for one that is quantised already, or whose tensors have
    other names than its modules; MissingPartError.
    """
    if config.draws:
        raise BaseError(
            f"{source} draws: image bases are not quantised", hint="pull it without --quantise"
        )
    if quantisation(read_json(directory / CONFIG)) is not None:
        raise BaseError(
            f"{source} is quantised already", hint="quantise the base that it was made from"
        )
    packing, files = PACKINGS[kind], Files(directory)
    names = _packed_names(directory, files)
    pieces: dict[str, tuple[str, str]] = {}
    sizes: dict[str, int] = {}
    entries = {e.name: e for path in weight_files(directory) for e in read_entries(path)}
    shapes = _Shapes(packing.pack)
    for name, entry in entries.items():
        if name not in names:
            sizes[name] = entry.end - entry.start
            continue
        module = name.removesuffix(_WEIGHT)
        for index, suffix in enumerate(packing.SUFFIXES):
            pieces[f"{module}.{suffix}"] = (name, suffix)
            # the weight comes first; scales are estimated, which is enough to cut shards by
            sizes[f"{module}.{suffix}"] = entry.elements * packing.BITS // (512 if index else 8)
    with atomic_directory(target) as out, _one_thread():
        for path in sorted(directory.iterdir()):
            if path.suffix != ".safetensors" and path.name not in (CONFIG, INDEX):
                shutil.copyfile(path, out / path.name)
        told = max(1, len(names) // 10)

        def tensor(name: str) -> Tensor:
            if name not in pieces:
                return files.read(name)
            weight, suffix = pieces[name]
            fresh, found = shapes.packed(weight, files)
            if fresh and (shapes.done % told == 0 or shapes.done == len(names)):
                progress(f"{source}: {kind}, {shapes.done}/{len(names)} linears")
            return found[suffix]

        write_shards(sizes, tensor, out)
        write_json(out / CONFIG, read_json(directory / CONFIG) | {QUANTISATION: packing.SETTINGS})
        made = described(out, template_origin=config.template_origin, licence=config.licence)
    made = made.model_copy(update={"made_from": config.identity})
    return PulledBase(target, made, (f"{len(names)} linears in {kind}",), f"{source} in {kind}")


class _Shapes:
    """The last linear that was packed: its pieces are asked for one after the other."""

    def __init__(self, pack: Callable[[Tensor], dict[str, Tensor]]) -> None:
        self._pack = pack
        self._name = ""
        self._found: dict[str, Tensor] = {}
        self.done = 0

    def packed(self, name: str, files: Files) -> tuple[bool, dict[str, Tensor]]:
        """Whether it was packed just now, and the pieces. Raises BaseError."""
        fresh = name != self._name
        if fresh:
            weight_OI = files.read(name)
            if not torch.isfinite(weight_OI).all():
                raise BaseError(f"{name} has numbers that are not finite", hint="pull another base")
            try:
                self._name, self._found = name, self._pack(weight_OI)
            except ValueError as error:
                raise BaseError(f"{name} cannot be quantised: {error}") from error
            self.done += 1
        return fresh, self._found


def _packed_names(directory: Path, files: Files) -> frozenset[str]:
    """Names of the weights of the decoder's linears. Raises BaseError listing missing ones."""
    names = [name + _WEIGHT for name in linear_shapes(directory)]
    missing = [name for name in names if name not in files]
    if missing:
        raise BaseError(
            "the base's tensors do not have their modules' names, so it cannot be quantised",
            faults=missing,
            hint="save it once with transformers (save_pretrained), and pull that folder",
        )
    return frozenset(names)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order, whatever the number of threads: the same base gives the same digest."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
