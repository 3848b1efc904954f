"""The same work: the key under which a training is known, and the run that did it before.

Two trainings with one key make one layer, to the byte on one machine, so the second need not be
done. The key covers what was asked (all of `runs.RunSpec` but names of times and places), every
row and question, the stack beneath, lamina's own source and the libraries it computes with. It
leaves out the machine: a layer that was trained with other cores is still the layer asked for.
"""

import contextlib
import glob
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lamina.core.digest import Digest, digest_bytes, digest_json
from lamina.core.errors import LaminaError
from lamina.flows import runs
from lamina.store.layout import Store

_ASIDE = {
    "id",
    "created",
    "on",
    "sources",
    "accept_regression",
    "force",
    "part_of",
    "key",
    "stream",
    "memory",
    "rates",
}
"""What decides when, where and under which name a layer is made, but not which one."""
_LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "jinja2",
    "bitsandbytes",
    "diffusers",
    "pillow",
)
"""What a layer is computed with besides lamina."""
_OUTSIDE = {"api.py", "cli", "exams", "export", "fleet", "gate", "plan", "serve", "share", "web"}
"""What of lamina never decides a layer; whatever else there is, or comes to be, does."""


def key_of(spec: runs.RunSpec, files: Mapping[str, bytes]) -> Digest:
    """Of a training: what was asked, and the files of its run's folder by name."""
    return digest_json(
        {
            "asked": spec.model_dump(mode="json", exclude=_ASIDE),
            "files": {name: digest_bytes(data) for name, data in files.items()},
            **code(),
        }
    )


def code() -> dict[str, object]:
    """What layers are computed by: digest of lamina's source, versions of libraries."""
    return {
        "source": source(Path(__file__).parents[1]),
        "libraries": {name: _version(name) for name in _LIBRARIES},
    }


@cache
def source(package: Path) -> Digest:
    """Over lamina's own source, as far as it decides a layer."""
    files = {
        path.relative_to(package).as_posix(): digest_bytes(path.read_bytes())
        for path in sorted(package.rglob("*"))
        if path.suffix in (".py", ".cpp") and path.relative_to(package).parts[0] not in _OUTSIDE
    }
    return digest_json(files)


def done_before(store: Store, asked: runs.RunSpec) -> tuple[runs.Run, runs.RunResult] | None:
    """The newest run that did this work, and whose layer is still whole in the store."""
    for run in _runs(store, asked):
        with contextlib.suppress(LaminaError, OSError):
            result = run.result
            if result is not None and _whole(store, result.layer):
                return run, result
    return None


def begun(store: Store, asked: runs.RunSpec, *, written: bool = False) -> runs.Run | None:
    """The newest run of this work whose training has begun and has not come to its layer; with
    `written` also one that was killed before its first step."""
    for run in _runs(store, asked):
        said = written or (run.directory / runs.EVENTS).exists()
        if said and not (run.directory / runs.RESULT).exists():
            return run
    return None


def _runs(store: Store, asked: runs.RunSpec) -> Iterator[runs.Run]:
    """The runs of this work for its own sake, newest first.

    What cannot be read is no such run: training again is never wrong.
    """
    if asked.key is None:
        return
    found = []
    for path in store.runs_dir.glob(f"*-{glob.escape(asked.name)}-*/{runs.SPEC}"):  # see new_id
        run = runs.Run(path.parent)
        with contextlib.suppress(LaminaError, OSError):
            if asked.key.encode() in path.read_bytes():
                spec = run.spec
                if spec.key == asked.key and spec.part_of is None:
                    found.append((spec.created, run.id, run))
    for _, _, run in sorted(found, key=lambda each: each[:2], reverse=True):
        yield run


def _whole(store: Store, layer: Digest) -> bool:
    """Whether every byte of a layer is there and right."""
    manifest = store.manifest(layer)
    return all(store.intact(blob.digest) for blob in (manifest.config, *manifest.layers))


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""
