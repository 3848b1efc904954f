"""The layout: one folder that is an OCI image layout, with lamina's cache and runs beside it.

```
<root>/oci-layout           {"imageLayoutVersion":"1.0.0"}: written last, makes it a store
<root>/index.json           what is kept and named
<root>/blobs/sha256/<hex>   every byte
<root>/lamina.lock          held while the index changes
<root>/cache, <root>/runs   no part of the layout; nor is votes.jsonl (see `flows.votes`)
```
"""

import errno
from pathlib import Path

from lamina.core.errors import StoreError
from lamina.core.files import TEMP_PREFIX, atomic_write, clear_os_errors
from lamina.core.manifests import ImageIndex
from lamina.core.values import Value
from lamina.store import collect, verify
from lamina.store.objects import ObjectStore
from lamina.store.refs import LOCK_FILE
from lamina.store.strict import parse_strictly

LAYOUT_FILE = "oci-layout"
LAYOUT_VERSION = "1.0.0"
_MARKER_BYTES = 4096
_OURS = {"blobs", "index.json", "cache", "runs", LOCK_FILE}


class Layout(Value):
    """The marker file of an OCI image layout."""

    imageLayoutVersion: str = LAYOUT_VERSION


class Store(ObjectStore):
    """A store on disk. All of its verbs; the inherited ones are in the other modules.

    Safe to share between threads and processes: blobs never change, and every change of the index
    happens under a lock.
    """

    @classmethod
    def open(cls, root: Path, *, create: bool = True) -> "Store":
        """Open the store at `root`, or make one in a folder that is missing or empty.

        An existing store is only read, so it may be read-only.
        Raises StoreError when `root` holds anything else, ReadOnlyStoreError.
        """
        store = cls(root)
        if not store._is_layout():
            store._refuse_foreign()
            if not create:
                raise StoreError(
                    f"there is no store at {store.root}",
                    hint="check LAMINA_HOME, or start one: lamina base pull smollm2-135m",
                )
            store._create()
        return store

    @property
    def cache_dir(self) -> Path:
        """Where other rooms keep what can be made again, keyed by the digest of every input."""
        return self.root / "cache"

    @property
    def runs_dir(self) -> Path:
        """Where training keeps its checkpoints; `collect` never looks inside."""
        return self.root / "runs"

    def collect(
        self, *, grace_seconds: float = collect.GRACE_SECONDS, dry_run: bool = False
    ) -> collect.CollectReport:
        """Remove what nothing refers to and nobody touched within the grace.

        Raises StoreError, removing nothing, when the store is damaged.
        """
        return collect.collect(
            self, cache=self.cache_dir, grace_seconds=grace_seconds, dry_run=dry_run
        )

    def verify(self, progress: verify.Progress | None = None) -> verify.VerifyReport:
        """Check everything that the index reaches; lists all damage, changes nothing."""
        return verify.verify(self, progress)

    def _is_layout(self) -> bool:
        """Whether the marker is there. Raises StoreError for a version that we don't read."""
        marker = self.root / LAYOUT_FILE
        try:
            if marker.exists() and not marker.is_file():
                raise OSError(errno.EINVAL, "it is no file")
            with marker.open("rb") as handle:
                data = handle.read(_MARKER_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise StoreError(f"cannot read {marker}: {error.strerror}") from error
        version = parse_strictly(Layout, data, str(marker)).imageLayoutVersion
        if version != LAYOUT_VERSION:
            raise StoreError(
                f"{self.root} is an image layout of version {version}, "
                f"this lamina reads {LAYOUT_VERSION}",
                hint="use a newer lamina, or another folder",
            )
        return True

    def _refuse_foreign(self) -> None:
        """Raises StoreError unless the folder is missing, empty, or a store begun and not ended."""
        try:
            found = sorted(path.name for path in self.root.iterdir())
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(f"{self.root} can't be a store: {error.strerror}") from error
        strange = [n for n in found if n not in _OURS and not n.startswith(TEMP_PREFIX)]
        if found and (strange or LOCK_FILE not in found):
            raise StoreError(
                f"{self.root} is neither empty nor a store",
                faults=[f"found {name}" for name in strange or found],
                hint="choose another folder, or empty this one first",
            )

    def _create(self) -> None:
        """Make the layout, the marker last; harmless when somebody else is making it too."""
        with clear_os_errors(f"making a store at {self.root}"):
            self.root.mkdir(parents=True, exist_ok=True)
        with self._locked(), clear_os_errors(f"making a store at {self.root}"):
            if self._is_layout():
                return
            self.blobs_dir.mkdir(parents=True, exist_ok=True)
            if not self.index_path.exists():
                atomic_write(self.index_path, ImageIndex(manifests=()).to_bytes())
            atomic_write(self.root / LAYOUT_FILE, Layout().to_bytes())
