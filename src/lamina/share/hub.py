"""A Hub repository of a stack: what lies where in it, reading it as a source, and one commit to it.

```
README.md                     the model card
adapter_config.json           the whole stack as one PEFT adapter, for everybody else's tools
adapter_model.safetensors     (of a stack that draws: pytorch_lora_weights.safetensors alone)
lamina.json                   how that adapter was compared with the stack
lamina/oci-layout             the stack itself: an OCI image layout, as a store is one (ADR 20)
lamina/index.json             the stack first, named `latest`; then its evidence
lamina/blobs/sha256/<hex>
```

Reading and writing go through huggingface_hub, which finds token, endpoint and proxies itself.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from lamina.bases import hub
from lamina.bases.hub import HubRepo
from lamina.core.errors import (
    ShareError,
    UsageError,
)
from lamina.share.reference import HubRef, parse_place
from lamina.store.layout import LAYOUT_FILE

FOLDER = "lamina/"
INDEX = f"{FOLDER}index.json"
LAYOUT = f"{FOLDER}{LAYOUT_FILE}"
BLOBS = f"{FOLDER}blobs/sha256/"
SECONDS = 30.0
"""How long the Hub may take to say what a repository has."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
BLOB = re.compile(re.escape(BLOBS) + r"[0-9a-f]{64}")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class HubPlace:
    """A branch of a repository that may not exist yet, or a revision to read."""

    repo: str
    """`org/name`."""
    revision: str | None = None
    endpoint: str | None = None
    """In place of the library's own."""

    @property
    def branch(self) -> str:
        """The branch that is written to. Raises UsageError for a commit."""
        if self.revision is not None and _COMMIT.fullmatch(self.revision):
            raise UsageError(
                f"{self} is a commit, which nothing can be pushed to",
                hint="push to a branch: hf:org/name or hf:org/name@branch",
            )
        return self.revision or "main"

    def __str__(self) -> str:
        return f"hf:{self.repo}" + (f"@{self.revision}" if self.revision else "")

    def look(self) -> HubRepo:
        """The repository as it is now. Raises ShareError."""
        return hub.find(
            self.repo, self.revision, endpoint=self.endpoint, seconds=SECONDS, raises=ShareError
        )

    def look_if_there(self) -> HubRepo | None:
        """The same; the main branch, from which others start, where there is no such branch; None
        where there is no such repository, or none that we may see."""
        try:
            return self.look()
        except ShareError as error:
            if isinstance(error.__cause__, RevisionNotFoundError) and self.revision:
                return replace(self, revision=None).look_if_there()
            if type(error.__cause__) is RepositoryNotFoundError:  # a gated one is there
                return None
            raise


def parse_hub_place(text: str) -> HubPlace:
    """A place as `share.reference` has it. Raises UsageError."""
    found = parse_place(text)
    if not isinstance(found, HubRef):
        raise UsageError(f"{text} is no repository of the Hub", hint="for example hf:me/support")
    return HubPlace(found.repository, found.revision)


def is_stack(repo: HubRepo) -> bool:
    """Whether lamina made it."""
    return INDEX in repo.files


def blob_file(digest: str) -> str:
    """Where a blob or manifest lies."""
    return BLOBS + digest.removeprefix("sha256:")
