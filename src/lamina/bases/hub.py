"""The Hub: a revision resolved to a commit, and the files of a base without any pickle."""

import fnmatch
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download

from lamina.bases.quiet import quiet
from lamina.core.digest import CHUNK_BYTES, digest_file
from lamina.core.errors import BaseError

HUB_SECONDS = 4.0
"""How long a Hub that does not answer is waited for before a base is looked for elsewhere."""
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
WANTED = (
    *WEIGHTS,
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
"""The only files ever fetched; patterns of paths in the repository's root."""
_SHA256_HEX = 64
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class HubRepo:
    """A repository at one commit."""

    name: str
    commit: str
    files: tuple[str, ...]
    licence: str | None
    digests: Mapping[str, str]
    """File -> its sha256 (large files) or git blob id (small ones), as the Hub states them."""


def resolve(
    repo: str,
    revision: str | None = None,
    *,
    endpoint: str | None = None,
    seconds: float = HUB_SECONDS,
) -> HubRepo:
    """Ask the Hub what `revision` is (None: the main branch) and what files it has.

    Gives up after `seconds` whatever hangs, name resolution included. `endpoint` replaces the
    library's own. Raises BaseError when the Hub cannot be reached, does not know the repository or
    does not let us read it, or the repository has no usable weights.
    """
    try:
        info = _within(
            seconds,
            lambda: HfApi(endpoint=endpoint).model_info(
                repo, revision=revision, timeout=seconds, files_metadata=True
            ),
        )
    except Exception as error:  # one library, many transports: each has its own exceptions
        raise _cannot(f"hf:{repo}", revision, error) from error
    card = info.card_data
    siblings = info.siblings or ()
    found = HubRepo(
        name=repo,
        commit=str(info.sha),
        files=tuple(sorted(item.rfilename for item in siblings)),
        licence=str(card.license) if card is not None and card.license else None,
        digests={
            item.rfilename: str(item.lfs.sha256 if item.lfs else item.blob_id)
            for item in siblings
            if item.lfs or item.blob_id
        },
    )
    check_weights(found.files, f"hf:{repo}")
    return found


def download(
    repo: HubRepo,
    into: Path,
    *,
    endpoint: str | None = None,
    progress: Callable[[str], None],
) -> Path:
    """Fetch the WANTED files of the commit into a folder under `into`, and return that folder.

    Resumes a file whose transfer is cut, and keeps finished files for another call. Every file is
    checked against the Hub's digest for it; one that differs is deleted. Raises BaseError when a
    transfer fails or a file differs.
    """
    folder = into / repo.name.replace("/", "--") / repo.commit
    progress(f"hf:{repo.name}@{repo.commit[:12]}: downloading")
    try:
        with quiet():
            snapshot_download(
                repo.name,
                revision=repo.commit,
                local_dir=folder,
                allow_patterns=list(WANTED),
                endpoint=endpoint,
            )
    except Exception as error:  # see resolve
        raise BaseError(
            f"hf:{repo.name}@{repo.commit[:12]} was not downloaded to the end: {_reason(error)}",
            hint="pull again: files that are there whole are kept",
        ) from error
    _check_digests(repo, folder)
    return folder


def check_weights(files: Sequence[str], what: str) -> None:
    """Refuse a list of root file names without safetensors weights, saying what it is instead.

    Raises BaseError.
    """
    if any(fnmatch.fnmatchcase(file, pattern) for file in files for pattern in WEIGHTS):
        return
    pickles = [f for f in files for pattern in PICKLES if fnmatch.fnmatchcase(f, pattern)]
    if pickles:
        raise BaseError(
            f"{what} has its weights only as pickles, which can run code when opened",
            faults=pickles,
            hint="ask for a revision with model.safetensors, or convert it where you trust it: "
            "AutoModelForCausalLM.from_pretrained(…).save_pretrained(folder)",
        )
    if "adapter_config.json" in files:
        raise BaseError(f"{what} is an adapter, not a base", hint="name the base it was trained on")
    ggufs = [file for file in files if file.endswith(".gguf")]
    if ggufs:
        raise BaseError(
            f"{what} has no safetensors weights, only GGUF",
            faults=ggufs,
            hint="download one of these files and give its path",
        )
    raise BaseError(f"{what} has no model.safetensors", hint="give a repository of a whole model")


def _check_digests(repo: HubRepo, folder: Path) -> None:
    """Delete and report every file whose bytes are not what the Hub says they are."""
    wrong = []
    for name, digest in sorted(repo.digests.items()):
        path = folder / name
        own = _sha256 if len(digest) == _SHA256_HEX else _git_blob_id
        if path.is_file() and own(path) != digest:
            path.unlink()
            wrong.append(name)
    if wrong:
        raise BaseError(
            f"hf:{repo.name}@{repo.commit[:12]}: files differ from their digests on the Hub",
            faults=wrong,
            hint="they were deleted; pull again",
        )


def _sha256(path: Path) -> str:
    return digest_file(path).removeprefix("sha256:")


def _git_blob_id(path: Path) -> str:
    """git's name for a file's content: SHA-1 by git's format, not for security."""
    state = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()


def _within(seconds: float, work: Callable[[], Any]) -> Any:
    """The result of `work`, or TimeoutError: a resolver can hang beyond a client's own timeout."""
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True, name="lamina-hub")
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return outcome[0]


def _cannot(what: str, revision: str | None, error: Exception) -> BaseError:
    at = f" at {revision!r}" if revision else ""
    kind = type(error).__name__
    hints = {
        "RepositoryNotFoundError": "check the name; a private one needs `hf auth login`",
        "GatedRepoError": "accept its terms on its page and run `hf auth login`",
        "RevisionNotFoundError": "give a branch, tag or commit that the repository has",
        "HFValidationError": "a repository is written hf:org/name",
    }
    return BaseError(
        f"{what}{at} cannot be had from the Hub: {_reason(error)}",
        hint=hints.get(kind, "check the network, or use a local directory, .gguf file or wheel"),
    )


def _reason(error: Exception) -> str:
    """The exception's kind and first line: its text can run to a page."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
