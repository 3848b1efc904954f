"""Where an import lies: a path of this machine, or a repository of the Hub brought here."""

import re
from pathlib import Path

from lamina.bases import hub
from lamina.bases.sources import ALIASES, parse_source
from lamina.core.digest import digest_bytes
from lamina.core.report import Reporter
from lamina.lowrank.codec import CONFIG_FILE, WEIGHTS_FILE
from lamina.store.layout import Store

_HUB = "hf:"
_ADAPTER = (CONFIG_FILE, WEIGHTS_FILE, "adapters.safetensors", "README.md")
_PACKED = re.compile(r"[-_](?:bnb|unsloth|[48]bit|gptq|awq|gguf|int[48]|nf4|mlx|fp8|dynamic)\b")


def work_folder(store: Store, source: str) -> Path:
    """Where a source of the Hub is brought to; left there until the import is done."""
    return store.root / "work" / digest_bytes(source.encode()).removeprefix("sha256:")[:16]


def located(store: Store, source: str, reporter: Reporter, *, endpoint: str | None = None) -> Path:
    """The path that `source` means; a repository's files are fetched, pickles never.

    Raises BaseError, UsageError.
    """
    if not source.startswith(_HUB):
        return Path(source)
    parsed = parse_source(source)
    repo = hub.find(parsed.name, parsed.revision, endpoint=endpoint)
    adapter = CONFIG_FILE in repo.files
    if not adapter:
        hub.check_weights(repo.files, source)
    return hub.download(
        repo,
        work_folder(store, source),
        endpoint=endpoint,
        progress=lambda text: reporter.event({"event": "pulling", "text": text}),
        wanted=_ADAPTER if adapter else (*hub.WANTED, "README.md"),
    )


def known_as(source: str) -> frozenset[str]:
    """Short names that a base's source, or what an adapter says of its base, may be known by.

    `unsloth/Qwen2.5-0.5B-Instruct-bnb-4bit`, `hf:Qwen/Qwen2.5-0.5B-Instruct@…` and a folder of that
    name all give `qwen2.5-0.5b-instruct`.
    """
    names = set()
    for part in source.split(" + "):
        plain = re.sub(r"^(?:hf|pypi|file|directory):", "", part.strip())
        last = re.split(r"@|==| sha256:", plain)[0].rstrip("/").rpartition("/")[2].lower()
        names |= {last, _PACKED.split(last)[0].removesuffix(".gguf")}
    for alias, found in ALIASES.items():
        # not by the alias itself: others give that name to models that are not tuned to chat
        hub_name = (found.hub or alias).rpartition("/")[2].lower()
        if names & {hub_name, *(wheel.distribution for wheel in found.parts)}:
            names.add(hub_name)
    return frozenset(names - {""})
