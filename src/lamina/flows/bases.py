"""`lamina base`: from a source to a base in the store, and what is known of it."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from lamina.core.digest import digest_bytes
from lamina.core.errors import BaseError, StoreError, UnknownNameError, UsageError
from lamina.core.manifests import (
    IDENTITY,
    JSON_TYPE,
    SAFETENSORS_TYPE,
    SOURCE,
    TEXT_TYPE,
    BaseConfig,
    Descriptor,
    Quantisation,
    StackConfig,
)
from lamina.core.names import Name, parse_name
from lamina.core.report import Reporter
from lamina.store.layout import Store

if TYPE_CHECKING:
    from lamina.bases.convert import PulledBase

_TYPES = {".safetensors": SAFETENSORS_TYPE, ".json": JSON_TYPE}


@dataclass(frozen=True)
class Pulled:
    """A base that is now in the store."""

    name: str
    descriptor: Descriptor
    config: BaseConfig
    source: str
    new: bool
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "name": self.name,
            "base": self.config.identity,
            "manifest": self.descriptor.digest,
            "source": self.source,
            "new": self.new,
            "notes": list(self.notes),
            **self.config.model_dump(mode="json"),
        }


def pull(
    store: Store,
    source: str,
    name: str | None,
    reporter: Reporter,
    *,
    quantise: str | None = None,
    expected: str | None = None,
) -> Pulled:
    """Fetch, convert, store; content that the store has already is not stored again.

    With `quantise` (nf4, int8) the linears are packed, and only that base is stored; `source` may
    then be the name of a base in the store. With `expected` nothing is stored unless the base has
    that identity. Raises BaseError, UsageError, StoreError,
    MissingPartError.
    """
    from lamina.bases.convert import pull as convert
    from lamina.bases.sources import parse_source

    kind = None if quantise is None else _kind(quantise)
    known = store.bases().get(source) if kind else None
    parsed = None if known else parse_source(source)
    plain = source if parsed is None else parsed.default_name
    wanted = parse_name(name or (f"{plain}-{kind}" if kind else plain)).name
    if wanted in store.names():
        raise UsageError(f"{wanted!r} is a stack's name already", hint="choose another with --as")
    work = store.root / "work" / digest_bytes(source.encode()).removeprefix("sha256:")[:16]

    def progress(text: str) -> None:
        reporter.event({"event": "pulling", "text": text})

    if parsed is not None:
        pulled = convert(parsed, work, progress=progress)
    else:
        assert known is not None
        pulled = _stored(store, known)
    if kind is not None:
        pulled = _quantised(pulled, kind, work, progress)
    if expected not in (None, pulled.config.identity):
        raise BaseError(
            f"{source} is base {pulled.config.identity}, expected {expected}",
            hint="it has changed there since; ask for the very revision, or for the base itself",
        )
    for note in pulled.notes:
        reporter.say(note)
    descriptor, new = _put(store, pulled)
    store.tag_base(wanted, descriptor)
    shutil.rmtree(work, ignore_errors=True)
    return Pulled(wanted, descriptor, pulled.config, pulled.source, new, pulled.notes)


def ensure(store: Store, alias: str, reporter: Reporter) -> Pulled:
    """The base of that name, pulled only when it is not in the store."""
    known = store.bases().get(alias)
    if known is None:
        return pull(store, alias, None, reporter)
    config = store.config(store.manifest(known.digest), BaseConfig)
    source = (known.annotations or {}).get(SOURCE, "")
    return Pulled(alias, known, config, source, new=False, notes=())


def _kind(text: str) -> Quantisation:
    known: tuple[Quantisation, ...] = get_args(Quantisation)
    found = next((kind for kind in known if kind == text), None)
    if found is None:
        raise UsageError(f"--quantise {text!r}: choose {' or '.join(known)}")
    return found


def _stored(store: Store, base: Descriptor) -> "PulledBase":
    """A base in the store as a folder."""
    from lamina.bases.convert import PulledBase
    from lamina.stack.compile import base_directory

    config = store.config(store.manifest(base.digest), BaseConfig)
    source = (base.annotations or {}).get(SOURCE, "") or config.identity
    return PulledBase(base_directory(store, base), config, (), source)


def _quantised(
    pulled: "PulledBase", kind: Quantisation, work: Path, progress: Callable[[str], None]
) -> "PulledBase":
    from lamina.bases.quantise import quantise

    target = work / "quantised" / kind
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    made = quantise(pulled.directory, pulled.config, pulled.source, kind, target, progress=progress)
    return replace(made, notes=pulled.notes + made.notes)


def _put(store: Store, pulled: "PulledBase") -> tuple[Descriptor, bool]:
    known = _known(store, pulled.config.identity)
    if known is not None and _intact(store, known):
        return known, False
    blobs = [
        store.adopt_file(path, _TYPES.get(path.suffix, TEXT_TYPE), title=path.name)
        for path in sorted(pulled.directory.iterdir())
    ]
    return store.put_base(pulled.config, blobs, pulled.source), known is None


def _known(store: Store, identity: str) -> Descriptor | None:
    try:
        return store.find_base(identity)
    except UnknownNameError:
        return None


def _intact(store: Store, base: Descriptor) -> bool:
    """Whether every byte of a stored base is right; if not, pulling it again heals it."""
    try:
        manifest = store.manifest(base.digest)
    except StoreError:
        return False
    return all(store.intact(blob.digest) for blob in (manifest.config, *manifest.layers))


def listing(store: Store) -> list[dict[str, Any]]:
    """Every base by name."""
    return [facts(store, name, base) for name, base in sorted(store.bases().items())]


def facts(store: Store, name: str, base: Descriptor) -> dict[str, Any]:
    """What is known of a base: its config, its source, its bytes."""
    manifest = store.manifest(base.digest)
    config = store.config(manifest, BaseConfig)
    return {
        "name": name,
        "identity": config.identity,
        "manifest": base.digest,
        "source": (base.annotations or {}).get(SOURCE, ""),
        "bytes": sum(blob.size for blob in manifest.layers),
        **config.model_dump(mode="json"),
    }


def details(store: Store, name: str) -> dict[str, Any]:
    """One base, its files and its template."""
    base = store.resolve_base(name)
    manifest = store.manifest(base.digest)
    template = manifest.blob("chat_template.jinja")
    return facts(store, name, base) | {
        "files": [
            {"name": blob.title, "digest": blob.digest, "bytes": blob.size}
            for blob in manifest.layers
        ],
        "chat_template": store.read(template.digest).decode() if template else None,
    }


def render(found: dict[str, Any]) -> str:
    """`details` for people."""
    lines = [f"{key:<16} {found[key]}" for key in found if key not in ("files", "chat_template")]
    lines += [f"file             {f['name']} {f['digest']} {f['bytes']}" for f in found["files"]]
    return "\n".join([*lines, "chat template:", found["chat_template"] or "(none)"])


def remove(store: Store, name: str) -> None:
    """Take a base's name away. Raises UsageError naming the stacks that stand on it."""
    base = store.resolve_base(name)
    if [other.digest for other in store.bases().values()].count(base.digest) > 1:
        store.untag_base(name)  # another name keeps it
        return
    identity = (base.annotations or {}).get(IDENTITY)
    standing = sorted(
        Name(stack, tag).full
        for stack, tags in store.names().items()
        for tag, descriptor in tags.items()
        if _stands_on(store, descriptor) == identity
    )
    if standing:
        raise UsageError(
            f"{name} carries named stacks", faults=standing, hint="remove those names first"
        )
    store.untag_base(name)
    store.remove_root(base.digest)


def _stands_on(store: Store, stack: Descriptor) -> str:
    return store.config(store.manifest(stack.digest), StackConfig).base
