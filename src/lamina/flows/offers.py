"""Where a proposal is: in a file, or in a registry."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lamina.core.digest import Digest
from lamina.core.errors import UsageError
from lamina.core.manifests import Descriptor
from lamina.core.report import Reporter
from lamina.share.archive import Archive
from lamina.share.incoming import BlobSource, Fetch, stream_in
from lamina.share.reference import RegistryRef, parse_place
from lamina.share.referrers import Repository
from lamina.share.transfer import Moved, fetch
from lamina.share.wire import Access
from lamina.store.layout import Store

REMOTE = "oci://"
"""What a place begins with that is no file."""


@dataclass(frozen=True)
class Offered:
    """A proposal before anything was believed of it."""

    source: BlobSource
    label: str
    """The place, as the user gave it."""
    stack: Digest

    def fetcher(self, reporter: Reporter) -> Fetch:
        """How its payloads are brought; from a registry it goes on where it stopped."""
        source = self.source
        if not isinstance(source, Repository):
            return stream_in

        def bring(store: Store, _: BlobSource, items: Sequence[Descriptor]) -> None:
            fetch(
                store,
                source,
                items,
                reporter=reporter,
                moved=Moved(),
                patience=source.wire.patience,
            )

        return bring


@contextlib.contextmanager
def offered(text: str, access: Access | None = None) -> Iterator[Offered]:
    """The proposal at the place that `text` means; `access` is for registries.

    Raises UsageError, ShareError.
    """
    if not text.startswith(REMOTE):
        archive = Archive(Path(text))
        yield Offered(archive, text, archive.root())
        return
    with Repository(registry(text), given(access)) as repository:
        yield Offered(repository, text, repository.resolve())


def registry(text: str) -> RegistryRef:
    """The place in a registry. Raises UsageError."""
    ref = parse_place(text)
    if not isinstance(ref, RegistryRef):
        raise UsageError(f"{text} is no registry", hint="give a file, or oci://host/repository:tag")
    return ref


def given(access: Access | None) -> Access:
    """How to reach a registry. Raises UsageError without it."""
    if access is None:
        raise UsageError("a registry is reached with an Access: see lamina.share.wire")
    return access
