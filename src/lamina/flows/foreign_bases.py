"""The base that a pulled stack stands on: at hand, in the same place, or from where it came from.

Whatever brings it, its identity is computed here over the bytes that came, and has to be the one
that the stack names.
"""

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from lamina.core.digest import short
from lamina.core.errors import (
    BaseError,
    CorruptBlobError,
    LaminaError,
    MissingBlobError,
    UnknownNameError,
    UsageError,
)
from lamina.core.evidence import StandsEvidence
from lamina.core.manifests import BASE_TYPE, BaseConfig, Descriptor
from lamina.core.names import MAX_NAME, Name
from lamina.core.report import Reporter
from lamina.flows import bases
from lamina.share.incoming import BlobSource, look
from lamina.store.layout import Store

Bring = Callable[[Sequence[Descriptor]], None]
"""Moves blobs from the source into the store."""
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def at_hand(store: Store, identity: str) -> bool:
    """Whether the store has a base."""
    try:
        store.find_base(identity)
    except UnknownNameError:
        return False
    return True


def bring_base(
    store: Store,
    identity: str,
    stated: Sequence[StandsEvidence],
    source: BlobSource,
    bring: Bring,
    reporter: Reporter,
) -> str | None:
    """See that the base is there. Returns the name it got, None when it was at hand.

    Raises BaseError saying what was tried.
    """
    if at_hand(store, identity):
        return None
    faults = []
    for said in stated:
        try:
            base = from_place(store, said.manifest.digest, identity, source, bring, said.source)
        except MissingBlobError:
            continue
        name = _free_name(store, said.name, identity)
        store.tag_base(name, base)
        return name
    for said in stated:
        for text in sources(said):
            name = _free_name(store, said.name, identity)
            reporter.say(f"fetching base {name} from {text}")
            try:
                bases.pull(
                    store, text, name, reporter, quantise=said.base.quantised, expected=identity
                )
            except LaminaError as error:
                faults.append(f"{text}: {error.message}")
                continue
            return name
    raise BaseError(
        f"base @{short(identity)} is not at hand, and it can't be had",
        faults=faults or ["nothing says where it came from"],
        hint="pull it: lamina base pull SOURCE; or ask the sender to push --with-base",
    )


def from_place(
    store: Store,
    digest: str,
    identity: str,
    source: BlobSource,
    bring: Bring,
    origin: str | None,
) -> Descriptor:
    """A base whose manifest the source has. Raises MissingBlobError when it has not, BaseError
    when its bytes are another base than it says."""
    incoming = look(store, source, digest)
    if incoming.kind != BASE_TYPE:
        raise BaseError(f"{digest} is no base but {incoming.kind}")
    if incoming.base != identity:
        raise BaseError(f"{digest} is base {incoming.base}, not {identity}")
    files = incoming.parsed[digest].layers
    titles = [blob.title for blob in files]
    if bad := [t for t in titles if not _FILE.fullmatch(t) or titles.count(t) > 1]:
        raise BaseError(
            "a base's files have names that lamina does not take", faults=map(repr, bad)
        )
    bring([blob for blob in incoming.payload if not store.intact(blob.digest)])
    claimed = incoming.config(digest, BaseConfig)
    found = _described(store, files, claimed)
    if found.identity != identity:
        raise CorruptBlobError(
            f"what came is base {found.identity}, though it calls itself {identity}",
            hint="its sender is damaged or lies: pull the base from its own source",
        )
    return store.put_base(found, files, origin or "")


def _described(store: Store, files: Sequence[Descriptor], claimed: BaseConfig) -> BaseConfig:
    """What the base in some blobs is, computed from their bytes."""
    from lamina.bases.checks import check_base
    from lamina.bases.convert import described_pipeline
    from lamina.bases.pipeline_files import is_pipeline
    from lamina.bases.quantised import described

    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=store.root) as folder:
        for blob in files:
            (Path(folder) / blob.title).symlink_to(store.path(blob.digest))
        if is_pipeline(Path(folder)):
            return described_pipeline(Path(folder), licence=claimed.licence)
        check_base(Path(folder))
        found = described(
            Path(folder), template_origin=claimed.template_origin, licence=claimed.licence
        )
    return found.model_copy(update={"made_from": claimed.made_from})


def sources(said: StandsEvidence) -> list[str]:
    """What `lamina base pull` may be given to get this base, the likeliest first."""
    from lamina.bases.sources import ALIASES, parse_source

    text = (said.source or "").partition(" ")[0]
    if not text.startswith(("hf:", "pypi:")):  # never a path of this machine
        return []
    found = []
    for name, alias in ALIASES.items():
        if alias.hub is not None and text.partition("@")[0] == f"hf:{alias.hub}":
            found.append(f"{name}@hub")
        if any(text.startswith(f"pypi:{part.distribution}==") for part in alias.parts):
            found.append(f"{name}@wheel")
    try:
        parse_source(text)
    except UsageError:
        return found
    return found if found else [text]


def _free_name(store: Store, wanted: str | None, identity: str) -> str:
    """A name for a base that nothing has yet."""
    try:
        plain = Name(wanted or "base").name
    except UsageError:
        plain = "base"
    taken = {*store.names(), *store.bases()}
    if plain not in taken:
        return plain
    return f"{plain[: MAX_NAME - 13].rstrip('._-')}-{short(identity)}"
