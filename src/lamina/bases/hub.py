"""The Hub: a revision resolved to a commit, and the files of a base without any pickle."""

import fnmatch
import hashlib
import io
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from lamina.bases.quiet import quiet
from lamina.core.digest import CHUNK_BYTES, digest_bytes, digest_file
from lamina.core.errors import BaseError, LaminaError
from lamina.core.files import clear_os_errors

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
PIPELINE = "model_index.json"
"""What tells that a repository holds a diffusers pipeline."""
_SHA256_HEX = 64
_BY_STATUS = {
    401: "the token is not valid: log in again with `hf auth login`, or set HF_TOKEN",
    403: "the token may not do that: use another one, or ask for access on its page",
    429: "the Hub takes no more requests from you for now: wait, then try again",
}
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
    sizes: Mapping[str, int] = field(default_factory=dict)
    """File -> bytes, as the Hub states them."""
    private: bool = False


def resolve(
    repo: str,
    revision: str | None = None,
    *,
    endpoint: str | None = None,
    seconds: float = HUB_SECONDS,
) -> HubRepo:
    """Ask the Hub for a base: what `revision` is (None: the main branch) and what files it has.

    Raises BaseError as `find` does, and when the repository has no usable weights.
    """
    found = find(repo, revision, endpoint=endpoint, seconds=seconds)
    if PIPELINE not in found.files:
        check_weights(found.files, f"hf:{repo}")
    return found


def find(
    repo: str,
    revision: str | None = None,
    *,
    endpoint: str | None = None,
    seconds: float = HUB_SECONDS,
    raises: type[LaminaError] = BaseError,
) -> HubRepo:
    """Ask the Hub what `revision` is (None: the main branch) and what files it has.

    Gives up after `seconds` whatever hangs, name resolution included. `endpoint` replaces the
    library's own. Raises `raises`, caused by the library's own exception, when the Hub cannot be
    reached, does not know the repository or does not let us read it.
    """
    try:
        info = _within(
            seconds,
            lambda: HfApi(endpoint=endpoint).model_info(
                repo, revision=revision, timeout=seconds, files_metadata=True
            ),
        )
    except Exception as error:  # one library, many transports: each has its own exceptions
        raise cannot(f"hf:{repo}", revision, error, raises) from error
    card = info.card_data
    siblings = info.siblings or ()
    return HubRepo(
        name=repo,
        commit=str(info.sha),
        files=tuple(sorted(item.rfilename for item in siblings)),
        licence=str(card.license) if card is not None and card.license else None,
        digests={
            item.rfilename: str(item.lfs.sha256 if item.lfs else item.blob_id)
            for item in siblings
            if item.lfs or item.blob_id
        },
        sizes={item.rfilename: item.size for item in siblings if item.size is not None},
        private=bool(info.private),
    )


def download(
    repo: HubRepo,
    into: Path,
    *,
    endpoint: str | None = None,
    progress: Callable[[str], None],
    wanted: Sequence[str] = WANTED,
    raises: type[LaminaError] = BaseError,
) -> Path:
    """Fetch the `wanted` files of the commit into a folder under `into`, and return that folder.

    Resumes a file whose transfer is cut, and keeps finished files for another call. Every file is
    checked against the Hub's digest for it; one that differs is deleted. Raises `raises` when a
    transfer fails or a file differs.
    """
    folder = into / repo.name.replace("/", "--") / repo.commit
    progress(f"hf:{repo.name}@{repo.commit[:12]}: downloading")
    try:
        with quiet(), clear_os_errors(f"downloading into {folder}"):
            snapshot_download(
                repo.name,
                revision=repo.commit,
                local_dir=folder,
                allow_patterns=list(wanted),
                endpoint=endpoint,
            )
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise cannot(f"hf:{repo.name}", repo.commit[:12], error, raises) from error
    except LaminaError:  # no space left
        raise
    except Exception as error:  # see find
        raise raises(
            f"hf:{repo.name}@{repo.commit[:12]} was not downloaded to the end: {reason(error)}",
            hint="pull again: files that are there whole are kept",
        ) from error
    _check_digests(repo, folder, raises)
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


def _check_digests(repo: HubRepo, folder: Path, raises: type[LaminaError]) -> None:
    """Delete and report every file whose bytes are not what the Hub says they are."""
    wrong = []
    for name, digest in sorted(repo.digests.items()):
        path = folder / name
        if path.is_file() and own_digest(path, digest) != digest:
            path.unlink()
            wrong.append(name)
    if wrong:
        raise raises(
            f"hf:{repo.name}@{repo.commit[:12]}: files differ from their digests on the Hub",
            faults=wrong,
            hint="they were deleted; pull again",
        )


def own_digest(content: bytes | Path, stated: str) -> str:
    """The digest of bytes or a file, of the kind that the Hub stated: sha256, or git's blob id."""
    if len(stated) == _SHA256_HEX:
        found = digest_bytes(content) if isinstance(content, bytes) else digest_file(content)
        return found.removeprefix("sha256:")
    return _git_blob_id(content)


def _git_blob_id(content: bytes | Path) -> str:
    """git's name for a file's content: SHA-1 by git's format, not for security."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    state = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as handle:
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


def cannot(
    what: str, revision: str | None, error: Exception, raises: type[LaminaError] = BaseError
) -> LaminaError:
    """What went wrong with the Hub and what to do about it."""
    at = f" at {revision!r}" if revision else ""
    kind = type(error).__name__
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    said = (error.server_message or "").strip() if isinstance(error, HfHubHTTPError) else ""
    hints = {
        "RepositoryNotFoundError": "check the name; a private one needs `hf auth login`",
        "GatedRepoError": "accept its terms on its page and run `hf auth login`",
        "RevisionNotFoundError": "give a branch, tag or commit that the repository has",
        "HFValidationError": "a repository is written hf:org/name",
    }
    hint = hints.get(kind, "check the network, or use a local directory, .gguf file or wheel")
    return raises(
        f"{what}{at} cannot be had from the Hub: {reason(error)}",
        faults=said.splitlines()[:3],
        hint=_BY_STATUS.get(status, hint) if kind == "HfHubHTTPError" else hint,
    )


def reason(error: BaseException) -> str:
    """The exception's kind and first line: its text can run to a page."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
